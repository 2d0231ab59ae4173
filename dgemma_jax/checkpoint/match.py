"""Does a checkpoint hold exactly what the model needs? All that does not fit is said at once, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dgemma_jax.checkpoint.safetensors import CheckpointError

Shape = tuple[int, ...]


def require_shapes(folder: Path, wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raises `CheckpointError` listing all that is missing, unexpected or of another shape."""
    lines = [f"  - {name} {wanted[name]} (model has it, checkpoint does not)" for name in wanted.keys() - found.keys()]
    lines += [f"  + {name} (checkpoint has it, model does not)" for name in found.keys() - wanted.keys()]
    lines += [
        f"  ! {name}: wanted {wanted[name]}, found {found[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if lines:
        raise CheckpointError(f"{folder}: checkpoint does not fit the model:\n" + "\n".join(sorted(lines)))
