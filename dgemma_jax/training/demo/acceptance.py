"""How good the demo model is: exact match on held-out conversations, sampled as the server samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from dgemma_jax.generate import CanvasCommitted, stream
from dgemma_jax.pretrained import Model
from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.training.demo.example import Example
from dgemma_jax.training.rows import render

PROMISED = {
    "greetings": 0.85,
    "identity": 0.75,
    "capitals": 0.75,
    "facts": 0.9,
    "json_text": 0.65,
    "memory": 0.7,
    "outside": 0.85,
}
"""The least share of held-out questions that a demo model must answer, for the families that its card promises."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Results over some examples. `steps` counts denoising steps per canvas; an early stop is one before the limit."""

    right: int
    count: int
    steps: float
    early: float
    wrong: tuple[tuple[str, str, str], ...]

    @property
    def share(self) -> float:
        return self.right / self.count


def answer(model: Model, template: ChatTemplate, example: Example, seed: int) -> tuple[str, list[int]]:
    """The model's answer to an example's prompt, and the denoising steps of each canvas."""
    if model.tokenizer is None:
        raise ValueError("the checkpoint holds no tokenizer; scoring needs one")
    prompt = render(example.messages, example.thinking, model.tokenizer, template).prompt
    tokens: list[int] = []
    steps: list[int] = []
    for event in stream(model, prompt, max_new_tokens=256, seed=seed, generation=model.generation):
        if isinstance(event, CanvasCommitted):
            tokens += event.tokens
            steps.append(event.steps)
    return model.tokenizer.decode(tokens, skip_special_tokens=True), steps


def score(model: Model, template: ChatTemplate, examples: Iterable[Example]) -> Score:
    """Exact match of each example's answer. `wrong` holds question, expected and found."""
    steps: list[int] = []
    wrong, right = [], 0
    for seed, example in enumerate(examples):
        found, taken = answer(model, template, example, seed)
        steps += taken
        if found == example.expected:
            right += 1
        else:
            wrong.append((example.messages[-2]["content"], example.expected, found))
    early = sum(s < model.generation.max_denoising_steps for s in steps) / len(steps)
    return Score(right, right + len(wrong), sum(steps) / len(steps), early, tuple(wrong))
