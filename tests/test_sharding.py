"""Meshes: what is read, what is refused and how the refusal helps, and where each parameter lies."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec

from dgemma_jax import sharding
from dgemma_jax.checkpoint.names import abstract_model
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B as PUBLISHED

TEXT = PUBLISHED.text


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What `default_sizes` looks at."""

    platform: str = "gpu"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("expert=8", (1, 8, 1)), ("data=2,expert=4", (2, 4, 1)), (" model = 2 , data=4", (4, 1, 2)), ("data=1", None)],
)
def test_a_mesh_is_read_from_text_in_any_order(text: str, sizes: tuple[int, ...] | None) -> None:
    mesh = sharding.make_mesh(text, TEXT)
    assert (None if mesh is None else tuple(mesh.shape.values())) == sizes


def test_a_mesh_takes_the_first_devices_and_says_its_axis_types() -> None:
    mesh = sharding.make_mesh("expert=4", TEXT)
    assert mesh is not None
    assert set(mesh.devices.flat) == set(jax.devices()[:4])
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("text", ["", "expert", "expert=0", "expert=-1", "expert=two", "experts=2", "expert=2;data=2"])
def test_text_that_is_no_mesh_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='axes of data, expert, model with their sizes, as "data=2,expert=4"; found'):
        sharding.make_mesh(text, TEXT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("expert=2,expert=4", "gives expert twice"),
        ("expert=16", "needs 16 devices, found 8; with this model and 8 devices these do: expert=8 or data=2,expert=4"),
        ("expert=3", "expert=3 does not divide the model's 128 experts; .* these do: expert=8"),
        ("model=3,expert=2", "model=3 does not divide the model's 16 attention heads"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_with_what_would_do(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sharding.make_mesh(text, TEXT)


def test_the_advice_itself_works() -> None:
    small = dataclasses.replace(TEXT, num_experts=6, num_attention_heads=4, num_key_value_heads=4, top_k_experts=2)
    with pytest.raises(ValueError) as refused:
        sharding.make_mesh("expert=4", small)
    advice = str(refused.value).rpartition("these do: ")[2].split(" or ")
    assert "data=4,expert=2" in advice
    assert all(sharding.make_mesh(text, small) is not None for text in advice)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, (1, 1, 1)), (2, (1, 2, 1)), (8, (1, 8, 1)), (6, (3, 2, 1)), (256, (2, 128, 1))]
)
def test_by_default_experts_take_every_accelerator(count: int, sizes: tuple[int, ...]) -> None:
    found = sharding.default_sizes(TEXT, [Accelerator()] * count)  # type: ignore[list-item]
    assert tuple(found.values()) == sizes


def test_of_cpu_devices_the_default_takes_one() -> None:
    assert sharding.make_mesh(None, TEXT) is None


def test_a_mesh_of_the_callers_own_is_completed() -> None:
    own = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("model", "data"), axis_types=(AxisType.Auto,) * 2)
    mesh = sharding.make_mesh(own, TEXT)
    assert mesh is not None
    assert mesh.shape == {"data": 2, "expert": 1, "model": 4}
    assert (mesh.devices[:, 0, :] == own.devices.T).all()
    with pytest.raises(ValueError, match="must be of data, expert, model, found x"):
        sharding.make_mesh(Mesh(np.asarray(jax.devices()), ("x",), axis_types=(AxisType.Auto,)), TEXT)


@pytest.fixture(scope="module")
def parameters() -> dict[str, nnx.Variable]:
    """Of the published model's first layers, by their paths; shapes only."""
    text = dataclasses.replace(TEXT, layer_types=TEXT.layer_types[:6])
    config = dataclasses.replace(PUBLISHED, text=text)
    leaves = nnx.to_flat_state(nnx.state(abstract_model(config, jnp.dtype("bfloat16"))))
    return {".".join(map(str, path)): leaf for path, leaf in leaves}


def test_the_table_decides_where_the_published_parameters_lie(parameters) -> None:
    mesh = sharding.make_mesh("expert=2,model=4", TEXT)
    found = {key: sharding.parameter_sharding(leaf, mesh).spec for key, leaf in parameters.items()}
    layer = {key.removeprefix("text.layers.0."): spec for key, spec in found.items()}
    both = PartitionSpec(("expert", "model"), None)
    assert layer["experts.gate_up_EFD"] == layer["experts.down_EDF"] == PartitionSpec(*both, None)
    assert found["text.embedding_VD"] == both
    assert layer["attention.q_HCD"] == layer["attention.k_KCD"] == PartitionSpec("model", None, None)
    assert layer["attention.o_DHC"] == PartitionSpec(None, "model", None)
    assert layer["mlp.down_DF"] == PartitionSpec(None, "model")
    full = found["text.layers.5.attention.k_KCD"]
    assert full == PartitionSpec(None, None, None), "two heads do not divide over four devices"
    assert not any(layer["router.proj_ED"])
    assert not any(axis for key, spec in found.items() if key.startswith("vision") for axis in spec)


def test_eight_devices_hold_an_eighth_of_experts_and_vocabulary(parameters) -> None:
    mesh = sharding.make_mesh("expert=8", TEXT)
    for key, leaf in parameters.items():
        part = sharding.parameter_sharding(leaf, mesh).shard_shape(leaf.shape)
        divided = 8 if "experts." in key or "embedding_VD" in key else 1
        assert np.prod(part) * divided == np.prod(leaf.shape), key
