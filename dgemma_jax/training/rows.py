"""Training rows, and how they become batches of a few fixed shapes.

The stream of batches is a function of its position, which is a plain value: a run that stops and goes on from the
position it saved sees the same batches as one that did not stop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dgemma_jax.config import ModelConfig
from dgemma_jax.training.objective import Batch, Pictures


@dataclasses.dataclass(frozen=True)
class Row:
    """A prompt and its answer as token ids; the answer ends with what closes the turn.

    mistake: a wrong answer, or the right one, that canvases may start from; None where the objective asks for none.
    patches_INP: float32 in [0, 1] [images, patches, values]; position_IN2: int [images, patches, 2]; None without.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    patches_INP: np.ndarray | None = None
    position_IN2: np.ndarray | None = None
    mistake: tuple[int, ...] | None = None

    @property
    def images(self) -> int:
        return 0 if self.patches_INP is None else len(self.patches_INP)

    def blocks(self, canvas_length: int) -> int:
        """Canvases that the answer takes."""
        return -(-len(self.answer) // canvas_length)

    def length(self, canvas_length: int) -> int:
        """Tokens of prompt, answer and fill."""
        return len(self.prompt) + self.blocks(canvas_length) * canvas_length


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A batch shape: rows of at most `length` tokens and `blocks` canvases, `rows` at a time, each with `images`."""

    length: int
    blocks: int
    rows: int
    images: int = 0

    def holds(self, row: Row, canvas_length: int) -> bool:
        return (
            row.length(canvas_length) <= self.length
            and row.blocks(canvas_length) <= self.blocks
            and row.images == self.images
        )

    def tokens_per_row(self, canvas_length: int) -> int:
        """What a row costs here: its clean tokens and two copies of its canvases, which is what runs usually take."""
        return self.length + 2 * self.blocks * canvas_length


@dataclasses.dataclass
class Position:
    """Where a stream stands: the next example, and the examples that wait for a full batch, in their order."""

    next: int
    waiting: list[int]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class BatchStream:
    """Batches of rows numbered 0, 1, 2, ...: each bucket is yielded whenever it is full.

    `row_at` must return the same row for the same number. Iterating raises ValueError for a row that fits no
    bucket: nothing is ever cut.
    """

    def __init__(
        self,
        row_at: Callable[[int], Row],
        buckets: Sequence[Bucket],
        config: ModelConfig,
        fill: int,
        position: Position | None = None,
    ) -> None:
        self._row_at, self._config, self._fill = row_at, config, fill
        self._buckets = sorted(buckets, key=lambda bucket: bucket.tokens_per_row(config.canvas_length))
        position = position or Position(0, [])
        self._next = position.next
        self._waiting: list[dict[int, Row]] = [{} for _ in buckets]
        for index in position.waiting:
            self._put(index)

    @property
    def position(self) -> Position:
        """Where the stream stands now, behind the last batch it yielded."""
        return Position(self._next, sorted(index for rows in self._waiting for index in rows))

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> tuple[Bucket, Batch]:
        while True:
            index, self._next = self._next, self._next + 1
            number = self._put(index)
            bucket, waiting = self._buckets[number], self._waiting[number]
            if len(waiting) >= bucket.rows:  # more wait where a run goes on with other buckets
                rows = [waiting.pop(first) for first in list(waiting)[: bucket.rows]]
                return bucket, stack(rows, bucket.length, self._config, self._fill)

    def _put(self, index: int) -> int:
        """Lets a row wait in its bucket; the bucket's number."""
        row = self._row_at(index)
        number = self._bucket(index, row)
        self._waiting[number][index] = row
        return number

    def _bucket(self, index: int, row: Row) -> int:
        length = self._config.canvas_length
        for number, bucket in enumerate(self._buckets):
            if bucket.holds(row, length):
                return number
        raise ValueError(
            f"row {index} has {row.length(length)} tokens, {row.blocks(length)} canvases and {row.images} images; "
            f"it fits none of {self._buckets}"
        )


def stack(rows: Sequence[Row], length: int, config: ModelConfig, fill: int) -> Batch:
    """Rows as one batch: each answer filled with `fill` to whole canvases, then padded to `length`.

    Mistakes are cut or filled to the canvases of the right answer.
    """
    canvas = config.canvas_length

    def tokens(answer: Callable[[Row], tuple[int, ...]]) -> np.ndarray:
        tokens_BS = np.zeros((len(rows), length), np.int32)
        for index, row in enumerate(rows):
            end = row.length(canvas)
            both = (row.prompt + answer(row))[:end]
            tokens_BS[index, :end] = fill
            tokens_BS[index, : len(both)] = both
        return tokens_BS

    def column(value: Callable[[Row], int]) -> jax.Array:
        return jax.device_put(np.asarray([value(row) for row in rows], np.int32))

    tokens_BS = tokens(lambda row: row.answer)
    mistaken = any(row.mistake is not None for row in rows)
    return Batch(
        jax.device_put(tokens_BS),
        column(lambda row: len(row.prompt)),
        column(lambda row: len(row.answer)),
        column(lambda row: row.blocks(canvas)),
        _pictures(rows, tokens_BS, config) if rows[0].images else None,
        jax.device_put(tokens(lambda row: row.mistake or row.answer)) if mistaken else None,
    )


def _pictures(rows: Sequence[Row], tokens_BS: np.ndarray, config: ModelConfig) -> Pictures:
    """Every image padded to the patches of the largest that the model takes, or that the rows hold."""
    assert config.vision is not None
    cell = config.vision.patches_per_soft_token
    found = [(row.patches_INP, row.position_IN2) for row in rows]
    most = max(config.soft_tokens_per_image * cell, *(p.shape[1] for p, _ in found if p is not None))
    patches_BINP = np.zeros((len(rows), rows[0].images, most, config.vision.patch_values), np.float32)
    position_BIN2 = np.full((len(rows), rows[0].images, most, 2), -1, np.int32)
    soft_BS = np.full(tokens_BS.shape, -1, np.int32)
    for index, (patches_INP, position_IN2) in enumerate(found):
        assert patches_INP is not None and position_IN2 is not None
        patches_BINP[index, :, : patches_INP.shape[1]] = patches_INP
        position_BIN2[index, :, : patches_INP.shape[1]] = position_IN2
        counts = np.sum(position_IN2[..., 0] >= 0, axis=1) // cell
        slots = np.concatenate([image * (most // cell) + np.arange(count) for image, count in enumerate(counts)])
        soft_BS[index, tokens_BS[index] == config.image_token_id] = slots
    return Pictures(*map(jax.device_put, (patches_BINP, position_BIN2, soft_BS)))
