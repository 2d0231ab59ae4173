"""What is running here: `GET /v1/version` and `GET /v1/metadata`, in NIM's shapes."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

from aiohttp import web
from msgspec import Struct

from serve import bodies
from serve.handlers import CONFIG, ENGINE

_API = "v1"
_PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


class Version(Struct, frozen=True):
    """The release of this server, and the version of its HTTP API."""

    release: str
    api: str


class ModelInfo(Struct, frozen=True, rename="camel"):
    """A served name, and the folder name of the checkpoint behind it."""

    short_name: str
    model_url: str


class LicenseInfo(Struct, frozen=True):
    """The licence of the server; that of the weights comes with the weights."""

    name: str
    url: str


class Metadata(Struct, frozen=True, kw_only=True, rename="camel"):
    version: str
    model_info: list[ModelInfo]
    license_info: LicenseInfo
    asset_info: list[str] = []  # the files of a container, in NIM
    selected_model_profile_id: str
    """Here: the type of the weights."""


async def version(request: web.Request) -> web.Response:
    """`GET /v1/version`"""
    return bodies.answer(Version(release=release(), api=_API))


async def metadata(request: web.Request) -> web.Response:
    """`GET /v1/metadata`"""
    config = request.app[CONFIG]
    folder = config.checkpoint.resolve().name
    return bodies.answer(
        Metadata(
            version=release(),
            model_info=[ModelInfo(name, folder) for name in config.names],
            license_info=LicenseInfo("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
            selected_model_profile_id=request.app[ENGINE].dtype,
        )
    )


def release() -> str:
    """The version of the installed package, or of the source folder where nothing is installed."""
    try:
        return importlib.metadata.version("dgemma")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8")) if _PROJECT.is_file() else {}
        return str(project.get("project", {}).get("version", "unknown"))
