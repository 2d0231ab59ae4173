"""Writes the reference results that the tests compare with: `python -m tools.golden [--out tests/golden]`.

For each spec a folder with a tiny random checkpoint, written by transformers, and `goldens.npz`:

    logits/CASE/...    inputs (tokens, canvas, ...) and what transformers computes from them
    sampling/CASE/...  settings, recorded draws, and the canvas after every step of transformers' `generate`
    noise              how far float32 itself is from float64 on these cases

Everything comes from fixed seeds. Needs torch and transformers.
"""

# mypy: ignore-errors
# (torch and transformers are not there where types are checked, and their own types do not fit together.)
from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

try:
    import torch
    import transformers
    from transformers import DiffusionGemmaForBlockDiffusion

    from tools.oracle import Arrays, Sampling, Spec, UndecidedError, logits_case, random_model, sample, save
except ImportError as error:  # one line, not a traceback: most checkouts have no torch
    print(f"golden: needs torch and transformers (make test-reference installs them): {error}", file=sys.stderr)
    sys.exit(2)

ROWS = 2

_TEXT: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "use_bidirectional_attention": "vision",
}
_VISION: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "num_hidden_layers": 2,
    "patch_size": 4,
    "pooling_kernel_size": 3,
    "position_embedding_size": 24,
}


def _layers(pattern: str) -> dict[str, Any]:
    names = {"s": "sliding_attention", "f": "full_attention"}
    return {"layer_types": [names[letter] for letter in pattern], "num_hidden_layers": len(pattern)}


SPECS = (
    Spec(
        name="window6",
        seed=1,
        branch=0.5,
        sharpness=2.0,
        canvas_length=8,
        text=_TEXT
        | _layers("ssf")
        | dict[str, Any](vocab_size=97, hidden_size=32, intermediate_size=40, moe_intermediate_size=16, num_experts=6)
        | dict[str, Any](top_k_experts=2, num_attention_heads=4, num_key_value_heads=2, num_global_key_value_heads=1)
        | dict[str, Any](head_dim=8, global_head_dim=16, sliding_window=6),
        vision=_VISION
        | dict[str, Any](
            hidden_size=24, intermediate_size=20, num_attention_heads=2, num_key_value_heads=2, head_dim=12
        )
        | dict[str, Any](standardize=True),
    ),
    Spec(
        name="clipped",
        seed=2,
        canvas_length=4,
        branch=0.5,
        text=_TEXT
        | _layers("fsf")
        | dict[str, Any](vocab_size=64, hidden_size=48, intermediate_size=24, moe_intermediate_size=8, num_experts=10)
        | dict[str, Any](top_k_experts=3, num_attention_heads=6, num_key_value_heads=3, num_global_key_value_heads=2)
        | dict[str, Any](head_dim=8, global_head_dim=16, sliding_window=8),
        vision=_VISION
        | dict[str, Any](hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
        | dict[str, Any](pooling_kernel_size=2, standardize=False, use_clipped_linears=True),
    ),
    Spec(
        name="text_only",
        seed=3,
        canvas_length=16,
        text_only=True,
        branch=0.4,
        text=_TEXT
        | _layers("sf")
        | dict[str, Any](vocab_size=120, hidden_size=32, intermediate_size=32, moe_intermediate_size=8, num_experts=12)
        | dict[str, Any](top_k_experts=2, num_attention_heads=4, num_key_value_heads=4, num_global_key_value_heads=2)
        | dict[str, Any](
            head_dim=16, global_head_dim=8, sliding_window=12, rms_norm_eps=1e-5, final_logit_softcapping=12.0
        ),
        vision=_VISION
        | dict[str, Any](hidden_size=8, intermediate_size=8, num_attention_heads=1, num_key_value_heads=1, head_dim=8),
    ),
    Spec(
        name="causal_images",
        seed=4,
        canvas_length=8,
        branch=0.6,
        text=_TEXT
        | _layers("ff")
        | dict[str, Any](vocab_size=80, hidden_size=32, intermediate_size=24, moe_intermediate_size=16, num_experts=4)
        | dict[str, Any](top_k_experts=1, num_attention_heads=2, num_key_value_heads=1, num_global_key_value_heads=2)
        | dict[str, Any](head_dim=8, global_head_dim=16, sliding_window=3, use_bidirectional_attention=None),
        vision=_VISION
        | dict[str, Any](hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
        | dict[str, Any](standardize=True, use_clipped_linears=True),
    ),
)

# Entropy bounds from hardly any position to all of them; confidence thresholds that are met at once, late and never.
SAMPLING = (
    Sampling(
        name="one_step", seed=1, prompt=7, max_new_tokens=1, max_denoising_steps=1, entropy_bound=0.1
    ),
    Sampling(
        name="five_steps", seed=2, prompt=20, max_new_tokens=1, max_denoising_steps=5, entropy_bound=2.0
    ),
    Sampling(
        name="rows_stop_apart", seed=4, prompt=9, max_new_tokens=1, max_denoising_steps=12, entropy_bound=40.0,
        t_min=0.02, t_max=0.4, stability_threshold=1, confidence_threshold=0.5,
    ),
)  # fmt: skip
OTHER_STABILITY = (
    Sampling(
        name="confident_at_once", seed=3, prompt=5, max_new_tokens=1, max_denoising_steps=5, entropy_bound=0.5,
        stability_threshold=0, confidence_threshold=9.0,
    ),
    Sampling(
        name="twice_stable", seed=5, prompt=3, max_new_tokens=1, max_denoising_steps=12, entropy_bound=40.0,
        t_min=0.02, t_max=0.3, stability_threshold=2, confidence_threshold=0.6,
    ),
)  # fmt: skip


def sampling_cases(spec: Spec) -> tuple[Sampling, ...]:
    """The common cases, and two of several canvases: one never ends, in one each row meets an end token."""
    common: dict[str, Any] = dict(prompt=6, max_denoising_steps=3, entropy_bound=1.0)
    eos = tuple(range(5, spec.text["vocab_size"], 9))
    canvases = (
        Sampling(name="two_canvases", seed=6, max_new_tokens=2 * spec.canvas_length, **common),
        Sampling(name="end_token", seed=7, max_new_tokens=3 * spec.canvas_length - 1, eos_token_id=eos, **common),
    )
    return SAMPLING + canvases + (OTHER_STABILITY if spec.name in ("window6", "text_only") else ())


def prompts(spec: Spec) -> dict[str, Arrays]:
    """Prompts of one token, shorter than the sliding window, and several times as long; prompts with images."""
    rng = np.random.default_rng(100 + spec.seed)
    window = spec.text["sliding_window"]
    lengths = {"one_token": 1, "short": window - 1, "long": 3 * window + 3}
    cases = {name: {"tokens": tokens(spec, rng, length)} for name, length in lengths.items()}
    if not spec.text_only:
        cases["image"] = image_prompt(spec, rng, Image(1, 4, 3, 3))
        cases["two_images"] = image_prompt(spec, rng, Image(0, 1, 2, 3), Image(0, 9, 4, 1))
        cases["image_each"] = image_prompt(spec, rng, Image(0, 7, 3, 2), Image(1, 2, 1, 4))
    for case in cases.values():
        case |= {name: canvas(spec, rng) for name in ("canvas", "next_canvas")}
    return cases


def tokens(spec: Spec, rng: np.random.Generator, length: int) -> np.ndarray:
    """Two rows of random words: none of the three image tokens."""
    return rng.integers(0, spec.image_token, (ROWS, length)).astype(np.int16)


def canvas(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """Any token may be noise."""
    return rng.integers(0, spec.text["vocab_size"], (ROWS, spec.canvas_length)).astype(np.int16)


class Image(NamedTuple):
    """Which row it is in, where it begins, and its size in soft tokens."""

    row: int
    start: int
    width: int
    height: int


def image_prompt(spec: Spec, rng: np.random.Generator, *images: Image) -> Arrays:
    """Words and images. Each image has at least one soft token's patches of padding."""
    kernel, patch = spec.vision["pooling_kernel_size"], spec.vision["patch_size"]
    most = 10 * kernel**2
    patches = np.zeros((len(images), most, 3 * patch**2), np.float32)
    positions = np.full((len(images), most, 2), -1, np.int16)
    words = tokens(spec, rng, 20)
    for index, image in enumerate(images):
        grid = [(x, y) for y in range(image.height * kernel) for x in range(image.width * kernel)]
        positions[index, : len(grid)] = grid
        # Coarse numbers: exact in bfloat16, small on disk.
        patches[index, : len(grid)] = rng.integers(0, 17, (len(grid), patches.shape[2])) / 16
        block = [spec.image_token + 1, *[spec.image_token] * (image.width * image.height), spec.image_token + 2]
        words[image.row, image.start : image.start + len(block)] = block
    return {"tokens": words, "patches": patches, "patch_positions": positions}


def logits_goldens(spec: Spec, model: DiffusionGemmaForBlockDiffusion) -> tuple[Arrays, float]:
    """Inputs and outputs of every prompt, and the largest difference that computing in float64 makes to a logit."""
    arrays: Arrays = {}
    noise = 0.0
    double = copy.deepcopy(model).double()
    for case, inputs in prompts(spec).items():
        outputs = logits_case(model, inputs)
        arrays |= {f"logits/{case}/{name}": value for name, value in (inputs | outputs).items()}
        finer = logits_case(double, inputs, outputs["first"])
        names = ("first", "conditioned", "committed")
        noise = max(noise, *(float(np.abs(finer[name] - outputs[name]).max()) for name in names))
    return arrays, noise


def bfloat16_goldens(spec: Spec, model: DiffusionGemmaForBlockDiffusion) -> Arrays:
    """The longest text prompt with everything in bfloat16."""
    outputs = logits_case(copy.deepcopy(model).bfloat16(), prompts(spec)["long"])
    return {f"bfloat16/{name}": outputs[name] for name in ("first", "conditioned", "committed")}


def sampling_goldens(spec: Spec, model: DiffusionGemmaForBlockDiffusion) -> Arrays:
    """All recorded `generate` calls."""
    arrays: Arrays = {}
    double = copy.deepcopy(model).double()
    for settings in sampling_cases(spec):
        inputs, settings, outputs = decided(spec, model, double, settings)
        outputs["settings"] = np.array(json.dumps(dataclasses.asdict(settings)))
        arrays |= {f"sampling/{settings.name}/{name}": value for name, value in (inputs | outputs).items()}
        steps = [value.tolist() for name, value in outputs.items() if name.endswith("/steps")]
        print(f"  {settings.name}: seed {settings.seed}, steps of each canvas {steps}", file=sys.stderr)
    return arrays


def decided(
    spec: Spec, model: DiffusionGemmaForBlockDiffusion, double: DiffusionGemmaForBlockDiffusion, settings: Sampling
) -> tuple[Arrays, Sampling, Arrays]:
    """Inputs, settings and recording with the first seed for which nothing hangs on rounding."""
    for seed in range(settings.seed, settings.seed + 5000, 100):
        settings = dataclasses.replace(settings, seed=seed)
        rng = np.random.default_rng((spec.seed, seed))
        inputs = {"tokens": tokens(spec, rng, settings.prompt)}
        if settings.name == "five_steps" and not spec.text_only:
            inputs = image_prompt(spec, rng, Image(0, 7, 3, 2), Image(1, 2, 1, 4))
        with contextlib.suppress(UndecidedError):
            return inputs, settings, sample(model, inputs, settings, double)
    raise ValueError(f"{spec.name}/{settings.name}: with every seed tried, rounding decides")


def write(spec: Spec, folder: Path) -> None:
    """One folder: checkpoint and goldens."""
    print(spec.name, file=sys.stderr)
    model = random_model(spec)
    save(model, spec, folder)
    logits, noise = logits_goldens(spec, model)
    arrays = logits | sampling_goldens(spec, model) | bfloat16_goldens(spec, model) | {"noise": np.float32(noise)}
    np.savez_compressed(folder / "goldens.npz", **arrays)
    print(f"  float32 differs from float64 by {noise:.1e}; {size(folder) / 1e3:.0f} kB", file=sys.stderr)


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def quiet() -> None:
    """No progress bars and no advice from transformers; one thread, so that sums have one order."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def main(arguments: list[str] | None = None) -> int:
    """Writes every spec's folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.golden", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder (default %(default)s)")
    options = parser.parse_args(arguments)
    quiet()
    for spec in SPECS:
        write(spec, options.out / spec.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
