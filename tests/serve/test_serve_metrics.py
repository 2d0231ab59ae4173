"""What Prometheus reads: the counts are those of the replies, and of this server alone."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from fake_engine import STEPS, FakeEngine
from prometheus_client.parser import text_string_to_metric_families

CHAT = "/v1/chat/completions"


async def read(client, path="/metrics") -> dict[str, float]:
    """Every sample by its name, labels joined on."""
    text = await (await client.get(path)).text()
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_reply_is_counted(client, ask):
    assert (await client.post(CHAT, json=ask("hi"))).status == 200
    found = await read(client)
    assert found["diffusion_canvases_total"] == found["diffusion_steps_per_canvas_count"] == 4
    assert found["diffusion_denoising_steps_total"] == found["diffusion_steps_per_canvas_sum"] == 4 * STEPS
    assert found["diffusion_committed_tokens_total"] == found["generation_tokens_total"] == 13
    assert found["prompt_tokens_total"] == found["request_prompt_tokens_sum"] == 2
    assert found["time_to_first_canvas_seconds_count"] == found["time_to_first_token_seconds_count"] == 1
    assert found["time_per_output_token_seconds_count"] == 3, "one for each canvas but the first"
    assert found["e2e_request_latency_seconds_count"] == found["request_success_total"] == 1
    assert found["request_failure_total"] == 0
    assert found[f"http_requests_total/{CHAT}/200"] == 1
    assert found["num_request_max"] == 65


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_that_fails_is_a_failure(client, ask, stream):
    await (await client.post(CHAT, json=ask("explode", stream=stream))).read()
    found = await read(client)
    assert (found["request_success_total"], found["request_failure_total"]) == (0, 1)


async def test_the_line_is_seen_as_it_is(client, ask, engine: FakeEngine, eventually):
    replies = [asyncio.create_task(client.post(CHAT, json=ask("hold")))]
    await eventually(lambda: len(engine.jobs) == 1)
    replies += [asyncio.create_task(client.post(CHAT, json=ask())) for _ in range(2)]
    while (found := await read(client))["num_requests_waiting"] < 2:
        await asyncio.sleep(0.01)
    assert (found["num_requests_running"], found["num_requests_waiting"]) == (1, 2)
    engine.release.set()
    await asyncio.gather(*replies)
    while (found := await read(client))["num_requests_running"]:  # until the engine's next step, after the last byte
        await asyncio.sleep(0.01)
    assert found["num_requests_waiting"] == 0


async def test_the_readme_names_every_metric(client):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    text = await (await client.get("/metrics")).text()
    names = {name for name in re.findall(r"^# TYPE (\w+)", text, re.MULTILINE) if not name.endswith("_created")}
    assert {name for name in names if not name.startswith("process_") and f"`{name}`" not in readme} == set()


async def test_unknown_paths_are_one_route(client):
    for path in ("/a", "/b", "/v1/responses", "/v1/messages"):
        await client.get(path)
    assert (await read(client))["http_requests_total/none/404"] == 4


async def test_both_paths_answer_and_servers_do_not_share_counts(start, ask):
    async with start() as first, start() as second:
        await first.post(CHAT, json=ask())
        assert (await read(first, "/v1/metrics"))["diffusion_canvases_total"] > 0
        assert (await read(second, "/v1/metrics"))["diffusion_canvases_total"] == 0


async def test_the_format_is_the_one_asked_for(client):
    plain = await client.get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    modern = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.content_type == "application/openmetrics-text"
    assert (await modern.text()).endswith("# EOF\n")


@pytest.mark.parametrize("version", ["abc", "1.x", ""])
async def test_a_reader_of_no_known_version_gets_the_plain_format(client, version):
    for kind in ("text/plain", "application/openmetrics-text"):
        response = await client.get("/metrics", headers={"Accept": f"{kind}; version={version}"})
        assert response.status == 200 and response.content_type in ("text/plain", "application/openmetrics-text")
