"""Many requests at once: continuous batching of canvases, equal to the plain path.

    submit --> plan (checked, cut into passes; refused if it can never fit)
                 |
              [ line ]            first come, first served; admitted when it fits beside those that run
                 |
              Reading             one prompt at a time, in a cache of its own, pass by pass, or some short ones
                 |                in one pass; its start may come from the prefix store, where its end goes
                 v
    Batch   row 0 | row 1 | ...   one cache, one program: canvases of different ages are denoised together,
                 |                each with its own settings, seed and step count, until one of them is done
                 v
    CanvasCommitted, ... Finished; between two canvases of a request its row reads the finished one (commit)

A canvas is the unit of work. `scheduler.py` decides what comes next, `core.py` carries it out and tells, `device.py`
is the line between host and device, `programs.py` is what runs there. Who owns a number of bytes: `memory.py`.

    engine = dgemma_jax.Engine(model, slots=8)
    answers = engine.generate_many(prompts, max_new_tokens=256)          # offline, with a progress bar
    async for event in engine.stream(Request(tokens=prompt, seed=1)):    # a server, or a notebook
        ...
    engine.close()

Over several processes (`dgemma_jax.processes`): `group.py`.
"""

from dgemma_jax.engine.engine import Engine
from dgemma_jax.engine.events import (
    Draft,
    EngineDeadError,
    Event,
    Failed,
    Prefilled,
    QueueFullError,
    RefusedError,
    Request,
)
from dgemma_jax.engine.group import follow
from dgemma_jax.engine.offline import Answer

__all__ = [
    "Answer",
    "Draft",
    "Engine",
    "EngineDeadError",
    "Event",
    "Failed",
    "Prefilled",
    "QueueFullError",
    "RefusedError",
    "Request",
    "follow",
]
