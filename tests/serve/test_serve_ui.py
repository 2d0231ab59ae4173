"""The chat page: one file, nothing from elsewhere, open where the API is not."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """The ids of a page's elements, the addresses it names, and its script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.script = ""
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action") and value]

    def handle_data(self, data: str) -> None:
        self.script += data if self._tag == "script" else ""


async def test_the_page_is_one_file_that_may_only_ask_its_own_server(client):
    response = await client.get("/ui")
    assert (response.status, response.content_type) == (200, "text/html")
    text = await response.text()
    assert Page(text).addresses == [] and "://" not in text
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy


async def test_its_script_names_elements_that_are_there(client):
    page = Page(await (await client.get("/ui")).text())
    named = set(re.findall(r'\$\("(\w+)"\)', page.script))
    assert named == set(page.ids)
    assert "innerHTML" not in page.script, "what the model says must stay text"


async def test_the_front_leads_to_it(client):
    response = await client.get("/", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (302, "ui")
    assert (await client.get("/")).url.path == "/ui"


@pytest.mark.parametrize("path", ["/", "/ui"])
async def test_it_is_open_where_keys_are_asked_for(start, path):
    async with start(api_key=("secret",)) as client:
        assert (await client.get(path)).status == 200
        assert (await client.get("/v1/models")).status == 401
