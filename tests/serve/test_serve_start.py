"""`python -m serve` from the command line: flags, what the caller can put right, and stopping."""

from __future__ import annotations

import dataclasses
import inspect
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

import dgemma_jax
import dgemma_jax.engine
import serve.__main__ as command
from dgemma_jax import load
from serve import checkpoint_engine, dtype
from serve.config import DEMO_CHECKPOINT, PUBLISHED_NAME, ServeConfig, parse_flags
from serve.dtype import choose_dtype


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
    config = parse_flags(["--checkpoint", "/a/b", "--port", "9", "--served-model-name", "x", "y/z", "--no-thinking"])
    assert config == ServeConfig(checkpoint=Path("/a/b"), port=9, served_model_name=("x", "y/z"), thinking=False)
    assert parse_flags([]) == ServeConfig()


@pytest.mark.parametrize(
    ("text", "found"), [("1000", 1000), ("512MiB", 2**29), ("1.5g", 3 * 2**29), ("2 KB", 2048), ("4GiB", 2**32)]
)
def test_memory_is_given_in_bytes_or_larger_units(text, found):
    assert parse_flags(["--kv-memory", text]).kv_memory == found


def test_weights_are_float32_where_a_cpu_has_room_for_them(monkeypatch):
    assert choose_dtype("auto", DEMO_CHECKPOINT) == "float32"
    assert choose_dtype("bfloat16", DEMO_CHECKPOINT) == "bfloat16"
    monkeypatch.setattr(dtype, "machine_bytes", lambda: 2**20)
    assert choose_dtype("auto", DEMO_CHECKPOINT) == "bfloat16"
    monkeypatch.undo()
    monkeypatch.setattr(dtype.jax, "default_backend", lambda: "gpu")
    assert choose_dtype("auto", DEMO_CHECKPOINT) == "bfloat16"


def test_the_flags_of_the_engine_reach_it(monkeypatch, tmp_path):
    engine, given = FakeEngine(), {}
    engine.devices = "none"
    monkeypatch.setattr(checkpoint_engine, "keep_compiled", lambda folder: None)
    monkeypatch.setattr(checkpoint_engine.CheckpointEngine, "load", lambda *_, **limits: given.update(limits) or engine)
    flags = [
        "--dtype",
        "bfloat16",
        "--slots",
        "3",
        "--max-model-len",
        "99",
        "--kv-memory",
        "1G",
        "--prefix-reuse",
        "any",
        "--rows-apart",
        "--warm-up",
        "chat",
    ]
    command._load(parse_flags(["--checkpoint", str(tmp_path), *flags]))
    model = {"dtype": "bfloat16", "lora": None, "mesh": None, "backend": None, "quantize": None}
    limits = {"slots": 3, "max_context": 99, "kv_bytes": 2**30, "reuse": "any", "apart": True, "warm_up": "chat"}
    assert given == model | limits


def test_every_process_of_a_group_loads_the_same_model(monkeypatch, tmp_path):
    engine, given = FakeEngine(), []
    engine.devices = "none"
    monkeypatch.setattr(checkpoint_engine, "keep_compiled", lambda folder: None)
    monkeypatch.setattr(checkpoint_engine.CheckpointEngine, "load", lambda *_, **said: given.append(said) or engine)
    monkeypatch.setattr(dgemma_jax, "load", lambda *_, **said: given.append(said))
    monkeypatch.setattr(dgemma_jax.engine, "follow", lambda model: None)
    flags = ["--dtype", "float32", "--lora", "a", "--mesh", "expert=2", "--moe-backend", "all_experts"]
    config = parse_flags(["--checkpoint", str(tmp_path), *flags, "--quantize", "int8"])
    command._load(config)
    assert command._follow(config) == 0
    first, other = given
    assert other == {name: first[name] for name in other}
    assert set(inspect.signature(load).parameters) - {"path", "head"} == set(other), "a new option is said to all"


def test_a_process_that_follows_outlives_a_stop_of_the_whole_group(monkeypatch):
    ended = threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        return ended.wait(1.0)

    assert command._interruptibly(work, patience=30.0) is False, "it was let go on"
    with pytest.raises(command._TerminatedError):
        command._interruptibly(lambda: (os.kill(os.getpid(), signal.SIGTERM), ended.wait(30)), patience=0.1)
    with pytest.raises(command._TerminatedError):
        command._interruptibly(lambda: (os.kill(os.getpid(), signal.SIGTERM), ended.wait(30)))
    ended.set()


def test_a_model_thinks_unless_its_server_is_told_otherwise():
    assert [parse_flags(flags).thinking for flags in ([], ["--thinking"], ["--no-thinking"])] == [True, True, False]


def test_a_server_answers_to_its_folders_name_and_to_the_published_one():
    assert ServeConfig(checkpoint=Path("/a/tiny")).names == ("tiny", PUBLISHED_NAME)
    assert ServeConfig(checkpoint=Path("/a/tiny"), served_model_name=("mine",)).names == ("mine",)


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--port", "x"],
        ["--max-queue", "-1"],
        ["--heartbeat-seconds", "0"],
        ["--slots", "0"],
        ["--kv-memory", "much"],
        ["--prefix-reuse", "some"],
        ["--what"],
    ],
)
def test_a_wrong_flag_exits_with_2(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(flags)
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_a_wrong_folder_is_one_line_and_status_2(capsys, tmp_path):
    assert command.main(["--port", "0", "--checkpoint", str(tmp_path / "nothing")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"serve: --checkpoint {tmp_path}/nothing is not a folder")
    assert len(said.splitlines()) == 1


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


@pytest.mark.parametrize("host", ["..", "a" * 300, "."])
def test_a_host_that_is_none_is_one_line_that_names_the_flag(capsys, monkeypatch, host):
    monkeypatch.setattr(command, "_load", lambda config: pytest.fail("loaded for nothing"))
    assert command.main(["--port", "0", "--host", host]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"--host {host} " in line and "idna" not in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Unable to initialize backend 'cuda'\nand much more"), "Unable to initialize backend 'cuda'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_jax_refuses_while_loading_is_one_line_and_status_2(capsys, monkeypatch, tmp_path, error, said):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint_engine, "keep_compiled", lambda folder: None)
    monkeypatch.setattr(checkpoint_engine.CheckpointEngine, "load", broken)
    assert command.main(["--port", "0", "--checkpoint", str(tmp_path), "--dtype", "float32"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"serve: cannot load {tmp_path} as float32: {said}"


def test_a_compilation_cache_that_cannot_be_written_is_one_warning(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    engine = FakeEngine()
    engine.devices = "none"
    monkeypatch.setattr(checkpoint_engine.CheckpointEngine, "load", lambda *_, **__: engine)
    cache = tmp_path / "file" / "cache"
    assert command._load(ServeConfig(checkpoint=tmp_path, dtype="bfloat16", compilation_cache=cache)) is engine
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"--compilation-cache {cache} cannot be used")


def test_an_engine_that_cannot_warm_up_ends_the_server(monkeypatch, free_port):
    engine = FakeEngine()
    engine.warm_up_error = MemoryError("no room")
    monkeypatch.setattr(command, "_load", lambda config: engine)
    assert command.main(["--port", str(free_port)]) == 2


def test_a_prompt_that_takes_long_does_not_hold_up_the_end():
    script = """
import sys, threading, time
import serve.__main__ as command
from fake_engine import FakeEngine
class Slow(FakeEngine):
    def render(self, messages, **options):
        print("rendering", file=sys.stderr, flush=True)
        time.sleep(60)
command._load = lambda config: Slow()
command.leave(command.main(["--port", sys.argv[1], "--shutdown-seconds", "0"]))
"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(root), str(Path(__file__).parent)))
    server = subprocess.Popen(
        [sys.executable, "-c", script, str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    try:
        assert any("warming up" in line for line in server.stderr), "it never listened"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            body = b'{"model": "google/diffusiongemma-26b-a4b-it", "messages": [{"role": "user", "content": "x"}]}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert any("rendering" in line for line in server.stderr)
            server.send_signal(signal.SIGTERM)
            assert b" 503 " in client.recv(1000)
        assert server.wait(timeout=20) == 0
    finally:
        server.kill()
        server.communicate()


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
