"""Many prompts, for their answers: no events, a progress bar."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dgemma_jax.engine.events import Event, Failed, Prefilled, Request
from dgemma_jax.generate import CanvasCommitted, Finished
from dgemma_jax.sampling.logprobs import TokenLogprob

if TYPE_CHECKING:
    from dgemma_jax.engine.engine import Engine


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request. `reason` as in `Finished`, None where there is an `error`, as of a prompt too long.

    steps: denoising steps of each canvas. cached_tokens: how much of the prompt was not computed.
    """

    tokens: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    reason: str | None = None
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    error: Exception | None = None

    def after(self, event: Event) -> Answer:
        """The answer so far, with what an event adds."""
        match event:
            case Prefilled():
                return dataclasses.replace(self, cached_tokens=event.cached_tokens)
            case CanvasCommitted():
                return dataclasses.replace(
                    self,
                    tokens=self.tokens + event.tokens,
                    steps=(*self.steps, event.steps),
                    logprobs=self.logprobs + (event.logprobs or ()),
                )
            case Finished():
                return dataclasses.replace(self, reason=event.reason)
            case Failed():
                return dataclasses.replace(self, error=event.error)
        return self


def generate_many(engine: Engine, requests: Sequence[Request], ahead: int, progress: bool) -> list[Answer]:
    """Answers in the order of the requests, at most `ahead` of which are in the engine at a time.

    A request that fails or is refused has its error in its answer, and the others go on. Leaving early, by an
    interrupt, cancels what is left.

    Raises:
        QueueFullError, EngineDeadError: the engine takes no request.
    """
    answers = [Answer() for _ in requests]
    events: queue.Queue[tuple[int, Event]] = queue.Queue()
    ids: list[int] = []
    bar = _bar(len(requests), progress)
    asked = done = 0

    def ask(index: int) -> None:
        try:
            ids.append(engine.listen(requests[index], lambda event: events.put((index, event))))
        except ValueError as error:
            events.put((index, Failed(error)))

    try:
        while done < len(requests):
            while asked < min(done + ahead, len(requests)):
                ask(asked)
                asked += 1
            index, event = events.get()
            answers[index] = answers[index].after(event)
            if isinstance(event, Finished | Failed):
                done += 1
                bar.update()
    finally:
        bar.close()
        for id in ids:
            engine.cancel(id)
    return answers


class _NoBar:
    def update(self) -> None:
        pass

    def close(self) -> None:
        pass


def _bar(total: int, progress: bool) -> Any:
    with contextlib.suppress(ImportError):
        if progress:
            from tqdm import tqdm

            return tqdm(total=total, unit="answer")
    return _NoBar()
