"""What differs between the protocols over HTTP: the form of a request, of its answer and of an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gateway.serving.tensors import InferenceError, InferRequest, InferResponse
from gateway.wire.oip_binary import Buffer
from gateway.wire.oip_json import Limits, decode_infer, encode_error, encode_infer

HeaderMap = Mapping[bytes, bytes]
"""Lower-case name → value."""
Headers = list[tuple[bytes, bytes]]
Encode = Callable[[InferResponse], tuple[Headers, Sequence[Buffer]]]
"""An answer's own headers, and the parts of its body. Raises `InferenceError` where it cannot be written."""

JSON_HEADERS: Headers = [(b"content-type", b"application/json")]
HEADER_LENGTH = b"inference-header-content-length"
_BINARY = (b"content-type", b"application/octet-stream")


class Codec(Protocol):
    """One protocol's form of a request and of its answer."""

    def decode(self, body: Buffer, headers: HeaderMap) -> tuple[InferRequest, Encode]:
        """The request, and how its answer is written. May be called in a thread. Raises `InferenceError`."""

    def encode_error(self, error: InferenceError) -> bytes:
        """A JSON body."""


class OpenInference:
    """The Open Inference Protocol v2."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def decode(self, body: Buffer, headers: HeaderMap) -> tuple[InferRequest, Encode]:
        """See `Codec.decode`."""
        length = headers.get(HEADER_LENGTH)
        if length is None:
            return decode_infer(body, None, self._limits), encode_open
        if not length.isdigit() or len(length) > 18:
            raise InferenceError(400, "Inference-Header-Content-Length must be a number of bytes")
        return decode_infer(body, int(length), self._limits), encode_open

    def encode_error(self, error: InferenceError) -> bytes:
        """See `Codec.encode_error`."""
        return encode_error(str(error))


def encode_open(response: InferResponse) -> tuple[Headers, Sequence[Buffer]]:
    """The Open Inference Protocol's `Encode`."""
    encoded, header_length = encode_infer(response)
    if header_length is None:
        return JSON_HEADERS, encoded
    return [_BINARY, (HEADER_LENGTH, b"%d" % header_length)], encoded
