"""`python -m serve` from the command line: flags, what the caller can put right, and stopping."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from fake_engine import FakeEngine

import serve.__main__ as command
from serve.config import PUBLISHED_NAME, ServeConfig, parse_flags


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_setting_is_a_flag_with_help_and_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(ServeConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert text.count("(default:") == len(dataclasses.fields(ServeConfig))


def test_the_help_does_not_wait_for_jax():
    code = "import sys, serve.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_flags_become_settings():
    config = parse_flags(["--checkpoint", "/a/b", "--port", "9", "--served-model-name", "x", "y/z", "--thinking"])
    assert config == ServeConfig(checkpoint=Path("/a/b"), port=9, served_model_name=("x", "y/z"), thinking=True)
    assert parse_flags([]) == ServeConfig()


def test_a_server_answers_to_its_folders_name_and_to_the_published_one():
    assert ServeConfig(checkpoint=Path("/a/tiny")).names == ("tiny", PUBLISHED_NAME)
    assert ServeConfig(checkpoint=Path("/a/tiny"), served_model_name=("mine",)).names == ("mine",)


@pytest.mark.parametrize(
    "flags", [["--port", "70000"], ["--port", "x"], ["--max-queue", "-1"], ["--heartbeat-seconds", "0"], ["--what"]]
)
def test_a_wrong_flag_exits_with_2(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(flags)
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_a_wrong_folder_is_one_line_and_status_2(capsys, tmp_path):
    assert command.main(["--port", "0", "--checkpoint", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err == f"serve: --checkpoint {tmp_path}/nothing is not a folder\n"


def test_a_checkpoint_that_cannot_be_loaded_is_one_line_and_status_2(capsys, monkeypatch):
    def broken(config):
        raise ValueError("config.json lacks hidden_size")

    monkeypatch.setattr(command, "_load", broken)
    assert command.main(["--port", "0"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "serve: config.json lacks hidden_size"


def test_a_taken_port_is_one_line_and_status_2_before_anything_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr(command, "_load", lambda config: pytest.fail("loaded for nothing"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main(["--port", str(port)]) == 2
    assert capsys.readouterr().err == f"serve: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


def test_an_engine_that_cannot_warm_up_ends_the_server(monkeypatch, free_port):
    engine = FakeEngine()
    engine.warm_up_error = MemoryError("no room")
    monkeypatch.setattr(command, "_load", lambda config: engine)
    assert command.main(["--port", str(free_port)]) == 2


def test_a_server_answers_until_sigterm(monkeypatch, free_port):
    monkeypatch.setattr(command, "_load", lambda config: FakeEngine())
    answers = []

    def visit() -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not answers:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/v1/health/ready", timeout=1) as response:
                    answers.append(response.status)
            except OSError:
                time.sleep(0.01)

    def visit_and_stop() -> None:
        try:
            visit()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit_and_stop)
    visitor.start()
    assert command.main(["--port", str(free_port)]) == 0
    visitor.join()
    assert answers == [200]
