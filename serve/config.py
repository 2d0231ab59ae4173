"""What the server needs to know to start. Every field of `ServeConfig` is a flag of `python -m serve`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

DEMO_CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "demo"
PUBLISHED_NAME = "google/diffusiongemma-26b-a4b-it"
"""The name that clients of this model send; accepted by default whatever the checkpoint, so that they run unchanged."""


def _at_least(minimum: float, number: type[int] | type[float] = int) -> Callable[[str], float]:
    """An argparse type: a number of the given kind, not below `minimum`."""

    def parse(text: str) -> float:
        value = number(text)
        if not value >= minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, found {text}")
        return value

    parse.__name__ = number.__name__
    return parse


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, found {text}")
    return value


def _flag(text: str, **options: Any) -> dict[str, Any]:
    """A field's metadata: the flag's help, and further arguments for argparse's `add_argument`."""
    return {"help": text, **options}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """An OpenAI-compatible server for DiffusionGemma."""

    checkpoint: Path = field(
        default=DEMO_CHECKPOINT,
        metadata=_flag("folder of the model, in the Hugging Face layout", type=Path, metavar="DIR"),
    )
    dtype: str = field(
        default="bfloat16",
        metadata=_flag("type of the weights; float32 is exact and slow", choices=("bfloat16", "float32")),
    )
    served_model_name: tuple[str, ...] = field(
        default=(),
        metadata=_flag(
            "names that requests may use as `model`, in any letter case; the first is the main one "
            f"(default: the checkpoint folder's name, then {PUBLISHED_NAME})",
            nargs="+",
            metavar="NAME",
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_flag("address to listen on; 0.0.0.0 lets other machines in, and nothing asks them for a key"),
    )
    port: int = field(default=8000, metadata=_flag("port to listen on; 0 takes a free one", type=_port))
    thinking: bool = field(
        default=False, metadata=_flag("let the model think before it answers, unless the request says otherwise")
    )
    default_max_tokens: int = field(
        default=4096,
        metadata=_flag(
            "most new tokens of a request that gives no limit; the rest of the context, if less", type=_at_least(1)
        ),
    )
    compilation_cache: Path = field(
        default=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgemma" / "xla",
        metadata=_flag(
            "folder that keeps compiled programs, so that the next start is quick", type=Path, metavar="DIR"
        ),
    )
    seed: int | None = field(
        default=None,
        metadata=_flag("start of the seeds for requests that give none (default: new at each start)", type=int),
    )
    max_queue: int = field(
        default=64, metadata=_flag("requests that may wait for the model; more are answered 429", type=_at_least(0))
    )
    max_body_mib: int = field(
        default=64, metadata=_flag("largest request body in MiB; larger is answered 413", type=_at_least(1))
    )
    heartbeat_seconds: float = field(
        default=10.0,
        metadata=_flag("longest silence in a stream before an empty chunk is sent", type=_at_least(0.01, float)),
    )
    shutdown_seconds: float = field(
        default=30.0,
        metadata=_flag("how long open requests may go on after SIGTERM or Ctrl-C", type=_at_least(0, float)),
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The model names this server answers to, the main one first."""
        return self.served_model_name or tuple(dict.fromkeys((self.checkpoint.resolve().name, PUBLISHED_NAME)))


def parse_flags(argv: Sequence[str] | None = None) -> ServeConfig:
    """Reads the command line; on a wrong flag prints why and exits with status 2."""
    parser = argparse.ArgumentParser(prog="python -m serve", description=ServeConfig.__doc__)
    for flag in dataclasses.fields(ServeConfig):
        options = dict(flag.metadata)
        if isinstance(flag.default, bool):
            options["action"] = "store_true"
        elif "choices" not in options:
            options.setdefault("metavar", flag.name.rsplit("_")[-1].upper())
        if "(default:" not in options["help"]:
            options["help"] += " (default: off)" if flag.default is False else f" (default: {flag.default})"
        parser.add_argument("--" + flag.name.replace("_", "-"), default=flag.default, **options)
    values = vars(parser.parse_args(argv))
    return ServeConfig(**values | {"served_model_name": tuple(values["served_model_name"])})
