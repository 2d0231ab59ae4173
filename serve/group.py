"""Several processes as one server: process 0 answers, the others do as it does. See docs/deploy.md."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from serve.config import ServeConfig

logger = logging.getLogger(__name__)


def leads(config: ServeConfig) -> bool:
    """Joins the group that the flags describe; whether this process takes its requests. Raises ValueError."""
    if config.coordinator is None and config.num_processes is None and config.process_id is None:
        return True
    import jax  # only once the flags are known to be right

    from dgemma_jax import processes

    try:
        processes.join(config.coordinator, config.num_processes, config.process_id)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--coordinator: {error}") from None
    return config.coordinator is None or jax.process_index() == 0


async def is_lost(broken: asyncio.Event, stop: asyncio.Event) -> bool:
    """Waits for a stop, or for the loss of a process, which a request stumbles over (`broken`) or nobody asks after."""
    from dgemma_jax import processes

    while not (stop.is_set() or broken.is_set()):
        if (why := processes.lost()) is not None:
            logger.critical("the group cannot go on: %s", why)
            with contextlib.suppress(asyncio.TimeoutError):  # open requests end with the worker's error
                await asyncio.wait_for(broken.wait(), 2 * processes.BEAT_SECONDS)
            return True
        await asyncio.sleep(processes.BEAT_SECONDS / 2)
    return broken.is_set()
