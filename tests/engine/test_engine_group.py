"""Two processes, two devices each, as one engine: the answers of one process, and a clear end when one is lost."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
from engine.group_member import SETTINGS, request
from engine.hand_grammar import is_rising
from golden import reading

from dgemma_jax import Engine, processes

MEMBER = Path(__file__).parent / "group_member.py"
FOLDER = reading.FOLDER / "window6"
SECONDS = 120


class Pair:
    """The two processes; `ask` speaks with the first."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.both = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(MEMBER),
                    address,
                    "2",
                    str(index),
                    str(reading.FOLDER / "window6"),
                    "data=2,expert=2",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for index in range(2)
        ]

    def ask(self, asked: dict[str, Any]) -> str:
        first = self.both[0]
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write(json.dumps(asked) + "\n")
        first.stdin.flush()
        limit = threading.Timer(SECONDS, first.kill)
        limit.start()
        try:
            return next((line[2:] for line in first.stdout if line.startswith("> ")), "")
        finally:
            limit.cancel()

    def close(self) -> None:
        for process in self.both:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def asked() -> list[dict[str, Any]]:
    """More than slots; three that begin alike, one of them with a grammar, and one with an image; of one length."""
    golden = reading.case("window6", "logits", "image")
    image_id = reading.model("window6").config.image_token_id
    pictured = next(row for row in golden["tokens"] if (row == image_id).any())
    start = [6 + index % 14 for index in range(len(pictured))]
    image = {name: value.tolist() for name, value in reading.images(golden).items()}
    return [
        {"tokens": start, "max_new_tokens": 12, "seed": 3},
        {"tokens": start, "max_new_tokens": 9, "seed": 2**63},
        {
            "tokens": start,
            "max_new_tokens": 8,
            "seed": 3,
            "rising_below": reading.model("window6").config.text.vocab_size,
        },
        {"tokens": pictured.tolist(), "max_new_tokens": 8, **image},
    ]


def test_two_processes_answer_as_one_does(pair: Pair) -> None:
    engine = Engine(dataclasses.replace(reading.model("window6"), generation=SETTINGS), slots=2)
    expected = engine.generate_many([request(one) for one in asked()], progress=False)
    engine.close()
    assert is_rising(expected[2].tokens, 8, SETTINGS.eos_token_ids[0])
    found = json.loads(pair.ask({"all": asked()}))
    assert found == [[list(answer.tokens), answer.cached_tokens] for answer in expected]


def test_a_lost_process_fails_what_is_open_and_ends_the_group(pair: Pair) -> None:
    first, second = pair.both
    assert pair.ask({"all": asked()[1:2]}), "both are there"
    second.send_signal(signal.SIGSTOP)  # as a machine that hangs: no connection breaks, only the beats stop
    answer = pair.ask({"wait": True, "tokens": [5, 6, 7], "max_new_tokens": 8})
    assert answer == ("LostProcessError: the engine has stopped: process 1 of 2 has not been heard of for 3 s\n")
    assert first.wait(SECONDS) == 7
    second.send_signal(signal.SIGCONT)
    assert second.wait(SECONDS) != 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None, 2, None), "need a coordinator"),
        ((None, None, 0), "need a coordinator"),
        (("host:1", 2, 2), "process_id must be 0 to 1, found 2"),
        (("host", 2, 0), "coordinator must be host:port or \"auto\", found 'host'"),
    ],
)
def test_arguments_that_make_no_group_are_refused(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        processes.join(*arguments)


ALONE = """
import sys
from jax._src import xla_bridge  # the flag has no public reader
from dgemma_jax import processes
processes.join("auto", None, None)
print(xla_bridge.CUDA_VISIBLE_DEVICES.value)
"""


def test_a_process_that_is_alone_on_its_host_has_all_devices() -> None:
    """Where SLURM runs one task a host JAX would give it the first device alone."""
    slurm = fake_slurm.environment(fake_slurm.free_job(), tasks=1, task=0)
    done = subprocess.run([sys.executable, "-c", ALONE], env=os.environ | slurm, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["all"], done.stderr


def test_without_a_coordinator_a_process_stays_alone() -> None:
    processes.join(None, None, None)
    with pytest.raises(RuntimeError, match="not in a group"):
        processes.Words()
