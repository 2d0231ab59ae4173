"""Data URLs: every way people write them, and nothing decoded that is malformed or too large."""

from __future__ import annotations

import base64
from urllib.parse import quote_from_bytes

import pytest
from fake_upstream import PICTURE
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.media_data_url import decode_data_url
from serve.media_limits import UnfitMediaError


def decode(url: str, limit: int = 10_000) -> bytes:
    return decode_data_url(url, "image", limit)


def refusal(url: str, limit: int = 10_000) -> str:
    with pytest.raises(UnfitMediaError) as caught:
        decode(url, limit)
    return str(caught.value)


ENCODED = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{ENCODED}",
        f"data:;base64,{ENCODED}",
        f"DATA:Image/PNG;BASE64,{ENCODED}",
        f"data:image/png;charset=utf-8;base64,{ENCODED}",
        f"data:application/octet-stream;base64,{ENCODED}",
        f"data:image/png; base64, {ENCODED}\n",
        "data:image/png;base64," + base64.encodebytes(PICTURE).decode().replace("\n", "\r\n"),
        "data:image/png;base64," + base64.urlsafe_b64encode(PICTURE).decode(),
        "data:image/png;base64," + ENCODED.rstrip("="),
        "data:image/png;base64," + ENCODED.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
        "data:image/png," + quote_from_bytes(PICTURE),
        "data:," + "".join(f"%{byte:02x}" for byte in PICTURE),
    ],
)
def test_a_data_url_is_decoded_however_it_is_written(url):
    assert decode(url) == PICTURE


@settings(derandomize=True, deadline=None, database=None)
@given(st.binary(max_size=40), st.text("=_+-!. a", max_size=4))
def test_percent_encoding_is_undone_whatever_the_bytes(data, safe):
    url = "data:image/png," + quote_from_bytes(data, safe)
    assert decode(url) == data


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:", "no comma"),
        ("data:" + ";" * 1001 + ",AAAA", "no comma"),
        ("data:image/png;base64,AAAAA", "wanted base64"),
        ("data:image/png;base64,AA*A", "wanted base64"),
        ("data:image/png;base64,AA=AAA", "wanted base64"),
        ("data:image/png;base64,AAé=", "ASCII"),
        ("data:image/png;base64,\ud800", "ASCII"),
        ("data:image/png,%zz", "percent-encoding"),
        ("data:image/png,a%%41", "percent-encoding"),
        ("data:image/png,%4", "percent-encoding"),
        ("data:image/png,%", "percent-encoding"),
        ("data:text/html;base64,AAAA", "found 'text/html'"),
        ("data:video/mp4;base64,AAAA", "found 'video/mp4'"),
    ],
)
def test_a_malformed_data_url_is_refused(url, why):
    assert why in refusal(url)


def test_a_data_url_is_held_to_the_limit_before_it_is_decoded(monkeypatch):
    assert len(decode("data:;base64," + "A" * 400, limit=300)) == 300
    assert len(decode("data:," + "%41" * 300, limit=300)) == 300
    monkeypatch.setattr("binascii.a2b_base64", None)
    monkeypatch.setattr("binascii.a2b_qp", None)
    assert refusal("data:;base64," + "A" * 404, limit=300) == "wanted at most 300 bytes, found more"
    assert refusal("data:," + "%41" * 301, limit=300) == "wanted at most 300 bytes, found more"
    assert "300 bytes" in refusal("data:;base64," + "%41" * 900, limit=300)
