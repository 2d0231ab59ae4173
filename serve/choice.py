"""One reply of a request that may ask for several: its job, its place in the line, and what there is of it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator

from serve.engine import Call, Canvas, Draft, Finished, Job, Piece, Prefilled
from serve.reply import Preview, Reply
from serve.worker import Run

Growth = list[Piece | Call] | Preview


@dataclasses.dataclass(frozen=True)
class PendingChoice:
    """A choice that grows while it is read."""

    index: int
    job: Job
    run: Run
    reply: Reply

    async def grow(self, silence: float | None) -> AsyncGenerator[Growth, None]:
        """The reply canvas by canvas; nothing after `silence` seconds without one. Ends when the reply does.

        Where its job asks for drafts, previews come between; those that newer ones have overtaken are left out.
        """
        try:
            while self.reply.finish_reason is None:
                match await self.run.next(silence):
                    case Prefilled(cached_tokens):
                        self.reply.cached_tokens = cached_tokens
                    case Draft() as draft:
                        yield self.reply.preview(draft, self.job.max_new_tokens - self.reply.completion_tokens)
                    case Canvas() as canvas:
                        yield self.reply.push(canvas)
                    case Finished(reason):
                        if rest := self.reply.finish(reason):
                            yield rest
                    case None:
                        yield []
        finally:
            self.run.cancelled.set()  # it may have ended long before the engine would

    async def whole(self) -> list[Piece | Call]:
        """All that the reply adds."""
        return [piece async for growth in self.grow(None) if isinstance(growth, list) for piece in growth]
