"""The kernel of a canvas's attention: interpreted here, lowered for NVIDIA GPUs, and where it takes over."""

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
from dgemma_jax.model import canvas_attention, self_attention
from dgemma_jax.model.attention import KeyValue, Segment, attend
from dgemma_jax.model.canvas_attention import attend_canvas, fits
from dgemma_jax.model.rope import rotation, text_frequencies
from dgemma_jax.model.self_attention import Attention

T, H, K, C, S = 64, 4, 2, 32, 128
WINDOW_EDGE = 3
"""A slot in the middle of what is filled that is out of sight, as the oldest of a full ring is."""


def numbers(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def canvas_over(
    length_B: list[int], dtype: str = "float32", used: int | None = None
) -> tuple[jax.Array, list[Segment]]:
    """Queries of a canvas, and caches of rows of these lengths with the canvas's own keys."""
    B = len(length_B)
    cache = KeyValue(numbers(1, B, K, S, C, dtype=dtype), numbers(2, B, K, S, C, dtype=dtype))
    own = KeyValue(numbers(3, B, K, T, C, dtype=dtype), numbers(4, B, K, T, C, dtype=dtype))
    slot_S = jnp.arange(S)
    seen_BS = (slot_S[None] < jnp.array(length_B)[:, None]) & (slot_S != WINDOW_EDGE)[None]
    past = Segment(cache, seen_BS[:, None], jnp.int32(max(length_B) if used is None else used))
    return numbers(5, B, T, H, C, dtype=dtype), [past, Segment(own, None)]


@pytest.mark.parametrize("processors", [0, 132], ids=["few keys", "many keys"])
def test_the_kernel_is_the_plain_attention(processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with an empty cache, a part of a block and a full cache."""
    monkeypatch.setattr(canvas_attention, "PROCESSORS", processors)
    q, segments = canvas_over([0, 70, S])
    np.testing.assert_allclose(attend_canvas(q, segments), attend(q, segments), rtol=0, atol=ROUNDING)


def test_columns_of_a_large_head_are_made_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """By programs that score the same keys."""
    monkeypatch.setattr(canvas_attention, "COLUMNS", C // 2)
    q, segments = canvas_over([0, 70, S])
    np.testing.assert_allclose(attend_canvas(q, segments), attend(q, segments), rtol=0, atol=ROUNDING)


def test_a_row_does_not_notice_a_fuller_neighbour() -> None:
    """To the bit, though the fullest row says how many blocks all of them go through."""
    for length in (0, 40, 70):
        alone, beside = (attend_canvas(*canvas_over([length], used=used)) for used in (length, S))
        np.testing.assert_array_equal(alone, beside)


def test_keys_that_are_not_used_are_not_read() -> None:
    q, (past, own) = canvas_over([40])
    held = (jnp.arange(S) < 64)[None, None, :, None]
    broken = Segment(KeyValue(*(jnp.where(held, x, jnp.nan) for x in past.key_value)), past.mask_BTS, past.used)
    np.testing.assert_array_equal(attend_canvas(q, [broken, own]), attend_canvas(q, [past, own]))


@pytest.fixture
def large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas_attention, "_on_large_gpu", lambda: True)


def test_it_takes_canvases_in_bfloat16_of_sizes_that_divide(large_gpu: None) -> None:
    q, (past, own) = canvas_over([40], "bfloat16")
    assert fits(q, [past, own])
    causal = Segment(own.key_value, jnp.ones((1, T, T), bool))
    by_query = Segment(past.key_value, jnp.ones((1, T, S), bool))
    odd = Segment(KeyValue(*(x[:, :, :-1] for x in past.key_value)), past.mask_BTS[..., :-1])
    for segments in ([own], [past, causal], [by_query, own], [odd, own]):
        assert not fits(q, segments)
    assert not fits(q.astype("float32"), [past, own])
    for size, taken in ((512, True), (1024, False), (96, False)):
        assert fits(jnp.zeros((1, T, H, size), "bfloat16"), [past, own]) == taken


@pytest.mark.parametrize(
    ("backend", "capability", "runs"), [("gpu", "9.0", True), ("gpu", "8.6", False), ("cpu", "", False)]
)
def test_it_runs_on_gpus_with_room_for_its_tiles(
    backend: str, capability: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert canvas_attention._on_large_gpu() == runs


@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_a_layer_hands_its_canvas_to_the_kernel_on_one_device(
    kind: LayerType, large_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        DIFFUSION_GEMMA_26B_A4B.text,
        hidden_size=32,
        num_attention_heads=H,
        num_key_value_heads=K,
        num_global_key_value_heads=K,
        head_dim=C,
        global_head_dim=C,
    )
    layer = Attention(config, kind, nnx.Rngs(0), jnp.dtype("bfloat16"))
    _, (past, _) = canvas_over([40], "bfloat16")
    x = numbers(6, 1, T, 32, dtype="bfloat16")
    turn = rotation(jnp.arange(40, 40 + T)[None], text_frequencies(config, kind), x.dtype)
    calls: list[int] = []

    def watched(*arguments: object) -> jax.Array:
        calls.append(1)
        return attend_canvas(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(self_attention, "attend_canvas", watched)
    by_kernel, _ = layer(x, turn, past, None)
    assert calls == [1]
    layer.mesh = jax.make_mesh((1,), ("x",))
    plain, _ = layer(x, turn, past, None)
    assert calls == [1], "a mesh cuts heads and rows over devices, which a kernel cannot be told"
    np.testing.assert_allclose(np.float32(by_kernel), np.float32(plain), rtol=0, atol=0.03)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("kind", [SLIDING, FULL])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_kernel_of_the_published_sizes_lowers_for_cuda_without_a_device(
    rows: int, kind: LayerType, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, canvas = DIFFUSION_GEMMA_26B_A4B.text, DIFFUSION_GEMMA_26B_A4B.canvas_length
    heads, size = text.key_value_heads(kind), text.head_size(kind)

    def keys(count: int) -> KeyValue:
        shape = jax.ShapeDtypeStruct((rows, heads, count, size), jnp.bfloat16)
        return KeyValue(shape, shape)

    slots = text.sliding_window if kind == SLIDING else 8192
    mask = jax.ShapeDtypeStruct((rows, 1, slots), jnp.bool_)
    past = Segment(keys(slots), mask, jax.ShapeDtypeStruct((), jnp.int32))
    q = jax.ShapeDtypeStruct((rows, canvas, text.num_attention_heads, size), jnp.bfloat16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with h200():
        lowered = (
            jax.jit(attend_canvas).trace(q, [past, Segment(keys(canvas), None)]).lower(lowering_platforms=("cuda",))
        )
    assert "canvas_attention" in lowered.as_text()
