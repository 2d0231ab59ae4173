"""FP8 checkpoints of compressed-tensors: read as they are, equal to their full twins, and every misfit named."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import fp8_folder
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading
from tolerances import REORDERED

import dgemma_jax
from dgemma_jax import pretrained
from dgemma_jax.checkpoint.names import entries
from dgemma_jax.checkpoint.quantize import full, is_quantizable, matrix_shape
from dgemma_jax.checkpoint.safetensors import CheckpointError
from dgemma_jax.checkpoint.safetensors_writing import write_tensors
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, ConfigError
from dgemma_jax.model.moe import BACKENDS
from dgemma_jax.model.quantized import Quantized, widened
from dgemma_jax.model.router import Routing
from dgemma_jax.prompt.template import ChatTemplate
from tools import convert, inspect
from tools.module_cost import made, sizes
from tools.paths import DEMO

TINY = reading.FOLDER / "text_only"
LAYER = "model.decoder.layers.0"
EXPERT = f"{LAYER}.experts.1.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fp8") / "fp8"
    fp8_folder.write_fp8(TINY, made)
    return made


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fp8") / "twin"
    fp8_folder.write_twin(TINY, made)
    return made


@pytest.fixture(scope="module")
def twin_model(twin: Path) -> dgemma_jax.Model:
    return dgemma_jax.load(twin, dtype="float32")


def leaves(model: dgemma_jax.Model) -> dict[tuple, Any]:
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(model.params)}


def test_matrices_stay_in_8_bits_and_stand_for_the_numbers_of_the_twin(
    folder: Path, twin_model: dgemma_jax.Model
) -> None:
    model = dgemma_jax.load(folder, dtype="float32")
    for path, wanted in leaves(twin_model).items():
        found = leaves(model)[path]
        assert isinstance(found, Quantized) == is_quantizable(path)
        if isinstance(found, Quantized):
            assert found.is_fp8 and found.values.nbytes == wanted.size
            found = full(found, wanted.shape)
        np.testing.assert_array_equal(found, wanted, err_msg=str(path))


@pytest.mark.parametrize("backend", ["expert_blocks", "capacity_buckets"])
def test_logits_are_those_of_the_twin(backend: str, folder: Path, twin_model: dgemma_jax.Model) -> None:
    golden = reading.case("text_only", "logits", "long")
    found, wanted = (
        model.denoise_logits(model.prefill(golden["tokens"]), golden["canvas"])
        for model in (dgemma_jax.load(folder, dtype="float32", backend=backend), twin_model)
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=REORDERED)


def test_on_a_mesh_the_weights_are_full_and_those_of_the_twin(folder: Path, twin_model: dgemma_jax.Model) -> None:
    model = dgemma_jax.load(folder, dtype="float32", mesh="expert=2,model=2")
    jax.tree.map(np.testing.assert_array_equal, model.params, twin_model.params)


def test_the_backend_is_chosen_for_weights_as_they_are_held(
    folder: Path, twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantised where they stay in 8 bits: not on a mesh, where they are full."""
    held: list[bool] = []

    def choose(*_: Any, quantized: bool, kernels: bool) -> str:
        held.append(quantized)
        return "expert_blocks"

    monkeypatch.setattr(pretrained, "choose_backend", choose)
    for path, mesh in ((folder, None), (folder, "expert=2"), (twin, None)):
        dgemma_jax.load(path, mesh=mesh)
    assert held == [True, False, False]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_eight_bit_floats_can_be_quantised_on(kind: Any, folder: Path, twin_model: dgemma_jax.Model) -> None:
    model = dgemma_jax.load(folder, dtype="float32", quantize=kind)
    for path, wanted in leaves(twin_model).items():
        if is_quantizable(path):
            found = leaves(model)[path]
            assert found.values.dtype == (jnp.int8 if kind == "int8" else jnp.uint8)
            step = np.abs(wanted).max() / (127 if kind == "int8" else 7)
            # Half a step, and the rounding to bfloat16 before: another quarter of a step of eight bits.
            assert np.abs(full(found, wanted.shape) - wanted).max() < 0.76 * step


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_byte_is_widened_to_the_number_it_is(dtype: str) -> None:
    numbers = np.arange(256, dtype=np.uint8)
    numbers = numbers[(numbers & 127) != 127]  # the two that are not numbers
    weight = Quantized(jnp.asarray(numbers), jnp.ones(len(numbers)), 8)
    (found,) = jax.jit(widened, static_argnums=1)(weight, jnp.dtype(dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), numbers.view(fp8_folder.FP8).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["all_experts", "expert_blocks", "capacity_buckets"])
def test_no_experts_are_widened_all_at_once(backend: str, dtype: str) -> None:
    E, F, D = 64, 128, 256
    gate_up = Quantized(jnp.zeros((E, 2 * F, D), jnp.uint8), jnp.zeros((E, 2 * F)), 8)
    down = Quantized(jnp.zeros((E, D, F), jnp.uint8), jnp.zeros((E, D)), 8)
    routing = Routing(jnp.zeros((16, 2), jnp.int32), jnp.zeros((16, 2)), jnp.zeros((16, E)))
    module = jax.jit(BACKENDS[backend]).lower(jnp.zeros((16, D), dtype), routing, gate_up, down).compile()
    wide = [sizes(of) for _, of in made(module.as_text()) if re.match(r"f32|bf16|f16", of)]
    assert max(math.prod(shape) for shape in wide) < E * D * F / 1.9


def test_the_published_files_have_the_bytes_that_this_layout_makes() -> None:
    """27.1977 GB, as the published checkpoint's headers say."""
    total = 0
    for entry in entries(DIFFUSION_GEMMA_26B_A4B):
        outputs = math.prod(matrix_shape(entry.path, entry.shape)[:-1])
        total += entry.size + 2 * outputs if is_quantizable(entry.path) else 2 * entry.size
    assert total == 27_197_665_496


def broken(change: str, tensors: dict[str, np.ndarray]) -> None:
    if change == "no scale":
        del tensors[f"{EXPERT}_scale"]
    elif change == "no expert":
        del tensors[EXPERT]
    elif change == "shape":
        tensors[EXPERT] = tensors[EXPERT][:-1]
    elif change == "scale shape":
        tensors[f"{EXPERT}_scale"] = tensors[f"{EXPERT}_scale"][0]
    elif change == "one full expert":
        tensors[EXPERT] = tensors[EXPERT].astype(np.float32)
    elif change == "router":
        name = f"{LAYER}.router.proj.weight"
        tensors[name] = tensors[name].astype(fp8_folder.FP8)
    elif change == "scale in FP8":
        tensors[f"{EXPERT}_scale"] = tensors[f"{EXPERT}_scale"].astype(fp8_folder.FP8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("no scale", f"- {EXPERT}_scale (8, 1) (model has it, checkpoint does not)"),
        ("no expert", f"- {EXPERT} (8, 32) (model has it, checkpoint does not)"),
        ("shape", f"! {EXPERT}: wanted (8, 32), found (7, 32)"),
        ("scale shape", f"! {EXPERT}_scale: wanted (8, 1), found (1,)"),
        ("one full expert", f"! {EXPERT}: wanted F8_E4M3, found float32"),
        ("router", f"! {LAYER}.router.proj.weight: wanted a wider type, found float8_e4m3fn"),
        ("scale in FP8", f"! {EXPERT}_scale: wanted a wider type, found float8_e4m3fn"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change: str, says: str, tmp_path: Path) -> None:
    tensors = fp8_folder.write_fp8(TINY, tmp_path / "fp8")
    broken(change, tensors)
    write_tensors(tmp_path / "fp8" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        dgemma_jax.load(tmp_path / "fp8")
    assert says in str(caught.value)


WEIGHTS = "quantization_config.config_groups.group_0.weights"


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        (("quant_method",), "modelopt", 'quantization_config.quant_method: wanted "compressed-tensors"'),
        (("format",), "nvfp4-pack-quantized", 'quantization_config.format: wanted "float-quantized"'),
        (("config_groups", "group_0", "weights", "num_bits"), 4, f"{WEIGHTS}.num_bits: wanted 8, found 4"),
        (("config_groups", "group_0", "weights", "type"), "int", f'{WEIGHTS}.type: wanted "float", found "int"'),
        (("config_groups", "group_0", "weights", "strategy"), "block", f'{WEIGHTS}.strategy: wanted "channel"'),
        (("config_groups", "group_0", "weights", "zeros"), 1, f"{WEIGHTS}.zeros: unknown key"),
        (("config_groups",), None, "quantization_config.config_groups: wanted an object"),
        (("kv_cache_scheme",), {"num_bits": 8}, "quantization_config.kv_cache_scheme: wanted null"),
    ],
)
def test_another_scheme_is_refused_by_name(where: tuple, value: Any, says: str, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    place = config["quantization_config"] = copy.deepcopy(fp8_folder.SCHEME)
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        dgemma_jax.load(tmp_path)
    assert says in str(caught.value)


def test_the_ragged_product_refuses_them_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match="ragged_dot needs full weights, and these are FP8"):
        dgemma_jax.load(folder, backend="ragged_dot")


def test_inspect_shows_what_is_stored_and_what_memory_it_takes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tensors = fp8_folder.fp8_tensors(TINY)
    assert found["files"]["tensors"] == len(tensors)
    assert found["files"]["fp8_matrices"] == sum(value.dtype == fp8_folder.FP8 for value in tensors.values())
    model = dgemma_jax.load(folder)
    assert found["memory"]["fp8"] == sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert inspect.main([str(folder)]) == 0
    assert "matrices in FP8" in capsys.readouterr().out


def test_a_conversion_says_that_it_does_not_do_fp8(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main([str(folder), str(tmp_path / "out"), "--to", "safetensors"]) == 2
    assert "holds FP8 weights, which are loaded as they are" in capsys.readouterr().err


def test_the_demo_model_answers_in_fp8_as_its_full_twin_does(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    fp8_folder.write_fp8(DEMO, tmp_path / "fp8")
    fp8_folder.write_twin(DEMO, tmp_path / "twin")
    answers = []
    for folder in (tmp_path / "fp8", tmp_path / "twin"):
        model = dgemma_jax.load(folder, dtype="float32")
        assert model.tokenizer is not None
        prompt = ChatTemplate.from_folder(folder).encode(model.tokenizer, chat)
        answers.append(model.generate([prompt], 32, seed=0).tokens.tolist())
    assert answers[0] == answers[1]
