"""A device whose answers can be computed by hand, and what they are.

A request's canvas is a hash of its prompt, its seed and every token it committed before; it takes a number of steps
that follows from the same. So a mixed-up row, a canvas committed twice, or one not committed, changes the text.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dgemma_jax.buckets import PREFILL_CHUNK
from dgemma_jax.config import GenerationConfig, ModelConfig, TextConfig
from dgemma_jax.engine.batch import Canvas
from dgemma_jax.engine.events import Event, Prefilled, Request
from dgemma_jax.engine.memory import Budget
from dgemma_jax.engine.plan import Plan, plan
from dgemma_jax.generate import CanvasCommitted, Finished, cut
from dgemma_jax.sampling.logprobs import TokenLogprob

CONFIG = ModelConfig(
    text=TextConfig(
        vocab_size=50,
        hidden_size=4,
        intermediate_size=4,
        moe_intermediate_size=4,
        num_experts=1,
        top_k_experts=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_global_key_value_heads=1,
        head_dim=2,
        global_head_dim=2,
        layer_types=("sliding_attention", "full_attention"),
        sliding_window=4,
        max_position_embeddings=4096,
    ),
    vision=None,
    canvas_length=4,
)
GENERATION = GenerationConfig(max_denoising_steps=9, eos_token_ids=(1,))
BAD = 13
"""A prompt that begins with this token cannot be read."""
UNLUCKY = 17
"""One that begins with this is no longer a number after its second step."""


def canvas_of(context: list[int], seed: int) -> tuple[list[int], int]:
    """The canvas after these tokens, and the steps it takes."""
    number = zlib.crc32(repr((context, seed)).encode())
    return [(number >> 3 * i) % 50 for i in range(CONFIG.canvas_length)], 1 + number % GENERATION.max_denoising_steps


def answer(request: Request) -> list[Event]:
    """What a request's events must be, drafts and prefill aside."""
    made = plan(request, CONFIG, GENERATION, CONFIG.text.max_position_embeddings, PREFILL_CHUNK)
    context, produced, events = list(request.tokens), [], []
    for _ in range(made.canvases):
        canvas, steps = canvas_of(context, request.seed)
        new = cut(np.asarray(canvas), request.max_new_tokens - len(produced), GENERATION.eos_token_ids)
        produced += new
        context += canvas
        events.append(CanvasCommitted(tuple(new), steps))
        if new[-1] in GENERATION.eos_token_ids:
            return [*events, Finished("stop")]
    return [*events, Finished("length")]


@dataclasses.dataclass
class _Row:
    plan: Plan
    context: list[int]
    canvas: list[int] = dataclasses.field(default_factory=list)
    last: int = 0
    step: int = 0
    done: bool = False

    def start(self) -> _Row:
        """The next canvas."""
        self.canvas, self.last = canvas_of(self.context, self.plan.request.seed)
        self.step, self.done = 0, False
        return self


class HandDevice:
    """Implements `Device`. Says in `log` what it did, and complains about what a device must not be asked.

    Set `crash` or `read_error` to let it fail, in a step or with a prompt, and `intact` to say what that left.
    """

    def __init__(self, slots: int = 3, total: int = 10**9, together: int = 1) -> None:
        self.together = together
        self.budget = Budget(total=total, slots=slots, positions=4096, text=CONFIG.text, dtype=jnp.dtype("float32"))
        self.rows: dict[int, _Row] = {}
        self.reading: tuple[int, int] | None = None
        self.log: list[str] = []
        self.crash: BaseException | None = None
        self.read_error: BaseException | None = None
        self.intact = True

    def plan(self, request: Request) -> Plan:
        made = plan(request, CONFIG, GENERATION, self.budget.positions, PREFILL_CHUNK)
        self.budget.check(made.longest)
        return made

    def read(self, id: int, plan: Plan) -> Prefilled | None:
        current, passes = self.reading or (id, 0)
        assert current == id, "one prompt at a time"
        self.log.append(f"read {id}")
        if self.read_error:
            raise self.read_error
        if plan.request.tokens[0] == BAD:
            raise ValueError("this prompt cannot be read")
        self.reading = (id, passes + 1)
        if passes + 1 < len(plan.ends):
            return None
        self.reading = None
        self.rows[id] = _Row(plan, list(plan.request.tokens)).start()
        assert self.budget.fits([row.plan.longest for row in self.rows.values()]), "more than fits"
        return Prefilled(plan.length, 0)

    def read_together(self, plans: dict[int, Plan]) -> dict[int, Prefilled]:
        assert self.reading is None and 1 < len(plans) <= self.together and all(plan.short for plan in plans.values())
        self.log.append(f"read {' '.join(map(str, plans))}")
        if self.read_error:
            raise self.read_error
        read = {}
        for id, made in plans.items():
            if made.request.tokens[0] == BAD:
                raise ValueError("a prompt cannot be read")
            self.rows[id] = _Row(made, list(made.request.tokens)).start()
            read[id] = Prefilled(made.length, 0)
        lengths = [row.plan.longest for row in self.rows.values()]
        assert self.budget.fits(lengths, len(plans)), "more than fits"
        return read

    def denoise(self, most: int) -> list[Canvas]:
        if self.crash:
            raise self.crash
        assert most >= 1 and self.rows and not any(row.done for row in self.rows.values())
        steps = min(most, *(row.last - row.step for row in self.rows.values()))
        self.log.append(f"denoise {steps}")
        return [self._canvas(id, row, steps) for id, row in self.rows.items()]

    def _canvas(self, id: int, row: _Row, steps: int) -> Canvas:
        row.step += steps
        row.done = row.step == row.last
        finite = not (row.plan.request.tokens[0] == UNLUCKY and row.step >= 2)
        return Canvas(id, np.asarray(row.canvas), row.step, row.done, finite)

    def logprobs(self, id: int, canvas_L: np.ndarray, tokens: int, likeliest: int) -> tuple[TokenLogprob, ...]:
        raise AssertionError("nobody asked")

    def choose(self, id: int, position: int, allowed_V: np.ndarray) -> int:
        assert self.rows[id].done and 0 <= position < CONFIG.canvas_length
        self.log.append(f"choose {id}")
        places = np.flatnonzero(allowed_V)
        return int(places[position % len(places)])

    def restart(self, id: int, pinned: Sequence[int]) -> None:
        row = self.rows[id]
        assert row.done or not row.step, "a canvas under way is left alone"
        self.log.append(f"restart {id}")
        row.start()
        row.canvas[: len(pinned)] = pinned

    def commit(self, canvases: dict[int, np.ndarray]) -> None:
        assert canvases.keys() == {id for id, row in self.rows.items() if row.done}, "what is done, and all of it"
        self.log.append(f"commit {' '.join(map(str, canvases))}")
        for id, canvas_L in canvases.items():
            self.rows[id].context += canvas_L.tolist()
            self.rows[id].start()

    def leave(self, id: int) -> None:
        self.rows.pop(id, None)
        if self.reading is not None and self.reading[0] == id:
            self.reading = None
