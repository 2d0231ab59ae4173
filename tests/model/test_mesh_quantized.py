"""Quantised weights on a mesh: the numbers of one device, and as little talk between devices as full weights need."""

from __future__ import annotations

import collections
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading
from model.test_mesh import collectives, designed
from tolerances import REORDERED

import dgemma_jax
from dgemma_jax import sharding
from dgemma_jax.checkpoint.names import abstract_model
from dgemma_jax.checkpoint.quantize import KINDS, Kind
from dgemma_jax.checkpoint.quantized_shards import abstract
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B as PUBLISHED

MIXED = "data=2,expert=2,model=2"


@functools.cache
def model(kind: Kind, mesh: str | None) -> dgemma_jax.Model:
    return dgemma_jax.load(reading.FOLDER / "text_only", dtype="float32", quantize=kind, mesh=mesh)


@functools.cache
def logits(kind: Kind, mesh: str | None) -> np.ndarray:
    golden, made = reading.case("text_only", "logits", "long"), model(kind, mesh)
    rows = np.tile(golden["tokens"][:1], (2, 1)), np.tile(golden["canvas"][:1], (2, 1))
    return np.asarray(made.denoise_logits(made.prefill(rows[0]), rows[1]))


@pytest.mark.parametrize(
    ("kind", "mesh"), [("int8", "expert=4"), ("int4", "model=4"), ("int8", MIXED), ("int4", MIXED)]
)
def test_logits_are_those_of_one_device(kind: Kind, mesh: str) -> None:
    np.testing.assert_allclose(logits(kind, mesh), logits(kind, None), atol=REORDERED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_exchanges_what_it_does_with_full_weights(kind: Kind) -> None:
    """In four bits the inputs of two matrices a layer are gathered, in place of a sum of their outputs."""
    gathered = 0 if kind == "int8" else 2 * 2
    change = collections.Counter({"all-reduce": -gathered, "all-gather": gathered})
    wanted = designed(MIXED, layers=2)
    wanted.update(change)
    assert collectives(model(kind, MIXED)) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_every_device_has_its_own_part_alone(kind: Kind) -> None:
    for path, leaf in nnx.to_flat_state(model(kind, MIXED).params):
        if path[-1] in ("gate_up_EFD", "q_HCD", "o_DHC"):
            values = leaf[...].values
            parts = {"gate_up_EFD": 4, "q_HCD": 2, "o_DHC": 2 if kind == "int8" else 1}[str(path[-1])]
            assert {shard.data.size for shard in values.addressable_shards} == {values.size // parts}, path


@functools.cache
def published() -> dict[str, tuple[tuple, nnx.Variable]]:
    """The matrices of the published model's last layer, by name; shapes only."""
    text = dataclasses.replace(PUBLISHED.text, layer_types=PUBLISHED.text.layer_types[-1:])
    module = abstract_model(dataclasses.replace(PUBLISHED, text=text, vision=None), jnp.dtype("bfloat16"))
    return {str(path[-1]): (path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(module)) if "layers" in path}


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("o_DHC", "int8", 2),
        ("o_DHC", "int4", 1),
        ("down_DF", "int8", 2),
        ("down_DF", "int4", 1),
        ("gate_FD", "int4", 2),
    ],
)
def test_of_the_published_model_outputs_are_cut_and_inputs_in_eight_bits(name: str, kind: Kind, parts: int) -> None:
    target = abstract(*published()[name], kind, sharding.make_mesh("model=2", PUBLISHED.text))
    for struct in (target.values, target.scale):
        small = struct.sharding.shard_shape(struct.shape)
        cut = parts if struct is target.values or kind == "int4" or name == "gate_FD" else 1
        assert np.prod(struct.shape) == cut * np.prod(small)
