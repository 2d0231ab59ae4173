"""The engine on a mesh: the answers of one device, rows over the devices, and nothing compiled twice for one shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest
from engine.group_member import SETTINGS
from golden import reading

import dgemma_jax
from dgemma_jax import Engine, Request
from dgemma_jax.engine import Answer, programs
from dgemma_jax.sharding import cache_sharding, pin_rows

REQUESTS = [
    Request(tokens=tuple(range(6, 6 + length)), max_new_tokens=most, seed=seed)
    for length, most, seed in ((40, 24, 3), (14, 24, 3), (9, 9, 4))  # one that is read alone, and two short ones
]


def test_whatever_comes_and_goes_lies_where_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = "data=2,expert=2"
    loaded = dgemma_jax.load(reading.FOLDER / "text_only", dtype="float32", mesh=mesh, quantize="int8")
    model = dataclasses.replace(loaded, generation=SETTINGS)
    one = dgemma_jax.load(reading.FOLDER / "text_only", dtype="float32", quantize="int8")
    expected = [
        dataclasses.replace(one, generation=SETTINGS).generate([r.tokens], r.max_new_tokens, r.seed) for r in REQUESTS
    ]
    denoise, rows = programs.denoise, set()

    def watched(structure: Any, numbers: Any, cache: Any, state: Any, *rest: Any) -> programs.Denoised:
        rows.add(len(cache.length_B))
        wanted = jax.tree.leaves(cache_sharding(cache, model.mesh))
        for x, place in zip(jax.tree.leaves(cache), wanted, strict=True):
            assert x.sharding.is_equivalent_to(place, x.ndim), (x.shape, x.sharding)
        pinned = jax.jit(lambda state: pin_rows(state, model.mesh))(state)
        for x, same in zip(jax.tree.leaves(state), jax.tree.leaves(pinned), strict=True):
            assert x.sharding.is_equivalent_to(same.sharding, x.ndim), (x.shape, x.sharding)
        return denoise(structure, numbers, cache, state, *rest)

    monkeypatch.setattr(programs, "denoise", watched)
    before = denoise._cache_size()
    engine = Engine(model, slots=4)
    answers = {engine.submit(request): Answer() for request in REQUESTS}
    for id, event in engine.run():
        answers[id] = answers[id].after(event)
    engine.close()
    assert [list(answer.tokens) for answer in answers.values()] == [wanted.tokens[0].tolist() for wanted in expected]
    assert rows == {1, 4}
    assert denoise._cache_size() - before == len(rows), "once for each shape"
