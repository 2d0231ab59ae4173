"""`python -m tools.bench serve` against the real app: it counts right, and finds what is wrong."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from fake_engine import STEPS, FakeEngine

from tools import bench
from tools.bench_clients import workload


async def measure(client, capsys, *flags: str) -> tuple[int, str, str]:
    """Exit status and both outputs of a run against a server."""
    command = ["serve", "--url", str(client.make_url("/")), "--longest", "100", *flags]
    status = await asyncio.to_thread(bench.main, command)
    return status, *capsys.readouterr()


def test_no_two_requests_of_a_workload_are_alike_and_most_are_short():
    """So that the store of prompts fills, and a text that belongs to another request shows."""
    asked = workload(3000, "demo", longest=1000, seed=0)
    prompts = [one.body["messages"][0]["content"] for one in asked]
    assert len(set(prompts)) == 3000
    lengths = sorted(map(len, prompts))
    assert lengths[1400] < 100 and 800 < lengths[-1] <= 1000
    assert len({one.body["max_tokens"] for one in asked}) == 4
    assert workload(3000, "demo", longest=1000, seed=0) == asked
    others = workload(3000, "demo", longest=100, seed=1)
    assert max(len(one.body["messages"][0]["content"]) for one in others) <= 100


async def test_a_run_reports_what_the_server_did(start, engine: FakeEngine, capsys):
    engine.slots = 3
    engine.answer = lambda said: "ok"
    async with start() as client:
        flags = ["--requests", "20", "--clients", "1,4", "--rounds", "2", "--json"]
        status, out, err = await measure(client, capsys, *flags)
    assert status == 0, err
    report = json.loads(out)
    assert report["compared"] and report["differing"] == [] and report["failed"] == 0
    for clients in ("1", "4"):
        told = report["clients"][clients]
        assert (told["requests"], told["failed"], told["steps_per_canvas"]) == (40, 0, STEPS)
        assert told["tokens_per_second"] == pytest.approx(3 * told["requests_per_second"]), '"ok" and its end'
        assert 0 < told["first_canvas_p50"] <= told["first_canvas_p95"] <= told["request_p95"]
    assert len(engine.jobs) == 4 * 20 + 20
    assert len(report["resident_bytes"]) == 4 * 10 and min(report["resident_bytes"]) > 2**20


async def test_texts_that_differ_from_those_alone_are_found(start, engine: FakeEngine, capsys):
    number = itertools.count()
    engine.answer = lambda said: f"{next(number)}"
    async with start() as client:
        status, out, err = await measure(client, capsys, "--requests", "8", "--clients", "2", "--check", "3")
    assert status == 1
    assert "3 differ" in out and "request 0 differs: " in err


@pytest.mark.parametrize(("settings", "said"), [({"max_queue": 0}, "status 429"), ({"api_key": ("k",)}, "401")])
async def test_failures_are_told_and_counted(start, capsys, settings, said):
    async with start(**settings) as client:
        status, _, err = await measure(client, capsys, "--requests", "30", "--clients", "9", "--check", "0")
    assert status == (2 if "api_key" in settings else 1)
    assert said in err and "Traceback" not in err


async def test_a_server_that_is_not_there_is_one_line(capsys):
    assert await asyncio.to_thread(bench.main, ["serve", "--url", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith("bench: http://127.0.0.1:1/ is no server of this kind")
