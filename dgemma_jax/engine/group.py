"""One engine over a group of processes: process 0 decides, and every process does the same on its devices.

    process 0                                     the others
      Engine -> Core -> Leader(Device)              follow(model)
                          | says each call  ------->  | hears it
                          v                           v
                      ModelDevice  <-- collectives --> ModelDevice

What the calls are follows from what process 0 was asked for, and they alone change a device: so all devices go through
the same states, prefix store included. A device's results are wanted on process 0 only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from dgemma_jax.config import GenerationConfig
from dgemma_jax.engine.batch import Canvas
from dgemma_jax.engine.device import ModelDevice
from dgemma_jax.engine.events import Prefilled, Request
from dgemma_jax.engine.memory import Budget
from dgemma_jax.engine.plan import Plan
from dgemma_jax.engine.prefix import PrefixStore, Reuse
from dgemma_jax.media.patches import Patches
from dgemma_jax.pretrained import Model
from dgemma_jax.processes import Words
from dgemma_jax.sampling.logprobs import TokenLogprob
from dgemma_jax.sampling.options import SamplingOptions


class _Array(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, x: np.ndarray) -> _Array:
        return cls(x.dtype.str, x.shape, np.ascontiguousarray(x).tobytes())

    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, np.dtype(self.dtype)).reshape(self.shape)


class _Image(msgspec.Struct):
    values: _Array
    places: _Array
    soft_tokens: int

    @classmethod
    def of(cls, image: Patches) -> _Image:
        return cls(_Array.of(image.patches_NP), _Array.of(image.position_N2), image.soft_tokens)

    def patches(self) -> Patches:
        return Patches(self.values.array(), self.places.array(), self.soft_tokens)


class _Begin(msgspec.Struct, tag=True):
    """Everything a device is made of: limits follow from the memory of process 0, and must be the same for all."""

    total: int
    slots: int
    positions: int
    prefix_bytes: int
    reuse: Reuse
    apart: bool


class _Read(msgspec.Struct, tag=True):
    """`prompt` comes with the first pass."""

    id: int
    prompt: _Prompt | None


class _ReadTogether(msgspec.Struct, tag=True):
    prompts: dict[int, _Prompt]


class _Prompt(msgspec.Struct):
    tokens: tuple[int, ...]
    max_new_tokens: int
    seed: int
    generation: GenerationConfig | None
    options: SamplingOptions
    images: list[_Image] | None

    @classmethod
    def of(cls, plan: Plan) -> _Prompt:
        request = plan.request
        return cls(
            tokens=tuple(map(int, request.tokens)),
            max_new_tokens=request.max_new_tokens,
            seed=int(request.seed),
            generation=request.generation,
            options=request.options,
            images=None if plan.images is None else [_Image.of(image) for image in plan.images],
        )

    def request(self) -> Request:
        return Request(
            tokens=self.tokens,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            generation=self.generation,
            options=self.options,
            patches=None if self.images is None else [image.patches() for image in self.images],
        )


class _Denoise(msgspec.Struct, tag=True):
    most: int


class _Logprobs(msgspec.Struct, tag=True):
    id: int
    canvas: _Array
    tokens: int
    likeliest: int


class _Choose(msgspec.Struct, tag=True):
    id: int
    position: int
    allowed: _Array


class _Restart(msgspec.Struct, tag=True):
    id: int
    pinned: tuple[int, ...]


class _Commit(msgspec.Struct, tag=True):
    canvases: dict[int, _Array]


class _Leave(msgspec.Struct, tag=True):
    id: int


class _WarmUp(msgspec.Struct, tag=True):
    everything: bool


class _End(msgspec.Struct, tag=True):
    pass


_Word = _Begin | _Read | _ReadTogether | _Denoise | _Logprobs | _Choose | _Restart | _Commit | _Leave | _WarmUp | _End
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Word).decode


class Leader:
    """Implements `Device` over those of all processes: each call is said before it is made here. On process 0."""

    def __init__(self, device: ModelDevice, words: Words | None = None) -> None:
        self._device = device
        self._words = Words() if words is None else words
        self._reading: set[int] = set()
        self._over = False
        self.budget, self.together = device.budget, device.together
        budget, store = device.budget, device.store
        self._say(_Begin(budget.total, budget.slots, budget.positions, store.most_bytes, store.reuse, device.apart))

    @property
    def intact(self) -> bool:
        """As `Device.intact`: of process 0, whose errors end the group anyway."""
        return self._device.intact

    def plan(self, request: Request) -> Plan:
        """As `Device.plan`: of process 0 alone."""
        return self._device.plan(request)

    def read(self, id: int, plan: Plan) -> Prefilled | None:
        """As `Device.read`."""
        prompt = None if id in self._reading else _Prompt.of(plan)
        self._reading.add(id)
        return self._all(_Read(id, prompt), lambda: self._device.read(id, plan))

    def read_together(self, plans: dict[int, Plan]) -> dict[int, Prefilled]:
        """As `Device.read_together`."""
        word = _ReadTogether({id: _Prompt.of(plan) for id, plan in plans.items()})
        return self._all(word, lambda: self._device.read_together(plans))

    def denoise(self, most: int) -> list[Canvas]:
        """As `Device.denoise`."""
        return self._all(_Denoise(most), lambda: self._device.denoise(most))

    def logprobs(self, id: int, canvas_L: np.ndarray, tokens: int, likeliest: int) -> tuple[TokenLogprob, ...]:
        """As `Device.logprobs`."""
        word = _Logprobs(id, _Array.of(canvas_L), tokens, likeliest)
        return self._all(word, lambda: self._device.logprobs(id, canvas_L, tokens, likeliest))

    def choose(self, id: int, position: int, allowed_V: np.ndarray) -> int:
        """As `Device.choose`."""
        word = _Choose(id, position, _Array.of(allowed_V))
        return self._all(word, lambda: self._device.choose(id, position, allowed_V))

    def restart(self, id: int, pinned: Sequence[int]) -> None:
        """As `Device.restart`."""
        self._all(_Restart(id, tuple(pinned)), lambda: self._device.restart(id, pinned))

    def commit(self, canvases: dict[int, np.ndarray]) -> None:
        """As `Device.commit`."""
        word = _Commit({id: _Array.of(canvas_L) for id, canvas_L in canvases.items()})
        self._all(word, lambda: self._device.commit(canvases))

    def leave(self, id: int) -> None:
        """As `Device.leave`."""
        self._reading.discard(id)
        self._all(_Leave(id), lambda: self._device.leave(id))

    def warm_up(self, progress: Callable[[str], None], everything: bool) -> Callable[[], None]:
        """As `ModelDevice.warm_up`, on all processes."""
        return self._all(_WarmUp(everything), lambda: self._device.warm_up(progress, everything))

    def close(self) -> None:
        """Sends the others home."""
        if not self._over:
            self._over = True
            self._say(_End())
            self._words.close()

    def _say(self, word: _Word) -> None:
        self._words.say(_encode(word))

    def _all(self, word: _Word, call: Callable[[], Any]) -> Any:
        self._words.require_all()
        self._say(word)
        return self._words.run(call)


def follow(model: Model, words: Words | None = None) -> None:
    """Does what process 0's engine over the same model does, until it is closed. On every other process.

    Raises:
        LostProcessError: process 0 is gone. Any other error is this process's own, which process 0 is told of.
    """
    words = Words() if words is None else words
    device: ModelDevice | None = None
    plans: dict[int, Plan] = {}
    try:
        while True:
            word = _decode(words.hear())
            if isinstance(word, _End):
                return
            if isinstance(word, _Begin):
                device = _device(model, word)
            else:
                assert device is not None, "process 0 says first what a device is made of"
                _do(device, plans, word)
    except BaseException as error:
        words.fail(f"with {type(error).__name__}: {error}")
        raise
    finally:
        words.close()


def _device(model: Model, begin: _Begin) -> ModelDevice:
    budget = Budget(
        total=begin.total,
        slots=begin.slots,
        positions=begin.positions,
        text=model.config.text,
        dtype=model.dtype,
        fixed_rows=begin.apart,
    )
    return ModelDevice(model, budget, PrefixStore(begin.prefix_bytes, begin.reuse), begin.apart)


def _do(device: ModelDevice, plans: dict[int, Plan], word: _Word) -> None:
    """One call, as process 0 makes it. Its result is process 0's business."""
    match word:
        case _Read(id, prompt):
            if prompt is not None:
                plans[id] = device.plan(prompt.request())
            device.read(id, plans[id])
        case _ReadTogether(prompts):
            plans |= {id: device.plan(prompt.request()) for id, prompt in prompts.items()}
            device.read_together({id: plans[id] for id in prompts})
        case _Denoise(most):
            device.denoise(most)
        case _Logprobs(id, canvas, tokens, likeliest):
            device.logprobs(id, canvas.array(), tokens, likeliest)
        case _Choose(id, position, allowed):
            device.choose(id, position, allowed.array())
        case _Restart(id, pinned):
            device.restart(id, pinned)
        case _Commit(canvases):
            device.commit({id: canvas.array() for id, canvas in canvases.items()})
        case _Leave(id):
            plans.pop(id, None)
            device.leave(id)
        case _WarmUp(everything):
            device.warm_up(lambda line: None, everything)
