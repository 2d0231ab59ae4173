"""Who may ask: API keys, and web pages in browsers."""

from __future__ import annotations

import openai
import pytest
from test_serve_errors import error_of

from serve.config import ServeConfig, parse_flags
from serve.openapi import Route
from serve.routes import ROUTES

CHAT = "/v1/chat/completions"
PAGE = {"Origin": "https://page.example"}
PREFLIGHT = PAGE | {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,x-stainless-os",
}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_everything_but_health_and_the_page_asks_for_the_key(start, route: Route):
    path = route.path.replace("{id:.+}", "demo")
    async with start(api_key=("right",)) as client:
        refused = await client.request(route.method, path)
        assert route.operation.is_open == ("health" in path or path in ("/", "/ui"))
        if route.operation.is_open:
            assert refused.status == 200
            return
        assert (await error_of(refused, 401))["code"] == "invalid_api_key"
        assert refused.headers["WWW-Authenticate"] == "Bearer" and refused.headers["x-request-id"]
        assert (await client.request(route.method, path, headers=bearer("right"))).status != 401


@pytest.mark.parametrize(
    "header",
    ["Bearer wrong", "Bearer rightx", "Bearer righ", "Bearer", "Bearer ", "Basic right", "right", "Bearer r\u00efght"],
)
async def test_another_key_is_a_401(start, ask, engine, header):
    async with start(api_key=("right",)) as client:
        error = await error_of(await client.post(CHAT, json=ask(), headers={"Authorization": header}), 401)
        assert error["type"] == "invalid_request_error" and "right" not in error["message"]
        assert not engine.rendered


async def test_each_of_several_keys_is_good(start, ask):
    async with start(api_key=("one", "two")) as client:
        for header in (bearer("one"), bearer("two"), {"Authorization": "bearer  two"}):
            assert (await client.post(CHAT, json=ask(), headers=header)).status == 200


async def test_an_unknown_path_tells_nothing_without_a_key(start):
    async with start(api_key=("right",)) as client:
        assert (await client.get("/v1/nothing")).status == 401
        assert (await client.get("/v1/nothing", headers=bearer("right"))).status == 404


async def test_the_official_client_raises_an_authentication_error(start):
    async with start(api_key=("right",)) as client:
        base = str(client.make_url("/v1"))
        async with openai.AsyncOpenAI(base_url=base, api_key="wrong", max_retries=0) as sdk:
            with pytest.raises(openai.AuthenticationError) as refused:
                await sdk.models.list()
            assert refused.value.code == "invalid_api_key"
        async with openai.AsyncOpenAI(base_url=base, api_key="right", max_retries=0) as sdk:
            assert (await sdk.models.list()).data[0].id == "demo"


def test_keys_come_from_flags_and_from_the_environment(monkeypatch):
    assert parse_flags([]).api_key == ()
    monkeypatch.setenv("DGEMMA_API_KEY", "three")
    config = parse_flags(["--api-key", "one", "--api-key", "two"])
    assert config.api_key == ("one", "two", "three")
    assert "api_key" not in repr(config)
    monkeypatch.setenv("DGEMMA_API_KEY", "")
    assert parse_flags([]) == ServeConfig()


@pytest.mark.parametrize(("flags", "variable"), [(["--api-key", "my secret"], ""), ([], "my secret")])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(monkeypatch, capsys, flags, variable):
    monkeypatch.setenv("DGEMMA_API_KEY", variable)
    with pytest.raises(SystemExit):
        parse_flags(flags)
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "null", "https://*.example"])
def test_what_is_no_origin_is_refused(capsys, origin):
    with pytest.raises(SystemExit):
        parse_flags(["--cors-origin", origin])
    assert "--cors-origin" in capsys.readouterr().err


async def test_no_page_may_call_unless_it_is_named(client):
    assert (await client.options(CHAT, headers=PREFLIGHT)).status == 405
    answer = await client.get("/v1/models", headers=PAGE)
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_a_named_page_may_call(start, ask):
    async with start(cors_origin=("https://other.example", PAGE["Origin"]), api_key=("right",)) as client:
        asked = await client.options(CHAT, headers=PREFLIGHT)
        assert asked.status == 204, "without a key: browsers send none"
        assert asked.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]
        assert "POST" in asked.headers["Access-Control-Allow-Methods"]
        assert asked.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
        for stream in (False, True):
            answer = await client.post(CHAT, json=ask(stream=stream), headers=PAGE | bearer("right"))
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]
            assert answer.headers["Vary"] == "Origin"
        refused = await client.post(CHAT, json=ask(), headers=PAGE)
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, PAGE["Origin"])


async def test_other_pages_are_still_refused(start):
    async with start(cors_origin=("https://other.example",)) as client:
        assert (await client.options(CHAT, headers=PREFLIGHT)).status == 405
        answer = await client.get("/v1/models", headers=PAGE)
        assert "Access-Control-Allow-Origin" not in answer.headers and answer.headers["Vary"] == "Origin"


async def test_a_star_lets_every_page_in(start):
    async with start(cors_origin=("*",)) as client:
        answer = await client.get("/v1/models", headers=PAGE)
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
