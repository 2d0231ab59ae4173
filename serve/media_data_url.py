"""`data:` URLs: the medium itself, written into the request.

data:image/png;base64,iVBORw0KGgo...     what everybody sends
data:,%89PNG%0D%0A...                    the plain form: percent-encoded, the media type left out
"""

from __future__ import annotations

import binascii

from serve.media_limits import Kind, UnfitMediaError, require_kind, require_size

SCHEME = "data:"

_LONGEST_HEADER = 1000
_LINE_ENDS = b"\t\r\n"  # what browsers skip in any URL
_WHITESPACE = b" \t\r\n\f\v"
_URLSAFE = bytes.maketrans(b"-_", b"+/")


def is_inline(url: str) -> bool:
    """Whether a URL is its own content."""
    return url.strip()[: len(SCHEME)].lower() == SCHEME


def decode_data_url(url: str, kind: Kind, limit: int) -> bytes:
    """The bytes in a data URL. Raises UnfitMediaError; nothing larger than `limit` is decoded.

    Base64 may be wrapped into lines, unpadded, or of the URL-safe alphabet.
    """
    header, comma, text = url[len(SCHEME) :].partition(",")
    if not comma or len(header) > _LONGEST_HEADER:  # a list of the parts of millions of characters would take gigabytes
        raise UnfitMediaError("wanted data:TYPE;base64,DATA, found no comma after the type")
    media_type, *options = (part.strip().lower() for part in header.split(";"))
    if media_type:
        require_kind(media_type, kind)
    if not text.isascii():
        raise UnfitMediaError("wanted a data URL in ASCII, found other characters")
    if "base64" in options:
        return _base64_decode(text.encode().translate(None, _WHITESPACE), limit)
    payload = text.encode().translate(None, _LINE_ENDS)
    require_size(_unescaped_size(payload), limit)
    return _percent_decode(payload)


def _base64_decode(payload: bytes, limit: int) -> bytes:
    if b"%" in payload:
        require_size(_unescaped_size(payload) * 3 // 4 - 2, limit)  # up to two bytes are padding
        payload = _percent_decode(payload)
    payload = payload.translate(_URLSAFE, _WHITESPACE).rstrip(b"=")
    require_size(len(payload) * 3 // 4, limit)
    try:
        return binascii.a2b_base64(payload + b"=" * (-len(payload) % 4), strict_mode=True)
    except ValueError as error:
        raise UnfitMediaError("wanted base64, found something else") from error


def _unescaped_size(payload: bytes) -> int:
    return len(payload) - 2 * payload.count(b"%")


def _percent_decode(payload: bytes) -> bytes:
    """Quoted-printable is percent-encoding with "=" for "%", and its decoder is in C: urllib's takes gigabytes here."""
    decoded = binascii.a2b_qp(payload.replace(b"=", b"=3D").replace(b"%", b"="))
    if len(decoded) != _unescaped_size(payload):  # an escape that is none leaves more than the one byte counted for it
        raise UnfitMediaError("wanted percent-encoding, found a % without two hexadecimal digits")
    return decoded
