"""How often a model's answers are those of a data file: generated as served, compared as a client sees them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from dgemma_jax.pretrained import Model
from dgemma_jax.prompt.parse import Content, ResponseParser, ToolCall, opens_thought
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.dataset import Dataset
from dgemma_jax.training.demo.batching import answer_all


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model made of the row of a line: the answer wanted, the one found, denoising steps of each canvas."""

    line: int
    wanted: str
    found: str
    steps: tuple[int, ...]

    @property
    def right(self) -> bool:
        """Text and tool calls agree exactly; a thought is the model's own business."""
        return self.wanted == self.found


def answers(model: Model, data: Dataset, count: int | None = None) -> list[Answer]:
    """The model's answers to the first `count` rows (None: all).

    Raises:
        ValueError: a checkpoint without a tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("the checkpoint holds no tokenizer; scoring needs one")
    rows = [data.row(number) for number in range(len(data))[:count]]
    found = []
    for sample, row, answered in zip(data.samples, rows, answer_all(model, rows), strict=False):
        wanted, got = (visible(model.tokenizer, row.prompt, ids) for ids in (row.answer, answered.tokens))
        found.append(Answer(sample.line, wanted, got, tuple(answered.steps)))
    return found


def visible(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """The text of an answer to a prompt, and each tool call on a line of its own."""
    parser = ResponseParser(tokenizer, starts_in_thought=opens_thought(tokenizer, prompt))
    pieces = [*parser.push(answer), *parser.finish()]
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content)).strip()
    calls = [
        f"{piece.name}({json.dumps(json.loads(piece.arguments), sort_keys=True, ensure_ascii=False)})"
        for piece in pieces
        if isinstance(piece, ToolCall)
    ]
    return "\n".join([content, *calls] if content else calls)
