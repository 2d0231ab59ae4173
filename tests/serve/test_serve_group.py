"""Two real server processes over gloo: the text of one process, and a clear end of all when one is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
from aiohttp.test_utils import TestClient, TestServer
from tiny_checkpoint import write_checkpoint

from serve.app import create_app
from serve.checkpoint_engine import CheckpointEngine
from serve.config import PUBLISHED_NAME, ServeConfig
from serve.handlers import WORKER

ROOT = Path(__file__).parents[2]
SECONDS = 120
FLAGS = ["--dtype", "float32", "--quantize", "int8", "--slots", "1", "--no-thinking"]


class Group:
    """The two processes; requests go to the first."""

    def __init__(self, checkpoints: list[Path], logs: Path, *, slurm: bool = False) -> None:
        with contextlib.ExitStack() as probes:
            ports = []
            for _ in range(2):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        self.address = f"http://127.0.0.1:{ports[0]}"
        flags = ["--port", str(ports[0]), "--compilation-cache", str(logs / "xla")]
        job, flags = fake_slurm.free_job() if slurm else None, [*flags, "--mesh", "expert=2"]
        self.logs = [logs / f"log{index}" for index in range(2)]
        self.both = []
        for index, (checkpoint, log) in enumerate(zip(checkpoints, self.logs, strict=True)):
            joined = ["--coordinator", "auto"]
            if job is None:
                joined = ["--coordinator", f"127.0.0.1:{ports[1]}", "--num-processes", "2", "--process-id", str(index)]
            command = [sys.executable, "-m", "serve", *FLAGS, *flags, *joined, "--checkpoint", str(checkpoint)]
            env = os.environ | ({} if job is None else fake_slurm.environment(job, 2, index))
            with log.open("wb") as file:  # gloo writes to stdout
                self.both.append(subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=env))

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except urllib.error.URLError:
            return 0, ""

    def wait_for(self, path: str, wanted: str = "") -> None:
        """Until an answer contains something."""
        deadline = time.monotonic() + SECONDS
        while (answer := self.ask(path))[0] != 200 or wanted not in answer[1]:
            assert time.monotonic() < deadline, self.logs[0].read_text()
            assert all(process.poll() is None for process in self.both), [log.read_text() for log in self.logs]
            time.sleep(0.1)

    def close(self) -> None:
        for process in self.both:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, 64)
    return folder


@pytest.fixture(scope="module")
def group(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    made = Group([folder, folder], tmp_path_factory.mktemp("group"), slurm=True)
    try:
        made.wait_for("/v1/health/ready")
        yield made
    finally:
        made.close()


CHAT = {"model": PUBLISHED_NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "seed": 3}


async def test_two_processes_answer_as_one_does(group: Group, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointEngine, "warm_up", lambda self, progress: None)  # of one: what is asked for is enough
    bodies = [CHAT, CHAT | {"seed": 4, "temperature": 0.5}]
    found = [json.loads(group.ask("/v1/chat/completions", body)[1])["choices"] for body in bodies]
    engine = CheckpointEngine.load(folder, "float32", slots=1, quantize="int8")
    async with TestClient(TestServer(create_app(engine, ServeConfig(thinking=False)))) as alone:
        await alone.app[WORKER].warm.wait()
        for body, choices in zip(bodies, found, strict=True):
            async with alone.post("/v1/chat/completions", json=body) as response:
                assert (await response.json())["choices"] == choices
    assert found[0][0]["message"]["content"] and found[0] != found[1]


def test_a_killed_process_fails_what_is_open_and_ends_the_group(group: Group) -> None:
    first, second = group.both
    answers: list[tuple[int, str]] = []
    second.send_signal(signal.SIGSTOP)  # so that the request is open when the process goes
    asking = threading.Thread(target=lambda: answers.append(group.ask("/v1/chat/completions", CHAT | {"seed": 5})))
    asking.start()
    group.wait_for("/v1/metrics", "num_requests_running 1")
    second.kill()
    asking.join(SECONDS)
    status, said = answers[0]
    assert status == 503 and "The model has stopped working" in json.loads(said)["error"]["message"]
    assert first.wait(SECONDS) == 1, "whoever started the group sees that it must be started again"
    assert second.wait(SECONDS) == -signal.SIGKILL
    assert "LostProcessError" in group.logs[0].read_text()


def test_a_process_that_cannot_load_ends_the_group_with_its_reason(folder: Path, tmp_path: Path) -> None:
    group = Group([folder, tmp_path / "nothing"], tmp_path)
    try:
        assert [process.wait(SECONDS) for process in group.both] == [2, 2]
    finally:
        group.close()
    first, second = (log.read_text() for log in group.logs)
    assert "process 1 of 2 failed to load the checkpoint: --checkpoint" in first
    assert f"serve: --checkpoint {tmp_path / 'nothing'} is not a folder" in second


def test_an_environment_that_is_no_cluster_is_one_line_and_status_2() -> None:
    known = ("SLURM_", "KUBERNETES_", "OMPI_", "TPU_", "JAX_COORDINATOR")
    env = {name: value for name, value in os.environ.items() if not name.startswith(known)}
    command = [sys.executable, "-m", "serve", "--coordinator", "auto"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "serve: --coordinator: the environment is not that of a cluster that JAX knows" in done.stderr
