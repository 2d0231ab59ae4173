"""Published checkpoints: from `org/name` on the Hugging Face Hub to a folder that `load` reads.

    folder = resolve_checkpoint("google/diffusiongemma-26B-A4B-it")     downloads what is not there yet
    folder = resolve_checkpoint("checkpoints/demo")                     a folder is itself

Only what is needed is downloaded, at one revision, which `fetched.json` names when all of it is there; what was cut
short goes on. Environment: DGEMMA_CHECKPOINTS (where folders go), and the Hub's own HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgemma_jax.checkpoint.companions import COMPANIONS

CHECKPOINTS_VARIABLE = "DGEMMA_CHECKPOINTS"
FETCHED_FILE = "fetched.json"
_NEEDED = ("config.json", "generation_config.json", "model.safetensors.index.json", *COMPANIONS)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPARE_BYTES = 10**9  # a disk that is filled to the last byte serves nobody


class FetchError(ValueError):
    """A checkpoint that cannot be downloaded; the message is one line and says what to do."""


def checkpoints_folder() -> Path:
    """Where downloaded checkpoints go: $DGEMMA_CHECKPOINTS, or `checkpoints` below the working folder."""
    return Path(os.environ.get(CHECKPOINTS_VARIABLE) or "checkpoints")


def resolve_checkpoint(text: str | Path) -> Path:
    """The folder that `text` means: itself where there is one, else the Hub's `org/name`, downloaded if need be.

    Raises:
        FetchError: neither a folder nor a name on the Hub, or the download fails.
    """
    if Path(text).is_dir():
        return Path(text)
    if not _REPOSITORY.fullmatch(str(text)):
        raise FetchError(f"{text} is not a folder, and not a name on the Hugging Face Hub as org/name")
    return fetch(str(text))


def fetch(repository: str, revision: str | None = None, out: Path | None = None) -> Path:
    """Downloads a repository's weights, configuration and tokenizer; at once where they are there already.

    Args:
        repository: `org/name`.
        revision: commit, branch or tag; None: what `out` holds already, or the newest.
        out: folder; None: one named after the repository, in `checkpoints_folder()`.

    Raises:
        FetchError: no such repository or revision, no access, no network, no room, or `out` holds something else.
    """
    folder = out or checkpoints_folder() / repository.rsplit("/", 1)[-1]
    if _is_there(folder, repository, revision):
        return folder
    with _one_line(repository, revision):
        # Here: the library is used without a network by most, and they need not wait for its import.
        from huggingface_hub import HfApi, snapshot_download

        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if is_needed(file.rfilename)}
        if not any(name.endswith(".safetensors") for name in sizes) or "config.json" not in sizes:
            raise FetchError(f"{repository} holds no checkpoint: it lacks config.json or safetensors files")
        require_room(folder, sum(size for name, size in sizes.items() if not _has(folder / name, size)))
        snapshot_download(repository, revision=info.sha, local_dir=folder, allow_patterns=sorted(sizes))
    facts = {"repository": repository, "revision": info.sha, "asked": revision}
    (folder / FETCHED_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def is_needed(name: str) -> bool:
    """Whether a repository's file belongs to a checkpoint folder."""
    return name in _NEEDED or ("/" not in name and name.endswith(".safetensors"))


def require_room(folder: Path, needed: int) -> None:
    """Raises `FetchError` where the disk that `folder` is on, or will be, lacks `needed` bytes and some to spare."""
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if needed and free < needed + _SPARE_BYTES:
        raise FetchError(
            f"{folder} needs {needed / 1e9:.1f} GB, and {_SPARE_BYTES / 1e9:.0f} GB to spare; "
            f"{parent} has {free / 1e9:.1f} GB free"
        )


def _is_there(folder: Path, repository: str, revision: str | None) -> bool:
    """Whether the folder holds all of it. Raises `FetchError` for a folder that holds something else."""
    if not (folder / FETCHED_FILE).is_file():
        started = (folder / ".cache" / "huggingface").is_dir()  # where the Hub's client notes what it has
        if (folder / "config.json").is_file() and not started:
            raise FetchError(f"{folder} holds a checkpoint that was not downloaded; choose another folder")
        return False
    try:
        facts: dict[str, Any] = json.loads((folder / FETCHED_FILE).read_text(encoding="utf-8"))
        found, asked = (facts["repository"], facts["revision"]), facts.get("asked")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError(f"{folder / FETCHED_FILE} cannot be read ({error}); remove the folder") from error
    if found[0] != repository or revision not in (None, found[1], asked):
        raise FetchError(f"{folder} holds {found[0]} at {found[1]}; choose another folder")
    return True


def _has(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


@contextmanager
def _one_line(repository: str, revision: str | None) -> Iterator[None]:
    """What the Hub's client raises, as `FetchError`."""
    from huggingface_hub import errors

    at = f"{repository} at {revision}" if revision else repository
    try:
        yield
    except errors.GatedRepoError:
        raise FetchError(
            f"{repository} asks for its terms to be accepted: open https://huggingface.co/{repository}, "
            "then give a token that may read it in HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FetchError(f"the Hub has no {repository}, or it is private: check the name, or set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise FetchError(f"{repository} has no revision {revision}") from None
    except errors.OfflineModeIsEnabled:
        raise FetchError(f"{at} is not on this machine, and HF_HUB_OFFLINE forbids to download it") from None
    except errors.HFValidationError as error:
        raise FetchError(f"{repository} is not a name on the Hub: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise FetchError(f"the Hub refused {at}: {_first_line(error)}") from None
    except (errors.HTTPError, OSError, RuntimeError) as error:  # no network, a full disk
        raise FetchError(f"cannot download {at}: {_first_line(error)}; what is there stays, try again") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
