"""The media of a request: fetched, then decoded by the engine, away from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serve.conversation import MediaPart
from serve.engine import Engine, Medium, MediumError
from serve.errors import InvalidRequestError
from serve.media_data_url import is_inline
from serve.media_fetch import MediaFetcher
from serve.media_memory import Share

_DECODING_THREADS = 2
_FETCHES = 16
_FETCHES_OF_ONE = 4
"""Fetches at once, over all requests and of one: slow servers that one request names hold no other up."""
_HELD = 8
"""Media whose whole bytes are held at once, over all requests: bounds the memory that files take."""


class MediaReader:
    """Reads the media of requests; lives as long as the application."""

    def __init__(self, engine: Engine, fetcher: MediaFetcher) -> None:
        self._engine = engine
        self._fetcher = fetcher
        self._fetches = asyncio.Semaphore(_FETCHES)
        self._held = asyncio.Semaphore(_HELD)
        self._threads = ThreadPoolExecutor(_DECODING_THREADS, thread_name_prefix="media")

    async def read(self, parts: Sequence[MediaPart], share: Share) -> list[Medium]:
        """The media, in the order of the parts; each is fetched and decoded once `share` has memory for it.

        The first failure ends the work on the others.

        Raises:
            InvalidRequestError: one cannot be fetched or decoded; `param` names the part.
        """
        own = asyncio.Semaphore(_FETCHES_OF_ONE)
        tasks = [asyncio.create_task(self._read(part, own, share)) for part in parts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Gives up what is under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._fetcher.close()

    async def _read(self, part: MediaPart, own: asyncio.Semaphore, share: Share) -> Medium:
        needed = self._engine.medium_bytes(part.kind, part.detail)
        if is_inline(part.url):  # the bytes came with the request: decoding their text makes them twice
            await share.take(needed)
            async with self._held:
                return await self._decode(await self._fetcher.fetch(part.url, part.kind, part.param), part)
        async with own:
            await share.take(needed)  # a wait that holds up nobody else
            data = await self._fetched(part)
        try:
            return await self._decode(data, part)
        finally:
            self._held.release()

    async def _fetched(self, part: MediaPart) -> bytes:
        """The bytes of a file, and a place among those held."""
        async with self._fetches:
            data = await self._fetcher.fetch(part.url, part.kind, part.param)
            await self._held.acquire()  # before the next fetch may begin
            return data

    async def _decode(self, data: bytes, part: MediaPart) -> Medium:
        in_thread = asyncio.get_running_loop().run_in_executor
        try:
            return await in_thread(self._threads, self._engine.read, data, part.kind, part.detail)
        except MediumError as error:
            raise InvalidRequestError(
                f"The {part.kind} cannot be read: {error}", param=part.param, code=f"invalid_{part.kind}"
            ) from None
