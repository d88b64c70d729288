"""Content-Encoding in both directions, with a cap on what comes out."""

import gzip
import tracemalloc
import zlib

import pytest

from gateway.serving.tensors import InferenceError
from gateway.wire.compression import accepted_encoding, compress, decompress

TEXT = b'{"inputs":[]}' * 100


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(TEXT), "gzip"),
        (gzip.compress(TEXT), " GZIP "),
        (zlib.compress(TEXT), "deflate"),
        (raw_deflate(TEXT), "deflate"),
        (TEXT, ""),
        (TEXT, "identity"),
    ],
)
def test_what_is_taken(body: bytes, encoding: str) -> None:
    assert decompress(body, encoding, len(TEXT)) == TEXT
    assert decompress(memoryview(body), encoding, len(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("body", "encoding", "status", "text"),
    [
        (TEXT, "br", 415, "Content-Encoding 'br' is not supported: use gzip or deflate"),
        (TEXT, "gzip, gzip", 415, "not supported"),
        (TEXT, "gzip", 400, "no valid gzip data"),
        (b"", "gzip", 400, "ends early"),
        (b"", "deflate", 400, "ends early"),
        (gzip.compress(TEXT)[:-1], "gzip", 400, "ends early"),
        (gzip.compress(TEXT)[:-8] + b"12345678", "gzip", 400, "no valid gzip data"),
        (zlib.compress(TEXT)[:-1], "deflate", 400, "ends early"),
        (gzip.compress(TEXT) + b"x", "gzip", 400, "1 bytes behind its gzip data"),
        (gzip.compress(b"") * 1000, "gzip", 400, "behind its gzip data"),
        (gzip.compress(TEXT + b"x"), "gzip", 413, "more than 1300 bytes behind its gzip, the limit"),
        (zlib.compress(TEXT + b"x"), "deflate", 413, "the limit"),
    ],
)
def test_what_is_refused(body: bytes, encoding: str, status: int, text: str) -> None:
    with pytest.raises(InferenceError) as raised:
        decompress(body, encoding, len(TEXT))
    assert raised.value.status == status and text in str(raised.value)


def test_a_bomb_never_unfolds() -> None:
    bomb = gzip.compress(bytes(200_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(InferenceError) as raised:
            decompress(bomb, "gzip", 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert raised.value.status == 413


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip;q=0.5", "gzip"),
        ("GZIP", "gzip"),
        ("gzip;q=0", ""),
        ("gzip; q=0.0, deflate", "deflate"),
        ("br", ""),
        ("identity", ""),
        ("*", ""),
    ],
)
def test_what_a_response_is_encoded_as(header: str, encoding: str) -> None:
    assert accepted_encoding(header) == encoding
    assert decompress(compress(TEXT, encoding), encoding, len(TEXT)) == TEXT


def test_equal_bodies_compress_to_equal_bytes() -> None:
    assert compress(TEXT, "gzip") == compress(TEXT, "gzip")
