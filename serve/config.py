"""What the server needs to know to start. Every field of `ServeConfig` is a flag of `python -m serve`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

DEMO_CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "demo"
PUBLISHED_NAME = "google/diffusiongemma-26b-a4b-it"
"""The name that clients of this model send; accepted by default whatever the checkpoint, so that they run unchanged."""
KEY_VARIABLE = "DGEMMA_API_KEY"


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


def _bytes(text: str) -> int:
    """A number of bytes, with or without a unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])i?)?B?", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a number of bytes, as 512MiB or 20GiB, found {text}")
    power = " KMGT".index((found[2] or " ").upper())
    return int(float(found[1]) * 1024**power)


def _api_key(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):  # what one word of a header can hold
        raise argparse.ArgumentTypeError("must be printable ASCII without spaces")
    return text


def _origin(text: str) -> str:
    origin = text.lower()
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/?#\s*]+", origin):
        raise argparse.ArgumentTypeError(f"must be an origin as browsers name it, https://host[:port], found {text}")
    return origin


def _flag(text: str, **options: Any) -> dict[str, Any]:
    """A field's metadata: the flag's help, and further arguments for argparse's `add_argument`."""
    return {"help": text, **options}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """An OpenAI-compatible server for DiffusionGemma."""

    checkpoint: Path = field(
        default=DEMO_CHECKPOINT,
        metadata=_flag(
            "folder of the model, or org/name on the Hugging Face Hub: downloaded", type=Path, metavar="DIR"
        ),
    )
    lora: Path | None = field(
        default=None,
        metadata=_flag("folder of an adapter to add to the weights (default: none)", type=Path, metavar="DIR"),
    )
    dtype: str = field(
        default="auto",
        metadata=_flag(
            "type of the weights; auto is bfloat16, on a CPU float32 where it takes less than a quarter of the memory",
            choices=("auto", "bfloat16", "float32"),
        ),
    )
    mesh: str | None = field(
        default=None,
        metadata=_flag(
            "devices to spread the model over, as expert=8 or data=2,expert=4; see docs/deploy.md (default: all "
            "accelerators, of CPUs one)",
            metavar="AXES",
        ),
    )
    quantize: Literal["int8", "int4"] | None = field(
        default=None,
        metadata=_flag(
            "8 or 4 bits for the matrices of experts, attention and MLP: less memory, less exact (default: neither)",
            choices=("int8", "int4"),
        ),
    )
    moe_backend: str | None = field(
        default=None,
        metadata=_flag(
            "how the experts run: all_experts, expert_blocks, capacity_buckets, grouped_blocks, gmm or ragged_dot "
            "(default: by device)",
            choices=("all_experts", "expert_blocks", "capacity_buckets", "grouped_blocks", "gmm", "ragged_dot"),
        ),
    )
    coordinator: str | None = field(
        default=None,
        metadata=_flag(
            "HOST:PORT where the processes of a group meet, the first one's; or auto, as SLURM, Kubernetes, TPU or MPI "
            "say; see docs/deploy.md (default: this process is alone)",
            metavar="HOST:PORT",
        ),
    )
    num_processes: int | None = field(
        default=None,
        metadata=_flag("processes of the group (default: as the cluster says)", type=_at_least(1), metavar="N"),
    )
    process_id: int | None = field(
        default=None,
        metadata=_flag(
            "which of them this is, from 0, which takes the requests (default: as the cluster says)",
            type=_at_least(0),
            metavar="N",
        ),
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
        metadata=_flag("address to listen on; 0.0.0.0 lets other machines in: ask them for an --api-key"),
    )
    port: int = field(default=8000, metadata=_flag("port to listen on; 0 takes a free one", type=_port))
    thinking: bool = field(
        default=True,
        metadata=_flag("let the model think before it answers, unless the request says otherwise"),
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
    warm_up: Literal["all", "chat"] = field(
        default="all",
        metadata=_flag(
            "compiled ahead, on a CPU partly beside the first requests; chat leaves out what images, top_k and "
            "top_p need, so that the first of those wait",
            choices=("all", "chat"),
        ),
    )
    seed: int | None = field(
        default=None,
        metadata=_flag("start of the seeds for requests that give none (default: new at each start)", type=int),
    )
    request_seconds: float | None = field(
        default=None,
        metadata=_flag(
            "longest a request may take, waiting included; then it is answered 504 (default: no limit)",
            type=_at_least(0.01, float),
        ),
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

    # Many requests at once.
    slots: int = field(default=8, metadata=_flag("requests that are worked on together at most", type=_at_least(1)))
    max_queue: int = field(
        default=64, metadata=_flag("requests that may wait beside them; more are answered 429", type=_at_least(0))
    )
    max_model_len: int | None = field(
        default=None,
        metadata=_flag(
            "most tokens of prompt and reply together (default: what the model has positions and --kv-memory room for)",
            type=_at_least(1),
        ),
    )
    kv_memory: int | None = field(
        default=None,
        metadata=_flag(
            "memory for keys and values of requests and earlier prompts, as 512MiB or 20GiB (default: most of what "
            "the device has left; on a CPU an eighth of the machine's memory)",
            type=_bytes,
            metavar="BYTES",
        ),
    )
    prefix_reuse: str = field(
        default="exact",
        metadata=_flag(
            "which earlier prompts are reused: with exact, those that leave every reply as it is; with any, also "
            "earlier turns and their replies, which may change a reply by rounding; with off, none",
            choices=("exact", "any", "off"),
        ),
    )
    rows_apart: bool = field(
        default=False,
        metadata=_flag(
            "compute requests that run together one by one: a reply is then the same in any company to the last bit of "
            "every number, but they take as long as one after another"
        ),
    )

    # Who may ask. Keys are secrets: neither `--help` nor a log shows them.
    api_key: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata=_flag(
            f"key that requests must bring as `Authorization: Bearer KEY`; give it again for more keys; {KEY_VARIABLE} "
            "in the environment is one more, which other users of the machine cannot see (default: none is asked for)",
            action="append",
            type=_api_key,
        ),
    )
    cors_origin: tuple[str, ...] = field(
        default=(),
        metadata=_flag(
            "web page that may call this server from a browser, as https://host[:port], or * for every page; "
            "give it again for more (default: none)",
            action="append",
            type=_origin,
        ),
    )

    # Images and videos of requests.
    max_media: int = field(default=16, metadata=_flag("most images and videos in one request", type=_at_least(0)))
    media_memory: int = field(
        default=2 * 2**30,
        metadata=_flag(
            "memory for decoded images and videos of all open requests; those that find too little free wait for "
            "others to end, except the one that asked first, whose media may come on top (default: 2GiB)",
            type=_bytes,
            metavar="BYTES",
        ),
    )
    allowed_media_domains: tuple[str, ...] = field(
        default=(),
        metadata=_flag(
            "hosts that images and videos may be fetched from, with their subdomains (default: the public internet)",
            nargs="+",
            metavar="DOMAIN",
        ),
    )
    allow_private_media: bool = field(
        default=False,
        metadata=_flag("fetch images and videos from private and loopback addresses too: for tests and intranets"),
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The model names this server answers to, the main one first."""
        return self.served_model_name or tuple(dict.fromkeys((self.checkpoint.resolve().name, PUBLISHED_NAME)))


def parse_flags(argv: Sequence[str] | None = None) -> ServeConfig:
    """Reads the command line; on a wrong flag prints why and exits with status 2."""
    parser = argparse.ArgumentParser(prog="python -m serve", description=ServeConfig.__doc__)
    for flag in dataclasses.fields(ServeConfig):
        options, switch = dict(flag.metadata), isinstance(flag.default, bool)
        if switch:
            options["action"] = argparse.BooleanOptionalAction if flag.default else "store_true"
        elif "choices" not in options:
            options.setdefault("metavar", flag.name.rsplit("_")[-1].upper())
        if "(default:" not in options["help"]:
            shown = ("on" if flag.default else "off") if switch else flag.default
            options["help"] += f" (default: {shown})"
        default = list(flag.default) if isinstance(flag.default, tuple) else flag.default  # what "append" adds to
        parser.add_argument("--" + flag.name.replace("_", "-"), default=default, **options)
    return ServeConfig(**_values(parser, argv))


def _values(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """The value of every flag by its name, the key from the environment among the keys."""
    flags = vars(parser.parse_args(argv))
    if key := os.environ.get(KEY_VARIABLE):
        try:
            flags["api_key"].append(_api_key(key))
        except argparse.ArgumentTypeError as error:
            parser.error(f"environment variable {KEY_VARIABLE}: {error}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}
