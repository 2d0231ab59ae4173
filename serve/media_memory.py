"""The memory of decoded media, which all open requests share: who finds too little of it waits for those before.

A photograph becomes eight megabytes of numbers, a video sixty. They are held until the reply is complete, and far more
requests may be open than the engine works on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class MediaMemory:
    """So many bytes, given medium by medium, first to the request that asked first. For the event loop's thread.

    That one never waits, even where nothing is left: so requests that each have a part of their media cannot wait for
    each other, and one that needs more than all still ends. What is taken is at most `most` and one request's media.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._shares: list[Share] = []  # in the order in which they asked first

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """What one request has of it: nothing yet. Leaving the context gives all back."""
        share = Share(self)
        try:
            yield share
        finally:
            self._free += share.taken
            if share in self._shares:
                self._shares.remove(share)
            self.hand_out()

    def join(self, share: Share) -> None:
        """A request asks for the first time."""
        if share not in self._shares:
            self._shares.append(share)

    def hand_out(self) -> None:
        """Gives what is free, in order; nobody overtakes."""
        for share in self._shares:
            while share.line:
                needed, waiting = share.line[0]
                if not waiting.done():
                    if needed > self._free and share is not self._shares[0]:
                        return
                    self._free -= needed
                    share.taken += needed
                    waiting.set_result(None)
                share.line.pop(0)


class Share:
    """What a request has of the memory, and what it waits for."""

    def __init__(self, memory: MediaMemory) -> None:
        self.taken = 0
        self.line: list[tuple[int, asyncio.Future[None]]] = []
        self._memory = memory

    async def take(self, needed: int) -> None:
        """Waits for memory for one more medium. Given back with the whole share."""
        self._memory.join(self)
        waiting = asyncio.get_running_loop().create_future()
        self.line.append((needed, waiting))
        self._memory.hand_out()
        await waiting  # where the caller is cancelled, the next to hand out passes over it
