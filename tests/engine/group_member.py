"""One process of a group, as a program: `group_member.py HOST:PORT COUNT INDEX CHECKPOINT MESH`.

Process 0 answers every request that comes on stdin, one JSON object a line, with a line of its own, in order. A request
with "wait" is answered by the error it failed with, and by the exit status.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
from engine.hand_grammar import Rising

import dgemma_jax
from dgemma_jax import processes
from dgemma_jax.engine import follow

# Few steps: over many a model with random weights multiplies the last bits, in which meshes differ.
SETTINGS = dgemma_jax.GenerationConfig(max_denoising_steps=5, entropy_bound=2.0, eos_token_ids=(3, 4, 5))


def main() -> int:
    coordinator, count, index, checkpoint, mesh = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    processes.BEAT_SECONDS, processes.LOST_SECONDS = 0.2, 3.0
    processes.join(coordinator, int(count), int(index))
    model = dataclasses.replace(dgemma_jax.load(checkpoint, dtype="float32", mesh=mesh), generation=SETTINGS)
    if jax.process_index() > 0:
        follow(model)
        return 0
    engine = dgemma_jax.Engine(model, slots=2)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.pop("wait", False):
            return wait(engine, request(asked))
        answers = engine.generate_many([request(one) for one in asked["all"]], progress=False)
        say(json.dumps([[list(answer.tokens), answer.cached_tokens] for answer in answers]))
    engine.close()
    return 0


def say(line: str) -> None:
    os.write(1, f"\n> {line}\n".encode())  # Gloo writes there too


def request(asked: dict) -> dgemma_jax.Request:
    images = {name: np.asarray(asked.pop(name), kind) for name, kind in KINDS.items() if name in asked}
    grammar = Rising(asked.pop("rising_below"), SETTINGS.eos_token_ids[0]) if "rising_below" in asked else None
    return dgemma_jax.Request(tokens=tuple(asked.pop("tokens")), grammar=grammar, **asked, **images)


KINDS = {"patches": np.float32, "patch_positions": np.int32}


def wait(engine: dgemma_jax.Engine, request: dgemma_jax.Request) -> int:
    error = engine.generate_many([request], progress=False)[0].error
    if error is not None:
        say(f"{type(error.__cause__).__name__}: {error}")
        os._exit(7)  # a thread is still within a collective
    return 0


if __name__ == "__main__":
    sys.exit(main())
