"""Reads the JSON settings of a checkpoint folder strictly, and writes them for our own exporter.

folder -> `config.json`, `generation_config.json` -> the frozen values of `config.py`; see also `processor_json.py`

Two forms of `config.json` are read: the published one (`global_head_dim`, `num_global_key_value_heads`) and the
one transformers writes (`per_layer_config`). Every key must be known. A key may be absent only where the field in
`config.py` has a default, which is transformers' default too. All problems of a file come in one `ConfigError`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgemma_jax.config import (
    FULL,
    SLIDING,
    ConfigError,
    GenerationConfig,
    ModelConfig,
    TextConfig,
    VisionConfig,
)
from dgemma_jax.quantization_json import check_quantization
from dgemma_jax.strict_json import KINDS, Fixed, StrictObject, load_object, load_optional, raise_collected, show

FOLDER_CONTENTS = (
    "config.json, weights (model.safetensors, several files with model.safetensors.index.json, or orbax/) and, to "
    "read and write text, tokenizer.json and chat_template.jinja; generation_config.json and processor_config.json "
    "are optional"
)

_ORIGIN_KEYS = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path"}
_CALLING_KEYS = {"use_cache", "return_dict", "return_dict_in_generate", "output_attentions", "output_hidden_states"}
_TRAINING_KEYS = {"initializer_range", "chunk_size_feed_forward", "problem_type", "id2label", "label2id"}
_TOKEN_KEYS = {"bos_token_id", "eos_token_id", "pad_token_id"}  # read_generation_config reads them where they matter
_OTHER_KEYS = {"is_encoder_decoder", "disable_compile", "_from_model_config", "_commit_hash"}
HARMLESS_KEYS = frozenset(_ORIGIN_KEYS | _CALLING_KEYS | _TRAINING_KEYS | _TOKEN_KEYS | _OTHER_KEYS)
"""Known keys that change nothing this library computes."""

# The vision tower's only limit on positions is the size of its table.
_HARMLESS_VISION_KEYS = HARMLESS_KEYS | {"max_position_embeddings"}

_TRANSFORMER: Fixed = {
    "hidden_activation": (("gelu_pytorch_tanh",), "the only activation of this architecture"),
    "attention_bias": ((False, None), "projections have no bias"),
    "attention_dropout": ((0.0, None), "there is no dropout"),
}
_ROOT: Fixed = {
    "model_type": (("diffusion_gemma",), "other architectures are not read"),
    "tie_word_embeddings": ((True,), "the vocabulary head and both encoders share the decoder's weights"),
    "quantization": ((None,), "of quantized checkpoints FP8 of compressed-tensors is read, or full weights"),
}
_TEXT: Fixed = {
    **_TRANSFORMER,
    "model_type": (("diffusion_gemma_text",), "other architectures are not read"),
    "tie_word_embeddings": _ROOT["tie_word_embeddings"],
    "use_bidirectional_attention": ((None, "vision"), "text is always causal in the encoder"),
}
_VISION: Fixed = {**_TRANSFORMER, "model_type": (("gemma4_vision",), "other vision towers are not read")}
_FULL_ROPE: Fixed = {"rope_type": (("proportional",), "the rotary embedding of full layers")}
_SLIDING_ROPE: Fixed = {
    "rope_type": (("default",), "the rotary embedding of sliding layers"),
    "partial_rotary_factor": ((1,), "sliding layers rotate every pair"),
}
_VISION_ROPE: Fixed = {"rope_type": (("default", "axial"), "two names of the same 2-D rotary embedding")}
_GENERATION: Fixed = {"cache_implementation": (("dynamic",), "the cache that the reference results come from")}
_SAMPLER: Fixed = {"_cls_name": (("EntropyBoundSamplerConfig",), "the only sampler of this architecture")}

# Fields of TextConfig that the file spells otherwise, or may leave to `per_layer_config`.
_GLOBAL_KEYS = frozenset(("global_head_dim", "num_global_key_value_heads"))
_TEXT_ELSEWHERE = _GLOBAL_KEYS | {
    "bidirectional_images",
    "sliding_rope_theta",
    "full_rope_theta",
    "full_partial_rotary_factor",
}


def _load_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"checkpoint folder {folder} {problem}; a checkpoint folder must contain {FOLDER_CONTENTS}")
    if not (folder / "config.json").exists():
        raise ConfigError(f"{folder} has no config.json; a checkpoint folder must contain {FOLDER_CONTENTS}")
    return load_object(folder / "config.json")


def read_model_config(folder: Path) -> ModelConfig:
    """Reads `config.json`. `vision_config: null` is a model for text only.

    Raises ConfigError, naming file, key, what was wanted and what was found, for a folder or file that is not there
    or is not JSON, and for keys that are unknown, missing, of the wrong type, unsupported or contradictory.
    """
    folder = Path(folder)
    problems: list[str] = []
    root = StrictObject(_load_config(folder), problems)
    root.fixed(_ROOT)
    check_quantization(root)
    if "model_type" not in root.values:
        root.problem("model_type", 'missing, wanted "diffusion_gemma"')
    model = root.plain_fields(ModelConfig, "soft_tokens_per_image")
    text = _read_text(root.child("text_config"))
    without_vision = "vision_config" in root.values and not root.has("vision_config")
    vision_object = None if without_vision else root.child("vision_config")
    vision = vision_object and _read_vision(vision_object)
    soft_tokens = _soft_tokens_per_image(root, vision_object)
    root.finish(HARMLESS_KEYS)
    raise_collected(folder / "config.json", problems)
    try:
        return ModelConfig(
            text=TextConfig(**text),
            vision=VisionConfig(**vision) if vision else None,
            soft_tokens_per_image=soft_tokens,
            **model,
        )
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'} cannot be used:\n- {error}") from error


def _read_text(text: StrictObject) -> dict[str, Any]:
    text.fixed(_TEXT)
    values = text.plain_fields(TextConfig, *_TEXT_ELSEWHERE)
    values["layer_types"] = _read_layer_types(text)
    values |= _read_full_layers(text, values)
    values["bidirectional_images"] = text.values.get("use_bidirectional_attention") == "vision"
    if text.has("rope_parameters"):
        rope = text.child("rope_parameters")
        full, sliding = rope.child(FULL), rope.child(SLIDING)
        full.fixed(_FULL_ROPE)
        sliding.fixed(_SLIDING_ROPE)
        values["full_rope_theta"] = full.plain("rope_theta", "float")
        values["full_partial_rotary_factor"] = full.plain("partial_rotary_factor", "float")
        values["sliding_rope_theta"] = sliding.plain("rope_theta", "float")
        for one in (rope, full, sliding):
            one.finish()
    text.finish(HARMLESS_KEYS)
    return values


def _read_layer_types(text: StrictObject) -> tuple[str, ...]:
    count = text.plain("num_hidden_layers", "int")
    if "layer_types" not in text.values:
        text.problem("layer_types", f"missing, wanted a list of {SLIDING} and {FULL}")
        return ()
    text.asked.add("layer_types")
    layer_types = text.values["layer_types"]
    if not isinstance(layer_types, list) or not all(one in (SLIDING, FULL) for one in layer_types):
        text.wrong("layer_types", f"a list of {SLIDING} and {FULL}")
        return ()
    if "num_hidden_layers" in text.values and count != len(layer_types):
        text.problem("num_hidden_layers", f"{count}, but layer_types has {len(layer_types)} layers")
    return tuple(layer_types)


def _read_full_layers(text: StrictObject, values: Mapping[str, Any]) -> dict[str, int]:
    """Head size and key/value heads of the full layers, from either form of config.json, or from both if they agree."""
    sliding = {key: values[key] for key in ("head_dim", "num_key_value_heads")}
    global_keys = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
    stated = {key: text.plain(name, "int") for key, name in global_keys.items() if text.has(name)}
    full = sliding | stated
    if text.has("per_layer_config"):
        full = _read_per_layer(text.child("per_layer_config"), values["layer_types"], sliding)
        for key in [key for key in stated if stated[key] != full[key]]:
            text.problem(global_keys[key], f"{stated[key]}, but per_layer_config gives full layers {full[key]}")
    elif "head_dim" not in stated:
        text.problem("global_head_dim", "missing, wanted an integer (or per_layer_config, as transformers writes it)")
    return {name: full[key] for key, name in global_keys.items()}


def _read_per_layer(layers: StrictObject, layer_types: tuple[str, ...], sliding: dict[str, int]) -> dict[str, int]:
    """What transformers' overrides, keyed by layer index ("5" or "05"), make of every full layer."""
    full = {index: sliding for index, layer_type in enumerate(layer_types) if layer_type == FULL}
    seen: set[int] = set()
    for key in layers.values:
        entry = layers.child(key)
        index = int(key) if key.isascii() and key.isdecimal() and len(key) < 9 else -1
        if index not in full or index in seen:
            wanted = f"the indices of the full layers {sorted(full)}, each at most once"
            layers.problem(key, f"wanted {wanted}; head sizes of other layers cannot differ")
        else:
            full[index] = {name: entry.plain(name, "int", default) for name, default in sliding.items()}
        seen.add(index)
        entry.finish(frozenset() if index in full else frozenset(entry.values))
    distinct = [one for number, one in enumerate(full.values()) if one not in list(full.values())[:number]]
    if len(distinct) > 1:
        layers.problems.append(f"{layers.path[:-1]}: full layers must be alike, found {show(distinct)}")
    return distinct[0] if distinct else sliding


def _read_vision(vision: StrictObject) -> dict[str, Any]:
    vision.fixed(_VISION)
    values = vision.plain_fields(VisionConfig, "rope_theta")
    if vision.has("rope_parameters"):
        rope = vision.child("rope_parameters")
        rope.fixed(_VISION_ROPE)
        values["rope_theta"] = rope.plain("rope_theta", "float")
        rope.finish()
    size = values["head_dim"]
    if vision.has("global_head_dim") and size and vision.values["global_head_dim"] != size:
        vision.wrong("global_head_dim", f"the same as head_dim, {size}", "all layers are alike")
    vision.has("default_output_length")
    vision.finish(_HARMLESS_VISION_KEYS)
    return values


def _soft_tokens_per_image(root: StrictObject, vision: StrictObject | None) -> int:
    """The image budget, which the published file states twice and transformers not at all."""
    default = ModelConfig.soft_tokens_per_image
    if vision is not None:
        default = vision.plain("default_output_length", "int", default)
    found = root.plain("vision_soft_tokens_per_image", "int", default)
    if vision is not None and "default_output_length" in vision.values and found != default:
        root.problem("vision_soft_tokens_per_image", f"{found}, but vision_config.default_output_length is {default}")
    return found


def read_generation_config(folder: Path) -> GenerationConfig:
    """Reads `generation_config.json`; what it does not set has the default of `GenerationConfig`.

    Stop tokens it does not name are those of `config.json`, then those of its `text_config`.
    Raises ConfigError as `read_model_config` does.
    """
    folder = Path(folder)
    config = _load_config(folder)
    path = folder / "generation_config.json"
    problems: list[str] = []
    settings = StrictObject(load_optional(path), problems)
    settings.fixed(_GENERATION)
    values = settings.plain_fields(GenerationConfig, "entropy_bound")
    if settings.has("sampler_config"):
        sampler = settings.child("sampler_config")
        sampler.fixed(_SAMPLER)
        values["entropy_bound"] = sampler.plain("entropy_bound", "float")
        sampler.finish()
    root = StrictObject(config, problems, "config.json: ")
    sources = [settings, root, *([root.child("text_config")] if root.has("text_config") else [])]
    stop = next((source for source in sources if source.has("eos_token_id")), None)
    if stop is not None:
        values["eos_token_ids"] = _read_eos(stop)
    settings.finish(HARMLESS_KEYS)
    raise_collected(path, problems)
    try:
        return GenerationConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be used:\n- {error}") from error


def _read_eos(source: StrictObject) -> tuple[int, ...]:
    value = source.values["eos_token_id"]
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(one) is int and one >= 0 for one in ids):
        source.wrong("eos_token_id", "a token id or a list of token ids")
    return tuple(ids)


def write_config(config: ModelConfig, generation: GenerationConfig, folder: Path) -> None:
    """Writes `config.json` and `generation_config.json` in the published form, which transformers reads too.

    A model without vision is written with `vision_config: null`; transformers then adds a tower of its own defaults.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    eos = list(generation.eos_token_ids)
    root = {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        **_plain_values(config, "soft_tokens_per_image"),
        "eos_token_id": eos,
        "tie_word_embeddings": True,
        "vision_soft_tokens_per_image": config.soft_tokens_per_image,
        "text_config": _text_json(config.text),
        "vision_config": config.vision and _vision_json(config.vision, config.soft_tokens_per_image),
    }
    sampler = {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": generation.entropy_bound}
    settings = {**_plain_values(generation, "entropy_bound"), "eos_token_id": eos, "sampler_config": sampler}
    for name, value in (("config.json", root), ("generation_config.json", settings)):
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _plain_values(config: Any, *written_elsewhere: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(config) if field.type in KINDS]
    return {name: getattr(config, name) for name in names if name not in written_elsewhere}


def _text_json(text: TextConfig) -> dict[str, Any]:
    full = {"rope_theta": text.full_rope_theta, "partial_rotary_factor": text.full_partial_rotary_factor}
    return {
        **{key: accepted[0] for key, (accepted, _) in _TEXT.items()},
        **_plain_values(text, *_TEXT_ELSEWHERE - _GLOBAL_KEYS),
        "num_hidden_layers": text.num_hidden_layers,
        "layer_types": list(text.layer_types),
        "rope_parameters": {
            FULL: {"rope_type": "proportional", **full},
            SLIDING: {"rope_type": "default", "rope_theta": text.sliding_rope_theta},
        },
        "use_bidirectional_attention": "vision" if text.bidirectional_images else None,
    }


def _vision_json(vision: VisionConfig, soft_tokens_per_image: int) -> dict[str, Any]:
    return {
        **{key: accepted[0] for key, (accepted, _) in _VISION.items()},
        **_plain_values(vision, "rope_theta"),
        "default_output_length": soft_tokens_per_image,
        "rope_parameters": {"rope_type": "default", "rope_theta": vision.rope_theta},
    }
