"""Compiling ahead: after it, no request waits for a compilation."""

from __future__ import annotations

import dataclasses
import logging
import time

import jax
import pytest
from golden import reading

from dgemma_jax import Engine, GenerationConfig, Request
from dgemma_jax.engine.warm import Part, compile_behind


def test_no_request_waits_for_a_compilation_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dgemma_jax.buckets.SMALLEST_CAPACITY", 64)
    monkeypatch.setattr("dgemma_jax.buckets.PREFILL_BUCKETS", (16,))
    monkeypatch.setattr("dgemma_jax.engine.warm.PREFILL_BUCKETS", (16,))
    for module in ("pretrained", "engine.plan", "engine.reading"):
        monkeypatch.setattr(f"dgemma_jax.{module}.PREFILL_CHUNK", 16)
    settings = GenerationConfig(max_denoising_steps=3, entropy_bound=2.0, eos_token_ids=())
    model = dataclasses.replace(reading.model("text_only", backend="all_experts"), generation=settings)
    engine = Engine(model, slots=2, max_context=100)
    lines: list[str] = []
    engine.warm_up(lines.append)
    assert len(lines) >= 1 + 2 + 1, "what short prompts need is there at once"
    until = time.monotonic() + 120
    while len(lines) < 2 * (1 + 2 + 1) and time.monotonic() < until:
        time.sleep(0.01)
    engine._end_warm_up()
    assert len(lines) == 2 * (1 + 2 + 1), "a canvas and a chunk have one length here"
    assert all(line.endswith(" s") for line in lines)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            for length in (3, 30, 70, 5):
                engine.submit(Request(tokens=tuple(range(6, 6 + length)), max_new_tokens=24))
            assert len(list(engine.run())) > 8
    compiled = [record.getMessage()[:230] for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert not compiled, "\n".join(compiled)


def test_what_goes_on_after_the_warm_up_ends_with_the_engine() -> None:
    engine = Engine(reading.model("text_only", backend="all_experts"), slots=1)
    lines: list[str] = []
    work = [Part(str(number), lambda: time.sleep(0.01), capacity=1) for number in range(1000)]
    engine._end_warm_up = compile_behind(work, lines.append)
    engine.close()
    done = len(lines)
    time.sleep(0.05)
    assert len(lines) == done < 1000
