"""Norms and rotation of heads as one kernel: interpreted here, lowered for NVIDIA GPUs, and where it takes over."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from abstract_gpu import h200
from flax import nnx
from tolerances import ROUNDING

from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, FULL, SLIDING, LayerType
from dgemma_jax.model import gpu, head_norms
from dgemma_jax.model.head_norms import Heads, Scales, fits, norm_heads_by_kernel, norm_heads_plainly
from dgemma_jax.model.rope import Rotation, rotation, text_frequencies
from dgemma_jax.model.self_attention import Attention

EPSILON = 1e-6
SHRUNK = dataclasses.replace(
    DIFFUSION_GEMMA_26B_A4B.text,
    hidden_size=32,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_global_key_value_heads=2,
    head_dim=32,
    global_head_dim=64,
)


def numbers(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def case(kind: LayerType, rows: int, dtype: str = "float32", tokens: int = 6) -> tuple[Heads, Scales, Rotation]:
    """Of a full layer the values are the raw keys."""
    H, K, C = SHRUNK.num_attention_heads, SHRUNK.key_value_heads(kind), SHRUNK.head_size(kind)
    key = numbers(2, rows, tokens, K, C, dtype=dtype)
    value = numbers(3, rows, tokens, K, C, dtype=dtype) if kind == SLIDING else key
    position = 300 + jnp.arange(rows * tokens).reshape(rows, tokens)
    turn = rotation(position, text_frequencies(SHRUNK, kind), jnp.dtype(dtype))
    scales = Scales(numbers(4, C, dtype=dtype), numbers(5, C, dtype=dtype))
    return Heads(numbers(1, rows, tokens, H, C, dtype=dtype), key, value), scales, turn


def far(found: object, wanted: object) -> list[float]:
    """The root mean square of the differences, array by array."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return [float(jnp.sqrt(jnp.mean((x.astype("float32") - y) ** 2))) for x, y in pairs]


@pytest.mark.parametrize("numbers_of_program", [head_norms.NUMBERS, 256])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_the_kernel_is_the_plain_norms_and_rotation(
    kind: LayerType, rows: int, numbers_of_program: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program a token, and several that have some of its heads each."""
    monkeypatch.setattr(head_norms, "NUMBERS", numbers_of_program)
    arguments = case(kind, rows)
    found, wanted = norm_heads_by_kernel(*arguments, EPSILON), norm_heads_plainly(*arguments, EPSILON)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=ROUNDING), found, wanted)


@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_in_bfloat16_it_is_no_further_from_float32_than_the_plain_way(kind: LayerType) -> None:
    arguments = case(kind, 2, "bfloat16", tokens=32)
    exact = norm_heads_plainly(*jax.tree.map(lambda x: x.astype("float32"), arguments), EPSILON)
    found, plain = (far(run(*arguments, EPSILON), exact) for run in (norm_heads_by_kernel, norm_heads_plainly))
    assert all(ours <= theirs * 1.001 for ours, theirs in zip(found, plain, strict=True)), (found, plain)


def test_a_gradient_goes_back_through_it_as_through_the_plain_way() -> None:
    arguments = case(SLIDING, 1)

    def total(run: object) -> object:
        return jax.grad(lambda *arrays: sum(jnp.sum(x**3) for x in jax.tree.leaves(run(*arrays, EPSILON))), (0, 1))

    found, wanted = (total(run)(*arguments) for run in (norm_heads_by_kernel, norm_heads_plainly))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-3), found, wanted)


def test_it_takes_powers_of_two_in_bfloat16_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, *_ = case(SLIDING, 1, "bfloat16")
    assert not fits(raw, None), "no GPU"
    monkeypatch.setattr(gpu, "runs_kernels", lambda: True)
    assert fits(raw, None)
    assert not fits(raw, jax.make_mesh((1,), ("x",)))
    assert not fits(jax.tree.map(lambda x: x.astype("float32"), raw), None)
    assert not fits(Heads(*(x[..., :24] for x in raw)), None), "heads of 24"
    assert not fits(raw._replace(q_BTHC=numbers(1, 1, 6, 12, 32, dtype="bfloat16")), None), "three queries to a key"


@pytest.mark.parametrize(
    ("backend", "capability", "runs"), [("gpu", "9.0", True), ("gpu", "7.5", False), ("gpu", "gfx90a", False)]
)
def test_it_runs_where_the_compiler_of_kernels_does(
    backend: str, capability: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert gpu.runs_kernels() == runs


def test_a_layer_hands_its_heads_to_the_kernel_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "runs_kernels", lambda: True)
    layer = Attention(SHRUNK, FULL, nnx.Rngs(0), jnp.dtype("bfloat16"))
    x, turn = numbers(6, 1, 6, 32, dtype="bfloat16"), case(FULL, 1, "bfloat16")[-1]
    calls: list[int] = []

    def watched(*arguments: object) -> object:
        calls.append(1)
        return norm_heads_by_kernel(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(head_norms, "norm_heads_by_kernel", watched)
    by_kernel = layer(x, turn, None, None)
    assert calls == [1]
    layer.mesh = jax.make_mesh((1,), ("x",))
    plain = layer(x, turn, None, None)
    assert calls == [1]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=0, atol=0.04), by_kernel, plain
    )


def lowered(arguments: tuple[Heads, Scales, Rotation], monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel's program for a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with h200():
        traced = jax.jit(norm_heads_by_kernel, static_argnums=3).trace(*arguments, EPSILON)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def shapes(rows: int, tokens: int, H: int, K: int, C: int) -> tuple[Heads, Scales, Rotation]:
    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    key, angle = array(rows, tokens, K, C), array(rows, tokens, C)
    return Heads(array(rows, tokens, H, C), key, key), Scales(array(C), array(C)), Rotation(angle, angle)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_the_kernel_of_the_published_sizes_lowers_for_cuda_without_a_device(
    kind: LayerType, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, canvas = DIFFUSION_GEMMA_26B_A4B.text, DIFFUSION_GEMMA_26B_A4B.canvas_length
    sizes = text.num_attention_heads, text.key_value_heads(kind), text.head_size(kind)
    assert "head_norms" in lowered(shapes(rows, canvas, *sizes), monkeypatch)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_twelve_key_heads_are_taken_by_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of three heads do not lower."""
    assert "head_norms" in lowered(shapes(1, 32, 12, 12, 64), monkeypatch)
