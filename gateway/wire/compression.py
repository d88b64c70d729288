"""Content-Encoding: what clients may send compressed, and get back so."""

from __future__ import annotations

import gzip
import zlib

from gateway.serving.tensors import InferenceError

ENCODINGS = ("gzip", "deflate")

_LEVEL = 1
"""The fastest: a client on a slow link gains most of what there is to gain, at a fifth of the CPU of 9."""
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def decompress(body: bytes | memoryview, encoding: str, limit: int) -> bytes | memoryview:
    """`body` with its Content-Encoding undone, at most `limit` bytes; "" and identity give it back as it is.

    Raises `InferenceError`: 415 for another encoding, 413 where more than `limit` bytes come out, which is
    noticed before they are made, 400 where the data is damaged, ends early, or has something behind its end.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    window_bits = _WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise InferenceError(
            415, f"Content-Encoding {encoding[:40]!r} is not supported: use {' or '.join(ENCODINGS)}"
        )
    if encoding == "deflate" and not _has_zlib_header(body):
        # The header is part of the standard, but clients that leave it out have been around for ever.
        window_bits = -zlib.MAX_WBITS
    stream = zlib.decompressobj(window_bits)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InferenceError(400, f"the body is no valid {encoding} data: {error}") from None
    if len(plain) > limit:
        raise InferenceError(
            413,
            f"the body has more than {limit} bytes behind its {encoding}, the limit: "
            "send less, or raise --body-limit",
        )
    if not stream.eof:
        raise InferenceError(400, f"the body's {encoding} data ends early")
    if stream.unused_data:
        # More members are legal in gzip, but no client writes them, and millions of empty ones cost minutes.
        raise InferenceError(400, f"the body has {len(stream.unused_data)} bytes behind its {encoding} data")
    return plain


def accepted_encoding(accept_encoding: str) -> str:
    """The encoding for a response to this Accept-Encoding: gzip, deflate, or "" for none.

    Only what is named counts: `*` and an absent header get the plain body, which costs nobody CPU.
    """
    named = {}
    for item in accept_encoding.lower().split(","):
        name, _, parameters = item.partition(";")
        named[name.strip()] = parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return next((encoding for encoding in ENCODINGS if named.get(encoding)), "")


def compress(body: bytes, encoding: str) -> bytes:
    """`body` in an encoding that `accepted_encoding` returned; "" gives it back as it is."""
    if encoding == "gzip":
        return gzip.compress(body, _LEVEL, mtime=0)
    return zlib.compress(body, _LEVEL) if encoding == "deflate" else body


def _has_zlib_header(body: bytes | memoryview) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
