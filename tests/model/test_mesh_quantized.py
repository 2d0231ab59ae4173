"""Quantised weights on a mesh: the numbers of one device, and no more talk between devices than full weights need."""

from __future__ import annotations

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
from dgemma_jax.checkpoint import quantize
from dgemma_jax.checkpoint.names import abstract_model
from dgemma_jax.checkpoint.quantize import KINDS, Kind
from dgemma_jax.checkpoint.quantized_shards import abstract
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B as PUBLISHED

MIXED = "data=2,expert=2,model=2"


@functools.cache
def model(kind: Kind, mesh: str | None) -> dgemma_jax.Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "LARGEST_GROUP", 8)  # so that a device has several
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
    assert collectives(model(kind, MIXED)) == designed(MIXED, layers=2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_device_has_its_own_part_alone(kind: Kind) -> None:
    for path, leaf in nnx.to_flat_state(model(kind, MIXED).params):
        if path[-1] in ("gate_up_EFD", "q_HCD", "o_DHC"):
            values = leaf[...].values
            parts = 4 if path[-1] == "gate_up_EFD" else 2
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
        ("o_DHC", "int4", 2),
        ("down_DF", "int8", 2),
        ("down_DF", "int4", 1),
        ("gate_FD", "int4", 2),
    ],
)
def test_inputs_are_cut_where_groups_stay_whole(name: str, kind: Kind, parts: int) -> None:
    """The dense MLP of the published model has 2112 inputs: 33 groups of 64, which two devices cannot share."""
    target = abstract(*published()[name], kind, sharding.make_mesh("model=2", PUBLISHED.text))
    for struct in (target.values, target.scale):
        small = struct.sharding.shard_shape(struct.shape)
        cut = parts if struct is target.values or kind == "int4" or name == "gate_FD" else 1
        assert np.prod(struct.shape) == cut * np.prod(small)
