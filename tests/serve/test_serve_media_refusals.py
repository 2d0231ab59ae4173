"""What is never fetched, and that nothing private is ever connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_upstream import HERE, PICTURE, FakeResolver, Upstream, fetch, refusal


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    async with upstream.server:
        yield upstream


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "'file'"),
        ("ftp://example.com/a.png", "'ftp'"),
        ("gopher://example.com/", "'gopher'"),
        ("javascript:alert(1)", "'javascript'"),
        ("unix:///var/run/docker.sock", "'unix'"),
        ("x" * 99 + "://a", "found the scheme"),
        ("/a.png", "no scheme"),
        ("", "no scheme"),
        ("iVBORw0KGgo=", "no scheme"),
        ("iVBORw0KGgo" * 900, "at most 8190 characters"),
        ("http://" + "a" * 9000, "at most 8190 characters"),
        ("http:///a.png", "a host"),
        ("http://me@example.com/", "user name"),
        ("http://:secret@example.com/", "user name"),
        ("http://example.com:99999/", "wanted a URL"),
        ("http://[::1/", "wanted a URL"),
        ("http://\ud800.example/", "wanted a URL"),
        ("http://good.example\\@evil.example/", "wanted a URL"),
    ],
)
async def test_what_is_no_http_url_is_refused_before_any_look_up(url, why):
    resolver = FakeResolver()
    assert why in await refusal(url, resolver=resolver, **HERE)
    assert not resolver.asked


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://me:secret@127.0.0.1/", "data:image/png;base64,AAAA"]
)
async def test_a_redirect_is_checked_like_the_first_url(upstream, location):
    upstream.redirect("/a", location)
    assert (await refusal(upstream.url("/a"), **HERE)).endswith(", after a redirect.")


PRIVATE_HOSTS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "127。0。0。1",
    "①②⑦.0.0.1",
    "%31%32%37.0.0.1",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[fe80::1%25lo]",
    "[v1.a:b]",
    "localhost",
]


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
async def test_a_private_address_is_refused_however_it_is_spelled(upstream, host):
    why = await refusal(upstream.url("/a.png", host))
    assert why.startswith(("wanted a host on the public internet", "wanted a URL with a valid host"))
    assert not upstream.requests


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["10.0.0.1", "127.0.0.1"],
        ["10.0.0.1", "::1", "127.0.0.1", "fd00:ec2::254"],
        ["::ffff:127.0.0.1"],
    ],
)
async def test_a_name_of_private_addresses_is_refused_without_telling_them(upstream, addresses):
    why = await refusal(upstream.url("/a.png", "name.example"), resolver=FakeResolver(addresses))
    unknown = await refusal("http://name.example/", resolver=FakeResolver(OSError("no such name")))
    assert why == unknown == "wanted a host on the public internet, found none."
    assert not upstream.requests


async def test_the_address_that_was_checked_is_the_one_connected_to(upstream, monkeypatch):
    """A name that changes its address after it was looked up: the second answer is never asked for."""
    resolver = FakeResolver(["8.8.8.8"], ["127.0.0.1"])
    connected: list[Any] = []

    async def connect(_: Any, __: socket.socket, address: Any) -> None:
        connected.append(address[0])
        raise OSError("not in a test")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", connect)
    await refusal(upstream.url("/a.png", "name.example"), resolver=resolver)
    assert (connected, resolver.asked) == (["8.8.8.8"], ["name.example"])
    await refusal(upstream.url("/a.png", "name.example"), resolver=resolver)
    assert (connected, len(resolver.asked)) == (["8.8.8.8"], 2)


async def test_a_redirect_to_a_private_address_is_refused(upstream, monkeypatch):
    """Here the first hop alone passes for public."""
    monkeypatch.setattr("serve.media_address.is_public", lambda address: not upstream.requests)
    upstream.redirect("/a", upstream.url("/secret", "localhost"))
    why = await refusal(upstream.url("/a"))
    assert why == "wanted a host on the public internet, found none, after a redirect."
    assert [request.path for request in upstream.requests] == ["/a"]


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".example", "a b", "h\x00", "xn--\u00fc.example", "xn--0.example"])
async def test_a_host_that_cannot_exist_is_refused(host):
    assert "wanted a URL" in await refusal(f"http://{host}/", resolver=FakeResolver(UnicodeError("label too long")))


ALLOWED = {"allowed_domains": ("Good.example", "bücher.example"), **HERE}


@pytest.mark.parametrize(
    "host", ["good.example", "cdn.good.example", "GOOD.example.", "xn--bcher-kva.example", "bücher.example"]
)
async def test_an_allowed_domain_and_what_is_below_it_are_fetched_from(upstream, host):
    assert await fetch(upstream.url("/a.png", host), resolver=FakeResolver(), **ALLOWED) == PICTURE


@pytest.mark.parametrize(
    "host", ["evil.example", "notgood.example", "good.example.evil.example", "example", "127.0.0.1"]
)
async def test_a_domain_that_is_not_allowed_is_not_even_looked_up(host):
    resolver = FakeResolver()
    why = await refusal(f"http://{host}/a.png", resolver=resolver, **ALLOWED)
    assert why == f"wanted one of the hosts that this server may fetch from, found '{host}'."
    assert not resolver.asked


async def test_a_name_cannot_hide_behind_an_allowed_one():
    """The resolver's C would look up what stands before the NUL."""
    resolver = FakeResolver()
    assert "valid host" in await refusal("http://evil.example\x00.good.example/", resolver=resolver, **ALLOWED)
    assert not resolver.asked


async def test_a_redirect_may_not_leave_the_allowed_domains(upstream):
    upstream.redirect("/out", upstream.url("/a.png", "evil.example"))
    resolver = FakeResolver()
    why = await refusal(upstream.url("/out", "good.example"), resolver=resolver, **ALLOWED)
    assert why.endswith("found 'evil.example', after a redirect.")
    assert resolver.asked == ["good.example"]


async def test_an_allowed_domain_may_still_not_be_private(upstream):
    why = await refusal(upstream.url("/a.png", "good.example"), resolver=FakeResolver(), allowed_domains=("example",))
    assert "public internet" in why
