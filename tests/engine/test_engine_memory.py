"""How many bytes requests cost, and which fit together."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax.numpy as jnp
import pytest
from engine.hand_device import CONFIG, HandDevice

from dgemma_jax import cache as kv
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B
from dgemma_jax.engine.memory import machine_bytes, row_bytes, rows_bucket


@pytest.mark.parametrize(("capacity", "dtype"), [(2, "float32"), (64, "float32"), (64, "bfloat16")])
def test_a_row_costs_what_its_cache_takes(capacity: int, dtype: str) -> None:
    cache = kv.empty(CONFIG.text, 1, capacity, jnp.dtype(dtype))
    assert row_bytes(CONFIG.text, capacity, jnp.dtype(dtype)) == sum(x.nbytes for layer in cache.layers for x in layer)


def test_a_row_of_the_published_model_costs_what_was_computed() -> None:
    """25 rings of 1024 positions, 8192 bytes each, and 5 layers of 4096 bytes a position."""
    bytes_32k = row_bytes(DIFFUSION_GEMMA_26B_A4B.text, 32768, jnp.dtype("bfloat16"))
    assert bytes_32k == 25 * 1024 * 8192 + 5 * 32768 * 4096


def test_batches_have_few_sizes() -> None:
    assert [rows_bucket(n, 6) for n in range(1, 7)] == [1, 2, 4, 4, 6, 6]


def test_requests_fit_while_their_rows_and_two_more_do() -> None:
    budget = HandDevice(slots=4).budget
    row = row_bytes(CONFIG.text, 512, budget.dtype)
    tight = dataclasses.replace(budget, total=4 * row)
    assert tight.fits([500]) and tight.fits([500, 3])
    assert not tight.fits([500, 3, 3]), "a batch of four rows"
    assert not tight.fits([513]), "the next capacity"
    assert not dataclasses.replace(budget, total=10**12).fits([1] * 5), "more than slots"


@pytest.mark.parametrize("limit", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(("said", "found"), [("4096\n", 4096), ("max\n", None), ("9223372036854771712\n", None)])
def test_the_memory_is_the_containers_where_it_may_use_less(
    tmp_path: Path, limit: str, said: str, found: int | None
) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine_bytes(tmp_path) == machine
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text(said)
    assert machine_bytes(tmp_path) == (found or machine)
