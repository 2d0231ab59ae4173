"""Whatever the OpenAPI document allows or forbids, the server answers as documented: no 5xx, and errors in their form.

schemathesis makes the requests from the document and checks the answers against it; they go to the real app over a
loopback socket. The seed is fixed: the same requests every time.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from aiohttp.test_utils import TestServer
from fake_engine import FakeEngine
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.app import create_app
from serve.config import ServeConfig
from serve.openapi import Route, document
from serve.routes import ROUTES

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
WITH_BODY = [route for route in ROUTES if route.operation.request]


def fuzzed_document() -> Any:
    """The server's document, where the model's name is the one that the server has: others are a 404 at once."""
    found = msgspec.json.decode(document(ROUTES, "0", keys=False))
    for schema in found["components"]["schemas"].values():
        if "model" in schema.get("properties", {}) and "additionalProperties" in schema:
            absent = [] if "model" in schema["required"] else [None]
            schema["properties"]["model"] = {"enum": ["demo", *absent]}
    return schemathesis.openapi.from_dict(found)


DOCUMENT = fuzzed_document()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The app on a thread of its own, as schemathesis waits for its answers; the fixture is the app's address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(10)

    config = ServeConfig(served_model_name=("demo",), allowed_media_domains=("media.invalid",), seed=1)
    server = TestServer(create_app(FakeEngine(), config), loop=loop)
    run(server.start_server(loop=loop))
    yield str(server.make_url("")).rstrip("/")
    run(server.close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def fuzz(server: str, route: Route, mode: GenerationMode, examples: int) -> set[int]:
    """Asks for one route again and again; returns the statuses that came."""
    operation = DOCUMENT[re.sub(r"\{(\w+)[^}]*\}", r"{\1}", route.path)][route.method]
    statuses: set[int] = set()

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        response = data.draw(operation.as_strategy(generation_mode=mode)).call_and_validate(server, checks=CHECKS)
        statuses.add(response.status_code)

    ask()
    return statuses


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_what_the_document_allows_is_answered_as_it_says(server, route):
    found = fuzz(server, route, GenerationMode.POSITIVE, 80 if route in WITH_BODY else 10)
    done = 302 if route.operation.redirects else 200
    assert found <= {done, 400, 404}
    assert done in found or "{" in route.path


@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: route.path)
def test_what_the_document_forbids_is_refused(server, route):
    found = fuzz(server, route, GenerationMode.NEGATIVE, 50)
    assert found <= {400, 404, 413, 415}
