"""`python -m tools.train export`: what a run made, as a checkpoint folder in the published layout."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    export = commands.add_parser("export", help="write a run or a merged adapter as a checkpoint folder")
    export.add_argument("--model", type=Path, required=True, help="folder of a run, of an adapter or of a checkpoint")
    export.add_argument("--out", type=Path, required=True, help="folder to write; transformers reads it too")
    export.add_argument("--merge-lora", action="store_true", help="add the adapter in --model to its base's weights")
    export.add_argument("--base", type=Path, help="the adapter's base (default: where it was trained)")
    export.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default %(default)s")
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes weights, configuration, tokenizer and chat template."""
    import jax.numpy as jnp

    from dgemma_jax.checkpoint.export import export
    from dgemma_jax.checkpoint.load import load_parameters
    from dgemma_jax.config_json import read_generation_config, read_model_config
    from dgemma_jax.training import lora
    from dgemma_jax.training.run_folder import copy_companions

    base = _base(options)
    if (options.out / "config.json").exists():
        raise ValueError(f"{options.out} holds a checkpoint already; choose another --out")
    config, dtype = read_model_config(base), jnp.dtype(options.dtype)
    adapter = lora.read(options.model, config) if options.merge_lora else None
    _, params = load_parameters(base, config, dtype, "all_experts")
    params = params if adapter is None else lora.merge(params, adapter)
    export(options.out, config, read_generation_config(base), params, dtype)
    copy_companions(base, options.out)
    print(options.out)
    return 0


def _base(options: argparse.Namespace) -> Path:
    """The folder whose weights are written. Raises ValueError where the flags do not fit what is there."""
    from dgemma_jax.training import lora

    is_adapter = (options.model / lora.CONFIG_FILE).is_file()
    if not options.merge_lora and is_adapter:
        raise ValueError(
            f"{options.model} holds an adapter: give --merge-lora to write it into its base's weights, "
            "or serve it as it is with --lora"
        )
    if not options.merge_lora:
        return options.model
    if not is_adapter:
        raise ValueError(f"{options.model} holds no adapter to merge: it has no {lora.CONFIG_FILE}")
    base = options.base or Path(lora.read_config(options.model).base)
    if not (base / "config.json").is_file():
        raise ValueError(f"the adapter's base {base} is not a checkpoint folder; name it with --base")
    return base
