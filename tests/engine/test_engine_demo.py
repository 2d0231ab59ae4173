"""The engine over the shipped demo model, in real sizes: prompts of many passes, caches that grow."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

import dgemma_jax
from dgemma_jax import Engine, Request, stream
from dgemma_jax.engine import Answer

FOLDER = Path(__file__).parent.parent.parent / "checkpoints" / "demo"


def test_short_and_long_prompts_together_are_answered_as_alone() -> None:
    model = dgemma_jax.load(FOLDER, dtype="float32")
    model = dataclasses.replace(model, generation=dataclasses.replace(model.generation, max_denoising_steps=4))
    draw = np.random.default_rng(0)
    long = [int(n) for n in draw.integers(20, model.config.text.vocab_size, 1100)]
    assert model.tokenizer is not None
    ask = model.tokenizer.encode("What is the capital of France?")
    wanted = [
        Request(tokens=tuple(tokens), max_new_tokens=40, seed=seed)
        for seed, tokens in enumerate([ask, long, ask, [*long[:1090], *ask]])
    ]
    engine = Engine(model, slots=2)
    answers = engine.generate_many(wanted, progress=False)
    engine.close()
    assert answers[3].cached_tokens == 1024, "whole passes of the other long prompt"
    for one, answer in zip(wanted, answers, strict=True):
        expected = Answer()
        for event in stream(model, one.tokens, max_new_tokens=40, seed=one.seed, generation=model.generation):
            expected = expected.after(event)
        assert dataclasses.replace(answer, cached_tokens=0) == expected
