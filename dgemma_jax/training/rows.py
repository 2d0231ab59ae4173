"""Conversations to training rows, and rows to batches of one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.objective import Batch


@dataclasses.dataclass(frozen=True)
class Row:
    """A prompt and its answer as token ids; the answer ends with what closes the turn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def blocks(self, canvas_length: int) -> int:
        """Canvases that the answer takes."""
        return -(-len(self.answer) // canvas_length)

    def length(self, canvas_length: int) -> int:
        """Tokens of prompt, answer and fill."""
        return len(self.prompt) + self.blocks(canvas_length) * canvas_length


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A batch shape: rows of at most `length` tokens and `blocks` canvases, `rows` of them at a time."""

    length: int
    blocks: int
    rows: int


def render(messages: Sequence[dict], thinking: bool, tokenizer: Tokenizer, template: ChatTemplate) -> Row:
    """The last message is the answer; the prompt is what the server would send for the messages before it."""
    prompt = template.render(list(messages[:-1]), add_generation_prompt=True, enable_thinking=thinking)
    answer = f"{messages[-1]['content']}<turn|>"
    return Row(tuple(tokenizer.encode(prompt)), tuple(tokenizer.encode(answer)))


def batches(
    rows: Iterator[Row], buckets: Sequence[Bucket], canvas_length: int, fill: int
) -> Iterator[tuple[Bucket, Batch]]:
    """Collects rows by the smallest bucket that holds them and yields each bucket whenever it is full.

    Raises:
        ValueError: a row that fits no bucket; nothing is ever cut.
    """
    waiting: dict[Bucket, list[Row]] = {bucket: [] for bucket in buckets}
    for row in rows:
        bucket = _bucket(row, buckets, canvas_length)
        waiting[bucket].append(row)
        if len(waiting[bucket]) == bucket.rows:
            yield bucket, stack(waiting[bucket], bucket.length, canvas_length, fill)
            waiting[bucket] = []


def _bucket(row: Row, buckets: Sequence[Bucket], canvas_length: int) -> Bucket:
    for bucket in sorted(buckets, key=lambda b: (b.length, b.blocks)):
        if row.length(canvas_length) <= bucket.length and row.blocks(canvas_length) <= bucket.blocks:
            return bucket
    raise ValueError(
        f"a row of {row.length(canvas_length)} tokens and {row.blocks(canvas_length)} canvases fits none of {buckets}"
    )


def stack(rows: Sequence[Row], length: int, canvas_length: int, fill: int) -> Batch:
    """Rows as one batch: each answer filled with `fill` to whole canvases, then padded to `length`."""
    tokens_BS = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        tokens_BS[index, : row.length(canvas_length)] = fill
        both = row.prompt + row.answer
        tokens_BS[index, : len(both)] = both

    def column(value: Callable[[Row], int]) -> jnp.ndarray:
        return jnp.asarray([value(row) for row in rows], jnp.int32)

    return Batch(
        jnp.asarray(tokens_BS),
        column(lambda row: len(row.prompt)),
        column(lambda row: len(row.answer)),
        column(lambda row: row.blocks(canvas_length)),
    )
