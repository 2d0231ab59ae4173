"""Reads how images and videos are cut, as strictly as `config_json.py` reads the rest of a folder, and writes it.

folder -> `processor_config.json`, or the two older files -> `ProcessorConfig`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dgemma_jax.config import ConfigError, ModelConfig, ProcessorConfig
from dgemma_jax.strict_json import Fixed, StrictObject, load_optional, raise_collected, show

_NAMES = {"processor_class", "image_processor_type", "video_processor_type"}
_CALLING = {"return_metadata", "return_tensors", "data_format", "input_data_format", "device"}
# There is no audio tower; image soft tokens are counted for each image; Gemma 4 resizes by soft tokens, not to `size`.
_UNUSED = {"feature_extractor", "audio_seq_length", "audio_ms_per_token", "image_seq_length", "size"}
_CHECKED = {"image_mean", "image_std"}  # where they are used, in _processor_part
_HARMLESS = frozenset(_NAMES | _CALLING | _UNUSED | _CHECKED)

_IMAGE: Fixed = {
    "do_convert_rgb": ((True,), "the vision tower reads three colours"),
    "do_rescale": ((True,), "the vision tower reads values in [0, 1]"),
    "do_center_crop": ((False,), "images are resized whole"),
    "resample": ((3,), "3 is bicubic, the only filter of this architecture"),
}
_VIDEO: Fixed = {
    **_IMAGE,
    "do_resize": ((True,), "frames must fit their soft tokens"),
    "do_sample_frames": ((True,), "frames are sampled uniformly"),
}


def read_processor_config(folder: Path, config: ModelConfig) -> ProcessorConfig:
    """Reads how images and video become patches; what no file sets is as published, with the model's own patches.

    The settings are those of `processor_config.json`, or of the older `preprocessor_config.json` and
    `video_preprocessor_config.json`. Raises ConfigError for settings that this library would compute differently.
    """
    folder = Path(folder)
    problems: list[str] = []
    root = StrictObject(load_optional(folder / "processor_config.json"), problems, "processor_config.json: ")
    image = _processor_part(root, "image_processor", folder / "preprocessor_config.json", _IMAGE)
    video = _processor_part(root, "video_processor", folder / "video_preprocessor_config.json", _VIDEO)
    root.finish(_HARMLESS)
    vision = config.vision or ProcessorConfig()
    expected = {"patch_size": vision.patch_size, "pooling_kernel_size": vision.pooling_kernel_size}
    values = {key: _expect(image, key, "int", value, "config.json") for key, value in expected.items()}
    values["max_soft_tokens"] = image.plain("max_soft_tokens", "int", config.soft_tokens_per_image)
    values["do_resize"] = image.plain("do_resize", "bool", True)
    values["rescale_factor"] = image.plain("rescale_factor", "float", ProcessorConfig.rescale_factor)
    for key, kind in (("patch_size", "int"), ("pooling_kernel_size", "int"), ("rescale_factor", "float")):
        _expect(video, key, kind, values[key], "the image processor")
    values["video_max_soft_tokens"] = video.plain("max_soft_tokens", "int", ProcessorConfig.video_max_soft_tokens)
    values["video_num_frames"] = video.plain("num_frames", "int", ProcessorConfig.video_num_frames)
    for part in (image, video):
        part.finish(_HARMLESS)
    raise_collected(folder, problems)
    try:
        return ProcessorConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{folder}: the processor settings cannot be used:\n- {error}") from error


def _processor_part(root: StrictObject, key: str, older_file: Path, fixed: Fixed) -> StrictObject:
    """One of the two processors, from the common file or from its own, with what has only one value checked."""
    if root.has(key):
        part = root.child(key)
        part.values = {name: value for name, value in part.values.items() if value is not None}
    else:
        part = StrictObject(load_optional(older_file), root.problems, f"{older_file.name}: ")
    part.fixed(fixed)
    if part.plain("do_normalize", "bool", False):
        for name, neutral in (("image_mean", 0), ("image_std", 1)):
            value = part.values.get(name, neutral)
            if value == [] or any(one != neutral for one in (value if isinstance(value, list) else [value])):
                part.wrong(name, f"only {neutral}", "the vision tower reads values in [0, 1]")
    return part


def _expect(part: StrictObject, key: str, kind: str, value: Any, owner: str) -> Any:
    if part.plain(key, kind, value) != value:
        part.wrong(key, f"{show(value)}, as {owner} has it")
    return value


def write_processor_config(folder: Path, processor: ProcessorConfig) -> None:
    """Writes `processor_config.json` in the published form.

    transformers reads it too where the soft tokens are published numbers (70, 140, 280, 560, 1120); it knows no others.
    """
    names = ("patch_size", "pooling_kernel_size", "rescale_factor", "resample")
    neutral = {"do_normalize": False, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    common = {name: getattr(processor, name) for name in names} | neutral | {"do_convert_rgb": True, "do_rescale": True}
    image = common | {
        "image_processor_type": "Gemma4ImageProcessor",
        "do_resize": processor.do_resize,
        "max_soft_tokens": processor.max_soft_tokens,
    }
    video = common | {
        "video_processor_type": "Gemma4VideoProcessor",
        "do_resize": True,
        "do_sample_frames": True,
        "max_soft_tokens": processor.video_max_soft_tokens,
        "num_frames": processor.video_num_frames,
    }
    root = {"processor_class": "Gemma4Processor", "image_processor": image, "video_processor": video}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(root, indent=2, sort_keys=True) + "\n"
    (folder / "processor_config.json").write_text(text, encoding="utf-8")
