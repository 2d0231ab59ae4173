"""Adapters: nothing at first, the same sum everywhere, and files that fit or are refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading

import dgemma_jax
from dgemma_jax.checkpoint.load import load_parameters
from dgemma_jax.checkpoint.names import published_name
from dgemma_jax.checkpoint.quantized_shards import quantize_parameters
from dgemma_jax.checkpoint.safetensors import CheckpointError, TensorFiles
from dgemma_jax.checkpoint.safetensors_writing import write_tensors
from dgemma_jax.config import ConfigError, ModelConfig
from dgemma_jax.config_json import read_model_config
from dgemma_jax.training import lora
from dgemma_jax.training.lora import Adapter, LoraConfig
from serve.checkpoint_engine import CheckpointEngine
from serve.config import parse_flags

EVERYWHERE = LoraConfig(rank=3, alpha=6.0, targets=tuple(lora.TARGETS), base="tiny")


@pytest.fixture(scope="module")
def config(tiny: Path) -> ModelConfig:
    return read_model_config(tiny)


@pytest.fixture(scope="module")
def params(tiny: Path, config: ModelConfig) -> nnx.State:
    return load_parameters(tiny, config, jnp.dtype("bfloat16"), "all_experts")[1]


@pytest.fixture(scope="module")
def adapter(config: ModelConfig) -> Adapter:
    """One that changes every weight it may."""
    found = lora.fresh(config, EVERYWHERE, seed=0)
    noise = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x + jnp.asarray(noise.normal(size=x.shape) * 0.1, jnp.float32), found.params)
    return Adapter(EVERYWHERE, moved)


def same(left: nnx.State, right: nnx.State) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_fresh_adapter_changes_nothing(config, params) -> None:
    same(lora.merge(params, lora.fresh(config, EVERYWHERE, seed=0)), params)


def test_merging_adds_the_scaled_product_to_the_published_matrix(config, params, adapter, tmp_path) -> None:
    lora.save(tmp_path, adapter)
    files = TensorFiles.open_file(tmp_path / lora.WEIGHTS_FILE)
    merged = dict(nnx.to_flat_state(lora.merge(params, adapter)))
    adapted = {entry.path for entry in lora.adapted(config, EVERYWHERE.targets)}
    for path, before in nnx.to_flat_state(params):
        wanted = np.asarray(before[...], np.float32)
        if path in adapted:
            name = published_name(path)[0].removesuffix(".weight")
            product = files.read(f"{name}.lora_B.weight") @ files.read(f"{name}.lora_A.weight")
            wanted = wanted + 2.0 * product.reshape(wanted.shape)
        found = np.asarray(merged[path][...])
        assert found.dtype == before.dtype
        np.testing.assert_allclose(found.astype(np.float32), wanted, rtol=2**-8, atol=1e-6)


def test_the_default_targets_are_attention_and_dense_feed_forward(config) -> None:
    leaves = {str(entry.path[-1]) for entry in lora.adapted(config, LoraConfig().targets)}
    assert leaves == {"q_HCD", "k_KCD", "v_KCD", "o_DHC", "gate_FD", "up_FD", "down_DF"}
    paths = [entry.path for entry in lora.adapted(config, LoraConfig().targets)]
    assert len(paths) == 7 + 6  # a full layer has no value projection
    assert all(path[:2] == ("text", "layers") for path in paths)


def test_what_is_saved_comes_back_exactly(config, adapter, tmp_path) -> None:
    lora.save(tmp_path, adapter)
    found = lora.read(tmp_path, config)
    assert found.config == EVERYWHERE
    same(found.params, adapter.params)


def test_files_have_the_names_and_shapes_of_peft(config, adapter, tmp_path) -> None:
    lora.save(tmp_path, adapter)
    files = TensorFiles.open_file(tmp_path / lora.WEIGHTS_FILE)
    name = "model.decoder.layers.0.self_attn.o_proj"
    assert files.shape(f"{name}.lora_A.weight") == (3, 16) and files.shape(f"{name}.lora_B.weight") == (32, 3)
    assert files.shape("model.decoder.layers.0.experts.gate_up_proj.lora_A.weight") == (4, 3, 32)


def test_an_adapter_that_does_not_fit_is_refused_with_names_and_shapes(config, adapter, tmp_path) -> None:
    lora.save(tmp_path, adapter)
    files = TensorFiles.open_file(tmp_path / lora.WEIGHTS_FILE)
    tensors = {name: np.array(files.read(name)) for name in files.names}
    gone, wrong = "model.decoder.layers.1.mlp.up_proj.lora_A.weight", "model.decoder.layers.0.router.proj.lora_B.weight"
    del tensors[gone]
    tensors |= {wrong: np.zeros((5, 3), np.float32), "model.other.lora_A.weight": np.zeros((3, 7), np.float32)}
    write_tensors(tmp_path / lora.WEIGHTS_FILE, tensors)
    with pytest.raises(CheckpointError) as refusal:
        lora.read(tmp_path, config)
    said = str(refusal.value)
    assert f"- {gone} (3, 32)" in said
    assert f"! {wrong}: wanted (4, 3), found (5, 3)" in said
    assert "+ model.other.lora_A.weight (3, 7)" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 0}, "must be positive"),
        ({"targets": ["heads"]}, "must be of attention, mlp"),
        ({"targets": "mlp"}, "wanted a list"),
        ({"use_dora": True}, "use_dora: unknown key"),
        ({"alpha": "2"}, "alpha: wanted a number"),
    ],
)
def test_an_adapter_config_that_is_not_understood_is_refused(config, adapter, tmp_path, change, said: str) -> None:
    lora.save(tmp_path, adapter)
    file = tmp_path / lora.CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=said) as refusal:
        lora.read(tmp_path, config)
    assert str(file) in str(refusal.value)


def test_a_folder_without_an_adapter_is_refused(config, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json"):
        lora.read(tmp_path, config)


def test_a_model_is_loaded_with_its_adapter_added(tmp_path) -> None:
    folder = reading.FOLDER / "text_only"
    plain = reading.model("text_only")
    adapter = lora.fresh(plain.config, LoraConfig(rank=2, targets=("mlp",)), seed=0)
    adapter = Adapter(adapter.config, jax.tree.map(lambda x: x + 0.1, adapter.params))
    lora.save(tmp_path, adapter)
    found = dgemma_jax.load(folder, dtype="float32", lora=tmp_path).params
    same(found, lora.merge(plain.params, adapter))
    with pytest.raises(AssertionError):
        same(found, plain.params)
    few = dgemma_jax.load(folder, dtype="float32", lora=tmp_path, quantize="int8").params
    whole = jax.tree.map(jnp.copy, lora.merge(plain.params, adapter))  # they are given up
    same(few, quantize_parameters(whole, "int8"))
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(whole))


def test_the_server_adds_the_adapter_that_its_flag_names(tinier, tmp_path) -> None:
    model = read_model_config(tinier)
    adapter = lora.fresh(model, LoraConfig(rank=2), seed=0)
    lora.save(tmp_path, Adapter(adapter.config, jax.tree.map(lambda x: x + 0.1, adapter.params)))
    flags = parse_flags(["--checkpoint", str(tinier), "--lora", str(tmp_path), "--dtype", "bfloat16"])
    engine = CheckpointEngine.load(flags.checkpoint, flags.dtype, flags.lora)
    same(engine._model.params, dgemma_jax.load(tinier, lora=tmp_path).params)
    damaged = TensorFiles.open_file(tmp_path / lora.WEIGHTS_FILE)
    write_tensors(tmp_path / lora.WEIGHTS_FILE, {name: damaged.read(name)[:1] for name in damaged.names})
    with pytest.raises(CheckpointError, match="does not fit"):
        CheckpointEngine.load(flags.checkpoint, flags.dtype, flags.lora)
