"""Media by URL: what is fetched, and what servers may do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from fake_upstream import HERE, PARAM, PICTURE, FakeResolver, Upstream, fetch, refusal

from serve.media_fetch import MediaFetcher
from serve.media_limits import MediaLimits


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    async with upstream.server:
        yield upstream


async def test_a_data_url_is_decoded_without_a_connection():
    assert await fetch(" DATA:image/png;base64,AAAA\n") == bytes(3)
    assert "'image/png'" in await refusal("data:image/png;base64,AAAA", "video")
    assert "2 bytes" in await refusal("data:image/png;base64,AAAA", max_bytes_image=2)


async def test_a_fetch_gives_the_bytes_and_tells_nothing_about_us(upstream, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    upstream.answers["/a.png"] = lambda _: web.Response(body=PICTURE, headers={"Set-Cookie": "who=me; Path=/"})
    fetcher = MediaFetcher(MediaLimits(allow_private=True))
    for _ in range(2):
        assert await fetcher.fetch(upstream.url("/a.png?x=%2B#part"), "image", PARAM) == PICTURE
    await fetcher.close()
    await fetcher.close()
    request = upstream.requests[1]
    assert request.raw_path == "/a.png?x=%2B"
    assert set(request.headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding"}
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["User-Agent"].startswith("DGemma")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(upstream, status):
    upstream.redirect("/old", "new?v=1#part", status)
    upstream.redirect("/new", upstream.url("/a.png"), status)
    assert await fetch(upstream.url("/old"), **HERE) == PICTURE
    assert [request.raw_path for request in upstream.requests] == ["/old", "/new?v=1", "/a.png"]


async def test_redirects_end(upstream):
    upstream.redirect("/round", "/round")
    assert await refusal(upstream.url("/round"), **HERE) == "wanted at most 3 redirects, found more."
    assert len(upstream.requests) == 4
    assert "at most 0 redirects" in await refusal(upstream.url("/round"), max_redirects=0, **HERE)


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("image", "image/webp"),
        ("image", "IMAGE/PNG; q=1"),
        ("image", "application/octet-stream"),
        ("image", "binary/octet-stream"),
        ("image", "nonsense"),  # says nothing
        ("video", "video/mp4"),
        ("video", "application/mp4"),
    ],
)
async def test_a_media_type_that_fits_is_taken(upstream, kind, media_type):
    upstream.answers["/a"] = lambda _: web.Response(body=PICTURE, headers={"Content-Type": media_type})
    assert await fetch(upstream.url("/a"), kind, **HERE) == PICTURE


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [("image", "text/html"), ("image", "video/mp4"), ("video", "image/png")],
)
async def test_a_media_type_that_contradicts_the_kind_is_refused(upstream, kind, media_type):
    upstream.answers["/a"] = lambda _: web.Response(body=PICTURE, headers={"Content-Type": media_type})
    assert f"wanted a media type {kind}/*" in await refusal(upstream.url("/a"), kind, **HERE)


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
async def test_an_answer_that_is_no_success_is_refused_with_its_status(upstream, status):
    upstream.answers["/a"] = lambda _: web.Response(status=status)
    assert await refusal(upstream.url("/a"), **HERE) == f"wanted status 200, found {status}."


async def test_a_body_is_cut_off_at_the_limit_whatever_it_announces(upstream):
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(PICTURE)
        return response

    upstream.answers["/endless"] = endless
    assert await refusal(upstream.url("/endless"), max_bytes_image=5000, **HERE) == (
        "wanted at most 5000 bytes, found more."
    )
    assert len(await fetch(upstream.url("/a.png"), max_bytes_image=len(PICTURE), **HERE)) == len(PICTURE)
    assert "2047 bytes" in await refusal(upstream.url("/a.png"), max_bytes_image=len(PICTURE) - 1, **HERE)
    assert await fetch(upstream.url("/a.png"), "image", max_bytes_video=1, **HERE) == PICTURE


async def test_a_compressed_body_is_counted_inflated(upstream):
    def packed(data: bytes) -> Callable[[web.Request], web.Response]:
        return lambda _: web.Response(body=gzip.compress(data), headers={"Content-Encoding": "gzip"})

    upstream.answers |= {"/small": packed(PICTURE), "/bomb": packed(bytes(2**23))}
    assert await fetch(upstream.url("/small"), **HERE) == PICTURE
    assert "1048576 bytes" in await refusal(upstream.url("/bomb"), max_bytes_image=2**20, **HERE)


async def _raw_server(answer: bytes) -> asyncio.Server:
    """A server that reads a request, writes the given bytes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "found"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "an answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nplain", "found"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", "an answer in HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "an answer in HTTP"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n", "wanted a URL"),
        (b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n", "wanted"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "found 302"),
    ],
)
async def test_an_upstream_that_misbehaves_is_the_urls_fault(answer, why):
    async with await _raw_server(answer) as server:
        port = server.sockets[0].getsockname()[1]
        assert why in await refusal(f"http://127.0.0.1:{port}/a.png", **HERE)


async def test_a_dead_upstream_is_refused_without_its_address():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://name.example:{unused.getsockname()[1]}/"
        assert await refusal(url, resolver=FakeResolver(), **HERE) == "wanted a server that answers, found none."


async def test_an_https_server_without_a_trusted_certificate_is_refused(upstream):
    assert "TLS" in await refusal(upstream.url("/a.png").replace("http:", "https:"), **HERE)


@pytest.mark.parametrize("part", ["answer", "body", "redirect"])
async def test_one_clock_runs_for_the_whole_fetch(upstream, part):
    async def slow(request: web.Request) -> web.StreamResponse:
        if part == "redirect":
            await asyncio.sleep(0.08)
            return web.Response(status=302, headers={"Location": "/slow"})
        response = web.StreamResponse()
        if part == "body":
            await response.prepare(request)
        await asyncio.sleep(5)
        return response

    upstream.answers["/slow"] = slow
    why = await refusal(upstream.url("/slow"), timeout_image=0.2, max_redirects=50, **HERE)
    assert why == "wanted an answer within 0.2 s, found none."


async def test_a_client_that_goes_away_ends_the_fetch(upstream):
    upstream.answers["/slow"] = lambda _: asyncio.sleep(5)
    with pytest.raises(TimeoutError):  # the test's own, not turned into a refusal
        await asyncio.wait_for(fetch(upstream.url("/slow"), **HERE), 0.1)
