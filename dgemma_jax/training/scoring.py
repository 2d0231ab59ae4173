"""How often a model's answers are those of a data file: generated as served, compared as a client sees them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

from dgemma_jax.pretrained import Model
from dgemma_jax.prompt.parse import Content, ResponseParser, ToolCall, opens_thought
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.dataset import Dataset
from dgemma_jax.training.demo.batching import answer_all

_PICTURED = 64


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
    found: dict[int, Answer] = {}
    for numbers in _parts(data, count):
        rows = [data.row(number) for number in numbers]
        # A canvas more than is wanted, so that an answer that goes on shows.
        longest = max(len(row.answer) for row in rows) + model.config.canvas_length
        for number, row, answered in zip(numbers, rows, answer_all(model, rows, longest), strict=True):
            wanted, got = (visible(model.tokenizer, row.prompt, ids) for ids in (row.answer, answered.tokens))
            found[number] = Answer(data.samples[number].line, wanted, got, tuple(answered.steps))
    return [found[number] for number in sorted(found)]


def _parts(data: Dataset, count: int | None) -> Iterator[Sequence[int]]:
    """The numbers of the rows, those with pictures few at a time: their pixels would fill the memory."""
    numbers = range(len(data))[:count]
    if plain := [number for number in numbers if not data.shapes[number].images]:
        yield plain
    pictured = [number for number in numbers if data.shapes[number].images]
    yield from (pictured[start : start + _PICTURED] for start in range(0, len(pictured), _PICTURED))


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
