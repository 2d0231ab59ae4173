"""The OpenAPI document says what the server does; version and metadata say what it is."""

from __future__ import annotations

import importlib.metadata
import json
import re

import pytest
from test_serve_errors import error_of

from serve import about, completion_schema, schema
from serve.routes import ROUTES


async def document_of(client) -> dict:
    response = await client.get("/openapi.json")
    assert (response.status, response.content_type) == (200, "application/json")
    return await response.json()


async def test_every_route_is_described_and_every_reference_leads_somewhere(client):
    document = await document_of(client)
    assert document["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(route.method, re.sub(r":[^}]*", "", route.path)) for route in ROUTES}
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("name", "kind", "neutral"),
    [
        ("ChatRequest", schema.ChatRequest, schema.NEUTRAL),
        ("CompletionRequest", completion_schema.CompletionRequest, completion_schema.NEUTRAL),
    ],
)
async def test_a_request_is_described_with_all_that_is_taken(client, name, kind, neutral):
    described = (await document_of(client))["components"]["schemas"][name]
    assert set(described["properties"]) == {*kind.__struct_fields__, *neutral, *schema.HARMLESS}
    assert described["additionalProperties"] is False
    assert {"type": "null"} in described["properties"]["max_tokens"]["anyOf"], "null counts as absent"
    assert described["properties"]["logit_bias"] == {"enum": [{}, None]}


async def test_keys_are_described_where_they_are_asked_for(start):
    async with start() as client:
        assert "security" not in json.dumps(await document_of(client))
    async with start(api_key=("k",)) as client:
        response = await client.get("/openapi.json", headers={"Authorization": "Bearer k"})
        paths = (await response.json())["paths"]
        assert paths["/v1/models"]["get"]["security"] == [{"key": []}]
        assert "security" not in paths["/health"]["get"]


async def test_version_and_metadata_have_nims_shapes(client):
    version = await (await client.get("/v1/version")).json()
    assert set(version) == {"release", "api"}
    metadata = await (await client.get("/v1/metadata")).json()
    assert metadata["version"] == version["release"]
    assert metadata["modelInfo"][0] == {"shortName": "demo", "modelUrl": "demo"}


def test_a_source_folder_that_is_not_installed_has_the_version_of_its_project(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", about.release())
    monkeypatch.setattr(about, "_PROJECT", tmp_path / "pyproject.toml")
    assert about.release() == "unknown"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"])
async def test_what_comes_later_is_a_404_in_openais_form(client, path):
    error = await error_of(await client.post(path, json={}), 404)
    assert (error["code"], error["param"]) == ("unknown_url", None) and path in error["message"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_a_wrong_method_is_told_the_right_one(client, route):
    wrong = "PUT" if route.method == "POST" else "DELETE"
    response = await client.request(wrong, route.path.replace("{id:.+}", "demo"))
    assert (await error_of(response, 405))["code"] == "method_not_allowed"
    assert route.method in response.headers["Allow"].split(",")
