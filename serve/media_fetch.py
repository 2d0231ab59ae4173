"""The bytes of an image or video that a request names by URL.

    data:   decoded where it stands
    http:   checked, fetched, checked again; each redirect is such a fetch of its own
    other   refused

Whoever may send requests chooses what this server connects to. It therefore reaches the public internet alone
(`media_address`), says who it is and nothing more (no cookies, no credentials, no proxy of the environment), and stops
reading at the limit. Whatever goes wrong, upstream's fault or not, is a 400 about the URL.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from serve.errors import InvalidRequestError
from serve.media_address import PrivateAddressError, intranet_socket, public_socket
from serve.media_data_url import decode_data_url, is_inline
from serve.media_limits import Kind, MediaLimits, UnfitMediaError, require_kind, require_size

_LONGEST_URL = 8190  # aiohttp's own bound on a request line: servers take no more
_HOST = re.compile(r"[a-z0-9._:-]+")
"""A name or an address. The resolver's C would stop at a NUL: "evil.example\\0.good.example" is not in good.example."""
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_ACCEPT: Final[dict[Kind, str]] = {
    "image": "image/png, image/jpeg, image/gif, image/webp, */*;q=0.1",
    "video": "video/mp4, video/webm, */*;q=0.1",
}
_HEADERS = {"User-Agent": "DGemma (media of a chat request)", "Accept-Encoding": "identity"}


class MediaFetcher:
    """Fetches media within limits; lives as long as the application. The connections open with the first fetch."""

    def __init__(self, limits: MediaLimits, resolver: AbstractResolver | None = None) -> None:
        self._limits = limits
        self._resolver = resolver
        self._domains = tuple(_host(URL.build(scheme="http", host=domain)) for domain in limits.allowed_domains)
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str, kind: Kind, param: str) -> bytes:
        """The bytes behind a URL. Raises InvalidRequestError about `param`."""
        url, limit, seconds = url.strip(), self._limits.max_bytes(kind), self._limits.timeout(kind)
        try:
            if is_inline(url):
                return decode_data_url(url, kind, limit)
            async with asyncio.timeout(seconds):
                return await self._follow(_parse(url), kind, limit)
        except (UnfitMediaError, TimeoutError) as error:
            late = f"wanted an answer within {seconds:g} s, found none"
            why = f"The {kind} URL cannot be used: {late if isinstance(error, TimeoutError) else error}."
            raise InvalidRequestError(why, param=param, code=f"invalid_{kind}_url") from error

    async def close(self) -> None:
        """Closes the connections; fetches under way fail."""
        if self._session is not None:
            await self._session.close()

    async def _follow(self, url: URL, kind: Kind, limit: int) -> bytes:
        """The medium at the end of the redirects."""
        for hop in range(self._limits.max_redirects + 1):
            try:
                found = await self._hop(url, kind, limit)
            except UnfitMediaError as error:
                if not hop:
                    raise
                raise UnfitMediaError(f"{error}, after a redirect") from error
            if isinstance(found, bytes):
                return found
            url = found
        raise UnfitMediaError(f"wanted at most {self._limits.max_redirects} redirects, found more")

    async def _hop(self, url: URL, kind: Kind, limit: int) -> bytes | URL:
        """The medium at a URL, or the URL that it redirects to."""
        self._require_allowed(url)
        headers = {"Accept": _ACCEPT[kind]}
        try:
            async with self._open().get(url, headers=headers, allow_redirects=False) as response:
                if response.status in _REDIRECTS and "Location" in response.headers:
                    return url.join(_parse(response.headers["Location"]))
                return await _read(response, kind, limit)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnfitMediaError(_reason(error)) from error

    def _require_allowed(self, url: URL) -> None:
        if url.scheme not in ("http", "https"):
            found = f"the scheme {url.scheme[:20]!r}" if url.scheme else "no scheme"
            raise UnfitMediaError(f"wanted an http, https or data URL, found {found}")
        if not url.raw_host:
            raise UnfitMediaError("wanted a URL with a host, found none")
        if url.user is not None or url.password is not None:
            raise UnfitMediaError("wanted a URL without user name and password, found one with")
        host = _host(url)
        if not _HOST.fullmatch(host):
            raise UnfitMediaError("wanted a URL with a valid host, found something else")
        if self._domains and not any(host == domain or host.endswith(f".{domain}") for domain in self._domains):
            raise UnfitMediaError(f"wanted one of the hosts that this server may fetch from, found {host[:80]!r}")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=self._resolver,
                    use_dns_cache=False,
                    socket_factory=intranet_socket if self._limits.allow_private else public_socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                timeout=aiohttp.ClientTimeout(total=None),  # one clock runs for all hops, in `fetch`
                trust_env=False,
            )
        return self._session


async def _read(response: aiohttp.ClientResponse, kind: Kind, limit: int) -> bytes:
    """The body. aiohttp inflates a compressed one piece by piece, so what is counted is what memory holds."""
    if response.status != 200:
        raise UnfitMediaError(f"wanted status 200, found {response.status}")
    if "Content-Type" in response.headers:
        require_kind(response.content_type.lower(), kind)
    require_size(response.content_length or 0, limit)
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        require_size(len(body), limit)
    return bytes(body)


def _parse(url: str) -> URL:
    if len(url) > _LONGEST_URL:
        raise UnfitMediaError(f"wanted a data URL, or another of at most {_LONGEST_URL} characters, found {len(url)}")
    try:
        return URL(url)
    except ValueError as error:
        raise UnfitMediaError("wanted a URL, found something else") from error


def _host(url: URL) -> str:
    """The host as DNS compares it: ASCII, lower case, without the root's dot."""
    return (url.raw_host or "").rstrip(".")


def _reason(error: Exception) -> str:
    """What a client may know of a failed connection. Whether a name resolves to a private address or not at all
    reads the same, so that nobody learns the names of a private network."""
    match error:
        case aiohttp.ClientConnectorDNSError() | aiohttp.ClientConnectorError(os_error=PrivateAddressError()):
            return "wanted a host on the public internet, found none"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "wanted a trusted TLS connection, found none"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError():
            return "wanted the whole of it, found a connection that broke off"
        case ValueError():
            return "wanted a URL with a valid host, found something else"
        case aiohttp.ClientResponseError():
            return "wanted an answer in HTTP, found something else"
    return "wanted a server that answers, found none"
