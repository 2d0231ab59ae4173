"""Settings of a checkpoint folder: what is read, what is refused and how the refusal reads."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgemma_jax.config import (
    DIFFUSION_GEMMA_26B_A4B,
    FULL,
    SLIDING,
    ConfigError,
    GenerationConfig,
    ModelConfig,
    ProcessorConfig,
)
from dgemma_jax.config_json import read_generation_config, read_model_config, write_config
from dgemma_jax.processor_json import read_processor_config

Json = dict[str, Any]
FIXTURE = Path(__file__).parent / "data" / "config_transformers_5_23.json"

PUBLISHED: Json = {
    "architectures": ["DiffusionGemmaForBlockDiffusion"],
    "model_type": "diffusion_gemma",
    "canvas_length": 256,
    "eos_token_id": [1, 106],
    "image_token_id": 258880,
    "boi_token_id": 255999,
    "eoi_token_id": 258882,
    "vision_soft_tokens_per_image": 280,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "transformers_version": "5.8.0.dev0",
    "text_config": {
        "model_type": "diffusion_gemma_text",
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "moe_intermediate_size": 704,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "head_dim": 256,
        "global_head_dim": 512,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 5,
        "sliding_window": 1024,
        "vocab_size": 262144,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "num_experts": 128,
        "top_k_experts": 8,
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": "vision",
        "rope_parameters": {
            FULL: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    },
    "vision_config": {
        "_name_or_path": "",
        "architectures": None,
        "chunk_size_feed_forward": 0,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "model_type": "gemma4_vision",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 72,
        "global_head_dim": 72,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "position_embedding_size": 10240,
        "max_position_embeddings": 131072,
        "default_output_length": 280,
        "standardize": True,
        "use_clipped_linears": False,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    },
}
GENERATION: Json = {
    "max_new_tokens": 256,
    "max_denoising_steps": 48,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "t_min": 0.4,
    "t_max": 0.8,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
    "eos_token_id": [1, 106, 50],
    "pad_token_id": 0,
    "transformers_version": "5.8.0.dev0",
}
# What transformers saves with a model that nobody gave generation settings.
UNSET_GENERATION: Json = {
    "confidence_threshold": None,
    "max_denoising_steps": None,
    "return_dict_in_generate": True,
    "sampler_config": None,
    "stability_threshold": None,
    "t_max": None,
    "t_min": None,
    "transformers_version": "5.23.0",
}
PIXELS: Json = {
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
    "max_soft_tokens": 280,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
IMAGE: Json = PIXELS | {"image_processor_type": "Gemma4ImageProcessor", "image_seq_length": 280, "size": None}
VIDEO: Json = PIXELS | {
    "video_processor_type": "Gemma4VideoProcessor",
    "do_normalize": True,
    "do_sample_frames": True,
    "max_soft_tokens": 70,
    "num_frames": 32,
    "return_metadata": False,
}
PROCESSOR: Json = {
    "processor_class": "Gemma4Processor",
    "image_seq_length": 280,
    "audio_seq_length": 750,
    "audio_ms_per_token": 40,
    "feature_extractor": {"sampling_rate": 16000},
    "image_processor": IMAGE,
    "video_processor": VIDEO,
}


def put(folder: Path, value: Any, name: str = "config.json") -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def changed(original: Json, change: Callable[[Json], Any]) -> Json:
    value = copy.deepcopy(original)
    change(value)
    return value


def setting(path: str, value: Any) -> Callable[[Json], None]:
    *parents, last = path.split(".")

    def change(root: Json) -> None:
        for parent in parents:
            root = root[parent]
        root[last] = value

    return change


def without(path: str) -> Callable[[Json], None]:
    *parents, last = path.split(".")

    def change(root: Json) -> None:
        for parent in parents:
            root = root[parent]
        del root[last]

    return change


def fixture() -> Json:
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


def refusal(folder: Path, reader: Callable[[Path], Any] = read_model_config) -> str:
    with pytest.raises(ConfigError) as caught:
        reader(folder)
    return str(caught.value)


def test_published_config_is_the_26b_preset(tmp_path: Path) -> None:
    assert read_model_config(put(tmp_path, PUBLISHED)) == DIFFUSION_GEMMA_26B_A4B


def test_config_written_by_transformers_is_read(tmp_path: Path) -> None:
    config = read_model_config(put(tmp_path, fixture()))
    assert (config.text.head_dim, config.text.global_head_dim) == (16, 32)
    assert (config.text.num_key_value_heads, config.text.num_global_key_value_heads) == (2, 1)
    assert config.text.final_logit_softcapping == 30.0
    assert config.text.layer_types == (*[SLIDING] * 5, FULL) * 2
    assert config.text.bidirectional_images
    assert config.vision is not None and config.vision.rope_theta == 100.0


def test_empty_per_layer_config_means_full_layers_like_sliding_ones(tmp_path: Path) -> None:
    config = read_model_config(put(tmp_path, changed(fixture(), setting("text_config.per_layer_config", {}))))
    assert (config.text.global_head_dim, config.text.num_global_key_value_heads) == (16, 2)


def test_per_layer_override_falls_back_to_the_common_value(tmp_path: Path) -> None:
    layers = {"05": {"head_dim": 32}, "11": {"head_dim": 32}}
    config = read_model_config(put(tmp_path, changed(fixture(), setting("text_config.per_layer_config", layers))))
    assert (config.text.global_head_dim, config.text.num_global_key_value_heads) == (32, 2)


def test_null_global_key_value_heads_mean_those_of_sliding_layers(tmp_path: Path) -> None:
    change = setting("text_config.num_global_key_value_heads", None)
    assert read_model_config(put(tmp_path, changed(PUBLISHED, change))).text.num_global_key_value_heads == 8


def test_both_forms_may_be_present_when_they_agree(tmp_path: Path) -> None:
    layers = {str(index): {"head_dim": 512, "num_key_value_heads": 2} for index in range(5, 30, 6)}
    change = setting("text_config.per_layer_config", layers)
    assert read_model_config(put(tmp_path, changed(PUBLISHED, change))) == DIFFUSION_GEMMA_26B_A4B


def test_null_vision_config_is_a_text_only_model(tmp_path: Path) -> None:
    config = read_model_config(put(tmp_path, changed(PUBLISHED, setting("vision_config", None))))
    assert config == dataclasses.replace(DIFFUSION_GEMMA_26B_A4B, vision=None)


def test_null_bidirectional_attention_is_causal_everywhere(tmp_path: Path) -> None:
    change = setting("text_config.use_bidirectional_attention", None)
    assert not read_model_config(put(tmp_path, changed(PUBLISHED, change))).text.bidirectional_images


def test_whole_numbers_pass_as_numbers(tmp_path: Path) -> None:
    change = setting("vision_config.rope_parameters.rope_theta", 100)
    assert read_model_config(put(tmp_path, changed(PUBLISHED, change))) == DIFFUSION_GEMMA_26B_A4B


@pytest.mark.parametrize(
    "key",
    [
        *("text_config", "vision_config", "model_type", "text_config.num_experts", "text_config.layer_types"),
        *("text_config.num_hidden_layers", "text_config.global_head_dim", "vision_config.head_dim"),
        *("text_config.rope_parameters.full_attention", "vision_config.rope_parameters.rope_theta"),
        "text_config.rope_parameters.full_attention.partial_rotary_factor",
    ],
)
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    message = refusal(put(tmp_path, changed(PUBLISHED, without(key))))
    assert f"\n- {key}: missing, wanted" in message
    assert message.count("\n- ") == 1


@pytest.mark.parametrize(
    "key",
    [
        *("new_setting", "text_config.num_kv_shared_layers", "vision_config.head_size"),
        *("text_config.rope_parameters.linear_attention", "vision_config.rope_parameters.factor"),
    ],
)
def test_unknown_key_is_named(tmp_path: Path, key: str) -> None:
    assert f"\n- {key}: unknown key" in refusal(put(tmp_path, changed(PUBLISHED, setting(key, 1))))


def test_misspelt_key_is_explained(tmp_path: Path) -> None:
    config = changed(changed(PUBLISHED, without("text_config.num_experts")), setting("text_config.num_expert", 128))
    assert "text_config.num_expert: unknown key, did you mean num_experts?" in refusal(put(tmp_path, config))


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    config = changed(PUBLISHED, without("text_config.hidden_size"))
    config |= {"alpha": 1, "beta": 2, "canvas_length": "256"}
    message = refusal(put(tmp_path, config))
    assert str(tmp_path / "config.json") in message
    for problem in ("text_config.hidden_size: missing", "alpha: unknown", "beta: unknown", "canvas_length: wanted"):
        assert problem in message


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("canvas_length", "256", 'canvas_length: wanted an integer, found "256"'),
        ("canvas_length", 256.0, "canvas_length: wanted an integer, found 256.0"),
        ("canvas_length", True, "canvas_length: wanted an integer, found true"),
        ("canvas_length", None, "canvas_length: wanted an integer, found null"),
        ("canvas_length", 0, "canvas_length must be positive, found 0"),
        ("text_config", [], "text_config: wanted an object, found []"),
        ("text_config.num_experts", None, "text_config.num_experts: wanted an integer, found null"),
        ("text_config.rms_norm_eps", "1e-6", 'text_config.rms_norm_eps: wanted a number, found "1e-6"'),
        ("text_config.layer_types", "full", "text_config.layer_types: wanted a list of"),
        ("text_config.layer_types", [FULL, "mamba"], "text_config.layer_types: wanted a list of"),
        ("vision_config.standardize", 1, "vision_config.standardize: wanted true or false, found 1"),
    ],
)
def test_wrong_type_says_what_was_wanted_and_found(tmp_path: Path, key: str, value: Any, wanted: str) -> None:
    assert wanted in refusal(put(tmp_path, changed(PUBLISHED, setting(key, value))))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gemma4"),
        ("tie_word_embeddings", False),
        ("quantization_config", "fp8"),
        ("quantization", {"bits": 4}),
        ("text_config.model_type", "gemma4_text"),
        ("text_config.tie_word_embeddings", False),
        ("text_config.attention_bias", True),
        ("text_config.attention_dropout", 0.1),
        ("text_config.hidden_activation", "silu"),
        ("text_config.use_bidirectional_attention", "all"),
        ("text_config.rope_parameters.full_attention.rope_type", "yarn"),
        ("text_config.rope_parameters.sliding_attention.rope_type", "linear"),
        ("text_config.rope_parameters.sliding_attention.partial_rotary_factor", 0.5),
        ("vision_config.model_type", "siglip_vision_model"),
        ("vision_config.attention_bias", True),
        ("vision_config.hidden_activation", "gelu"),
        ("vision_config.rope_parameters.rope_type", "proportional"),
    ],
)
def test_unsupported_value_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    message = refusal(put(tmp_path, changed(PUBLISHED, setting(key, value))))
    assert f"\n- {key}: wanted " in message
    assert f", found {json.dumps(value)}" in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 29, "num_hidden_layers: 29, but layer_types has 30 layers"),
        ("layer_types", ([FULL] + [SLIDING] * 5) * 5, "the last of layer_types must be full_attention"),
        ("num_key_value_heads", 3, "num_attention_heads=16 is not a multiple of num_key_value_heads=3"),
        ("global_head_dim", 511, "global_head_dim must be even"),
        ("top_k_experts", 129, "top_k_experts=129 is more than num_experts=128"),
        ("per_layer_config", {"5": {"head_dim": 512}}, "full layers must be alike"),
        ("per_layer_config", {"4": {"head_dim": 512}}, "per_layer_config.4: wanted the indices of the full layers"),
        ("per_layer_config", {"five": {}}, "per_layer_config.five: wanted the indices of the full layers"),
        ("per_layer_config", {"5": {}, "05": {}}, "per_layer_config.05: wanted the indices of the full layers"),
        ("per_layer_config", {"5": {"sliding_window": 9}}, "per_layer_config.5.sliding_window: unknown key"),
        ("per_layer_config", {"5": 512}, "per_layer_config.5: wanted an object, found 512"),
        ("per_layer_config", {}, "num_global_key_value_heads: 2, but per_layer_config gives full layers 8"),
    ],
)
def test_contradiction_in_the_text_config_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    found = refusal(put(tmp_path, changed(PUBLISHED, setting(f"text_config.{key}", value))))
    assert message in found and str(tmp_path / "config.json") in found


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "vision_config.global_head_dim",
            64,
            "vision_config.global_head_dim: wanted the same as head_dim, 72, found 64",
        ),
        ("vision_config.num_key_value_heads", 5, "vision num_attention_heads=16 is not a multiple of"),
        ("vision_config.default_output_length", 70, "vision_soft_tokens_per_image: 280, but"),
        ("image_token_id", 262144, "image_token_id=262144 is outside the vocabulary"),
    ],
)
def test_contradiction_in_the_vision_settings_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    assert message in refusal(put(tmp_path, changed(PUBLISHED, setting(key, value))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "a": 1,\n "b": }', "config.json, line 3, column 7: not JSON"),
        ("", "config.json, line 1"),
        ("[]", "config.json: wanted an object, found []"),
        ('{"a": 1, "a": 2}', "the same object has a twice"),
        ('{"a": NaN}', "NaN is not a JSON value"),
    ],
)
def test_malformed_json_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(put(tmp_path, text))


def test_number_beyond_floats_is_refused(tmp_path: Path) -> None:
    text = json.dumps(PUBLISHED).replace('"final_logit_softcapping": 30.0', '"final_logit_softcapping": 1e999')
    assert "text_config.final_logit_softcapping: wanted a number" in refusal(put(tmp_path, text))


def test_bytes_that_are_not_text_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    assert f"{tmp_path / 'config.json'}: not JSON" in refusal(tmp_path)


@pytest.mark.parametrize("reader", [read_model_config, read_generation_config])
def test_missing_folder_says_so_and_what_belongs_in_it(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    message = refusal(tmp_path / "nowhere", reader)
    assert "does not exist" in message and "model.safetensors" in message and "tokenizer.json" in message


def test_folder_without_config_says_what_belongs_in_it(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "has no config.json" in message and "model.safetensors" in message


def test_file_instead_of_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path, PUBLISHED)
    assert "is not a folder" in refusal(tmp_path / "config.json")


def test_published_generation_config_is_the_default(tmp_path: Path) -> None:
    put(put(tmp_path, PUBLISHED), GENERATION, "generation_config.json")
    assert read_generation_config(tmp_path) == GenerationConfig()


def test_absent_or_unset_generation_config_takes_stop_tokens_from_config_json(tmp_path: Path) -> None:
    expected = GenerationConfig(eos_token_ids=(1, 106))
    assert read_generation_config(put(tmp_path, PUBLISHED)) == expected
    assert read_generation_config(put(tmp_path, UNSET_GENERATION, "generation_config.json")) == expected


def test_stop_tokens_come_last_from_the_text_config(tmp_path: Path) -> None:
    put(tmp_path, changed(PUBLISHED, without("eos_token_id")))
    assert read_generation_config(tmp_path).eos_token_ids == (1,)
    put(tmp_path, {"text_config": {}})
    assert read_generation_config(tmp_path) == GenerationConfig()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("temperature", 0.7, "temperature: unknown key"),
        ("max_new_tokens", 1.5, "max_new_tokens: wanted an integer, found 1.5"),
        ("max_denoising_steps", 0, "max_denoising_steps must be positive"),
        ("t_min", 0.9, "t_min must be in [0, t_max)"),
        ("sampler_config", {"_cls_name": "Other", "entropy_bound": 1}, "sampler_config._cls_name: wanted"),
        ("sampler_config", {"entropy": 1}, "sampler_config.entropy_bound: missing"),
        ("sampler_config", 0.1, "sampler_config: wanted an object, found 0.1"),
        ("eos_token_id", "<eos>", "eos_token_id: wanted a token id or a list of token ids"),
        ("eos_token_id", [], "eos_token_id: wanted a token id or a list of token ids"),
        ("cache_implementation", "quantized", "cache_implementation: wanted"),
    ],
)
def test_unsupported_generation_setting_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    put(put(tmp_path, PUBLISHED), GENERATION | {key: value}, "generation_config.json")
    found = refusal(tmp_path, read_generation_config)
    assert message in found and str(tmp_path / "generation_config.json") in found


@pytest.mark.parametrize("vision", [DIFFUSION_GEMMA_26B_A4B.vision, None])
def test_written_config_is_read_back_the_same(tmp_path: Path, vision: Any) -> None:
    config = dataclasses.replace(DIFFUSION_GEMMA_26B_A4B, vision=vision, soft_tokens_per_image=70, canvas_length=64)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, bidirectional_images=False))
    generation = GenerationConfig(entropy_bound=0.2, max_denoising_steps=16, eos_token_ids=(7,), t_min=0.0)
    write_config(config, generation, tmp_path / "new" / "folder")
    assert read_model_config(tmp_path / "new" / "folder") == config
    assert read_generation_config(tmp_path / "new" / "folder") == generation


def test_writer_uses_the_published_form(tmp_path: Path) -> None:
    write_config(DIFFUSION_GEMMA_26B_A4B, GenerationConfig(), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        assert {key: PUBLISHED[part][key] for key in written[part]} == written[part]
    written_generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert written_generation == {key: GENERATION[key] for key in written_generation}


def processor(folder: Path, config: ModelConfig = DIFFUSION_GEMMA_26B_A4B) -> ProcessorConfig:
    return read_processor_config(folder, config)


def test_published_processor_config_is_the_default(tmp_path: Path) -> None:
    assert processor(put(tmp_path, PROCESSOR, "processor_config.json")) == ProcessorConfig()


def test_without_processor_files_the_model_decides_the_patches(tmp_path: Path) -> None:
    assert processor(tmp_path) == ProcessorConfig()
    assert DIFFUSION_GEMMA_26B_A4B.vision is not None
    vision = dataclasses.replace(DIFFUSION_GEMMA_26B_A4B.vision, patch_size=8, pooling_kernel_size=2)
    config = dataclasses.replace(DIFFUSION_GEMMA_26B_A4B, vision=vision, soft_tokens_per_image=70)
    expected = ProcessorConfig(patch_size=8, pooling_kernel_size=2, max_soft_tokens=70)
    assert processor(tmp_path, config) == expected


def test_older_processor_files_are_read(tmp_path: Path) -> None:
    put(tmp_path, IMAGE | {"max_soft_tokens": 560}, "preprocessor_config.json")
    put(tmp_path, VIDEO | {"num_frames": 8}, "video_preprocessor_config.json")
    assert processor(tmp_path) == ProcessorConfig(max_soft_tokens=560, video_num_frames=8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_processor.resample", 2, "image_processor.resample: wanted 3, found 2"),
        ("image_processor.do_rescale", False, "image_processor.do_rescale: wanted true, found false"),
        ("image_processor.do_pad_square", True, "image_processor.do_pad_square: unknown key"),
        ("image_processor.patch_size", 14, "image_processor.patch_size: wanted 16, as config.json has it, found 14"),
        ("image_processor.max_soft_tokens", 0, "max_soft_tokens must be positive"),
        ("video_processor.image_mean", [0.5, 0.5, 0.5], "video_processor.image_mean: wanted only 0"),
        ("video_processor.image_std", 0.5, "video_processor.image_std: wanted only 1"),
        ("video_processor.pooling_kernel_size", 2, "wanted 3, as the image processor has it, found 2"),
        ("video_processor.do_sample_frames", False, "video_processor.do_sample_frames: wanted true"),
        ("video_processor", [], "video_processor: wanted an object"),
        ("crop", True, "processor_config.json: crop: unknown key"),
    ],
)
def test_processor_setting_that_would_change_pixels_is_refused(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    put(tmp_path, changed(PROCESSOR, setting(key, value)), "processor_config.json")
    assert message in refusal(tmp_path, processor)


def test_mean_is_irrelevant_where_nothing_is_normalised(tmp_path: Path) -> None:
    change = setting("image_processor.image_mean", [0.5, 0.5, 0.5])
    assert processor(put(tmp_path, changed(PROCESSOR, change), "processor_config.json")) == ProcessorConfig()


def transformers_config() -> Any:
    """The configuration whose `save_pretrained` is the committed fixture."""
    transformers = pytest.importorskip("transformers")
    text = {
        **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32},
        **{"num_experts": 4, "top_k_experts": 2, "num_hidden_layers": 12, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "num_global_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32},
        **{"sliding_window": 16, "max_position_embeddings": 1024, "use_bidirectional_attention": "vision"},
    }
    vision = {
        **{"model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "standardize": True},
    }
    tokens = {"image_token_id": 510, "boi_token_id": 509, "eoi_token_id": 508, "eos_token_id": [1, 106]}
    return transformers.DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=8, **tokens)


@pytest.mark.reference
def test_transformers_still_writes_the_fixture(tmp_path: Path) -> None:
    transformers_config().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    expected = fixture()
    for one in (written, expected):
        del one["transformers_version"]
    assert written == expected


@pytest.mark.reference
def test_transformers_loads_what_the_writer_writes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = read_model_config(put(tmp_path, fixture()))
    write_config(config, GenerationConfig(eos_token_ids=(1, 106)), tmp_path / "ours")
    loaded = transformers.DiffusionGemmaConfig.from_pretrained(tmp_path / "ours")
    full = loaded.text_config.per_layer_config[5]
    assert (full.head_dim, full.num_key_value_heads) == (32, 1)
    loaded.save_pretrained(tmp_path / "theirs")
    assert read_model_config(tmp_path / "theirs") == config


@pytest.mark.reference
def test_transformers_loads_the_generation_settings_the_writer_writes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

    generation = GenerationConfig(entropy_bound=0.25, eos_token_ids=(1, 7))
    write_config(DIFFUSION_GEMMA_26B_A4B, generation, tmp_path)
    loaded = DiffusionGemmaGenerationConfig.from_pretrained(tmp_path)
    assert loaded.sampler_config.entropy_bound == 0.25
    loaded.save_pretrained(tmp_path)
    assert read_generation_config(tmp_path) == generation
