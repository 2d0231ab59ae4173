"""The Dockerfiles cannot be built where the tests run: what a reader would check in them is checked here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dgemma_jax.checkpoint.hub import CHECKPOINTS_VARIABLE
from serve.config import ServeConfig

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("Dockerfile.*"))
CACHE = "/opt/nim/.cache"


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction and what follows it, with continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def one(path: Path, name: str) -> str:
    (found,) = [rest for instruction, rest in instructions(path) if instruction == name]
    return found


def environment(path: Path) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in one(path, "ENV").split())


def command(path: Path) -> list[str]:
    given = dict(instructions(path)).get("CMD", "[]")
    return json.loads(one(path, "ENTRYPOINT")) + json.loads(given)


def test_there_is_one_for_gpus_and_one_for_cpus() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
class TestEach:
    def test_the_base_is_pinned_to_a_release(self, path: Path) -> None:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+[a-z-]*(@sha256:[0-9a-f]{64})?", one(path, "FROM"))

    def test_it_does_not_run_as_root(self, path: Path) -> None:
        user = one(path, "USER")
        assert user not in ("root", "0") and f"--create-home {user}" in one(path, "RUN")
        assert instructions(path).index(("USER", user)) > instructions(path).index(("RUN", one(path, "RUN")))

    def test_it_listens_where_it_says(self, path: Path) -> None:
        port = one(path, "EXPOSE")
        assert port == "8000"
        assert command(path)[:3] == ["python", "-m", "serve"]
        assert f"--host 0.0.0.0 --port {port}" in " ".join(command(path))
        assert f"http://127.0.0.1:{port}/v1/health/ready" in one(path, "HEALTHCHECK")

    def test_its_flags_are_the_servers(self, path: Path) -> None:
        flags = {"--" + name.replace("_", "-") for name in ServeConfig.__dataclass_fields__}
        assert {word for word in command(path) if word.startswith("--")} <= flags

    def test_all_that_is_kept_is_in_the_volume(self, path: Path) -> None:
        assert one(path, "VOLUME") == CACHE
        kept = {name: value for name, value in environment(path).items() if name.startswith(("HF_", "XDG_", "DGEMMA_"))}
        assert CHECKPOINTS_VARIABLE in kept
        assert all(value.startswith(CACHE) for value in kept.values())

    def test_what_it_copies_is_not_ignored(self, path: Path) -> None:
        ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
        for needed in ("pyproject.toml", "README.md", "LICENSE", "dgemma_jax", "serve", "tools", "checkpoints/demo"):
            assert f"!{needed}\n" in ignored and (ROOT / needed).exists()


def test_the_one_for_gpus_installs_cuda_and_sees_all_gpus() -> None:
    path = ROOT / "Dockerfile.cuda"
    assert ".[cuda12]" in one(path, "RUN")
    assert environment(path)["NVIDIA_VISIBLE_DEVICES"] == "all"
