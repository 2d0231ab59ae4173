"""`python -m tools.train export`: what a run made, as a checkpoint folder in the published layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax.numpy as jnp
    from flax import nnx

    from dgemma_jax.config import ModelConfig


def add_command(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    export = commands.add_parser("export", help="write a run or a merged adapter as a checkpoint folder")
    export.add_argument("--model", type=Path, required=True, help="folder of a run, of an adapter or of a checkpoint")
    export.add_argument("--out", type=Path, required=True, help="folder to write; transformers reads it too")
    export.add_argument("--merge-lora", action="store_true", help="add the adapter in --model to its base's weights")
    export.add_argument("--base", type=Path, help="the adapter's base (default: where it was trained)")
    export.add_argument(
        "--average-with",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="another checkpoint of the same model, as of the run before; may be repeated: the mean of all is written",
    )
    export.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default %(default)s")
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes weights, configuration, tokenizer and chat template."""
    import jax
    import jax.numpy as jnp

    from dgemma_jax.checkpoint.export import export
    from dgemma_jax.checkpoint.load import load_parameters
    from dgemma_jax.config_json import read_generation_config, read_model_config
    from dgemma_jax.training import lora
    from dgemma_jax.training.run_folder import copy_companions

    jax.config.update("jax_platforms", "cpu")  # weights pass through host memory: one accelerator may be too small
    base = _base(options)
    if options.merge_lora and options.average_with:
        raise ValueError("--average-with is of checkpoints, --merge-lora of an adapter: export one, then the other")
    if (options.out / "config.json").exists():
        raise ValueError(f"{options.out} holds a checkpoint already; choose another --out")
    config, dtype = read_model_config(base), jnp.dtype(options.dtype)
    adapter = lora.read(options.model, config) if options.merge_lora else None
    if options.average_with:
        params = _mean([base, *options.average_with], config, dtype)
    else:
        _, params = load_parameters(base, config, dtype, "all_experts")
    params = params if adapter is None else lora.merge(params, adapter)
    export(options.out, config, read_generation_config(base), params, dtype)
    copy_companions(base, options.out)
    print(options.out)
    return 0


def _mean(folders: list[Path], config: ModelConfig, dtype: jnp.dtype) -> nnx.State:
    """The mean of the checkpoints' weights, added up in float32. Raises ValueError for one of another model.

    Runs that went on from each other, or from the same one, stay near enough for it to be better than each of them:
    "Model soups" (arXiv 2203.05482).
    """
    import jax
    import jax.numpy as jnp

    from dgemma_jax.checkpoint.load import load_parameters
    from dgemma_jax.config_json import read_model_config

    total = None
    for folder in folders:
        if read_model_config(folder) != config:
            raise ValueError(f"--average-with {folder}: its config.json describes another model than {folders[0]}")
        _, params = load_parameters(folder, config, jnp.dtype("float32"), "all_experts")
        total = params if total is None else jax.tree.map(jnp.add, total, params)
    return jax.tree.map(lambda x: (x / len(folders)).astype(dtype), total)


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
