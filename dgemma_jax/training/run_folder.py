"""What a run's folder remembers: its settings, its metrics, and the files that come with every checkpoint.

run.json        the settings; the same command goes on where the run stopped, another one is refused
metrics.jsonl   one object for each logged step
training/       the run's state, newest last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgemma_jax.checkpoint.companions import COMPANIONS

_SAMPLES, _SAMPLE_BYTES = 16, 65536
SETTINGS_FILE, METRICS_FILE, STATE_FOLDER = "run.json", "metrics.jsonl", "training"


class RunError(ValueError):
    """A folder that holds something else than this run."""


def require_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Accepts a folder that is new, or whose run has these settings.

    Raises:
        RunError: another run, naming the settings that differ; or files of no run.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            raise RunError(f"{folder} holds a checkpoint already, and not one of a run; choose another folder")
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    now = json.loads(json.dumps(settings))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        lines = [f"\n- {name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in names]
        raise RunError(f"{folder} holds a run with other settings; choose another folder or the same:" + "".join(lines))


def remember(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of the run, and makes its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


def _replace(file: Path, text: str) -> None:
    """Writes a file that is never there in part, whenever the machine stops."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def forget_after(folder: Path, step: int) -> None:
    """Takes lines behind `step` out of the metrics: a run that goes on from there writes them again.

    Raises:
        RunError: metrics that are not such lines.
    """
    file = folder / METRICS_FILE
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line without its end was being written when the run was killed.
        try:
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{file} has a line that is no object with a step: {error}") from error
        _replace(file, "".join(kept))


def copy_companions(source: Path, target: Path) -> None:
    """Copies what training does not change: tokenizer, chat template, how images are cut."""
    target.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (source / name).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / name, target / name)


def fingerprint(folder: Path) -> str:
    """Of a checkpoint: its configuration, and the size and some bytes of each file. Reading 50 GB would take long."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    weights = [*folder.glob("*.safetensors"), *(path for path in folder.glob("orbax/**/*") if path.is_file())]
    for file in sorted(weights):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}".encode())
        with file.open("rb") as opened:
            for part in range(_SAMPLES):
                opened.seek(part * file.stat().st_size // _SAMPLES)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def source_hash(package: Path) -> str:
    """Of the modules of a package: a run whose data they make cannot go on when they have changed."""
    digest = hashlib.sha256()
    for file in sorted(package.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
