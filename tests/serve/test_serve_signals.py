"""Signals while the checkpoint loads: nothing is open yet, so the process just goes."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import serve.__main__ as command


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_loading_at_once_whatever_it_is_inside_of(monkeypatch, number, status):
    before, done = signal.getsignal(signal.SIGTERM), threading.Event()
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in a shell's background ignores it

    def load(config):
        os.kill(os.getpid(), number)
        done.wait(20)  # as if inside XLA: no bytecode of this thread runs
        raise ValueError("too late")

    monkeypatch.setattr(command, "_load", load)
    start = time.monotonic()
    try:
        assert command.main(["--port", "0"]) == status
    finally:
        done.set()
        signal.signal(signal.SIGINT, interrupt)
    assert time.monotonic() - start < 10
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("flags", "warned"), [(["--host", "0.0.0.0"], True), (["--host", "127.0.0.1"], False)])
def test_a_server_open_to_others_without_a_key_says_so(monkeypatch, caplog, flags, warned):
    def load(config):
        raise ValueError("enough")

    monkeypatch.setattr(command, "_load", load)
    assert command.main(["--port", "0", *flags]) == 2
    assert any("--api-key" in record.message for record in caplog.records) is warned
    caplog.clear()
    assert command.main(["--port", "0", "--api-key", "k", *flags]) == 2
    assert "--api-key" not in caplog.text
