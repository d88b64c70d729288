"""From a request's bytes to the data plane and from its answer to bytes, for every way that HTTP takes here.

What may take milliseconds goes to a thread: `is_large_request` and `is_quick_answer` tell.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence

from gateway.serving.inference import Answer
from gateway.serving.tensors import InferenceError, InferRequest
from gateway.wire.compression import accepted_encoding, compress, decompress
from gateway.wire.oip_binary import Buffer
from gateway.wire.oip_json import Limits, decode_infer, encode_error, encode_infer

HeaderMap = Mapping[bytes, bytes]
"""Lower-case name → value."""
Headers = list[tuple[bytes, bytes]]
Encoded = tuple[int, Headers, Sequence[Buffer]]
"""Status, headers that say what the body is, and the parts of the body."""

OFF_LOOP_BYTES = 256 * 1024
"""JSON of this size takes milliseconds to decode: longer than a thread costs, and other requests wait."""
OFF_LOOP_ELEMENTS = 16 * 1024
"""So many numbers take a millisecond to write as JSON."""
COMPRESSED_FROM_BYTES = 1024
_JSON_NUMBER_BYTES = 4
"""At least: with the comma behind it. A shorter answer is not worth a thread."""
JSON_HEADERS: Headers = [(b"content-type", b"application/json")]
_BINARY = (b"content-type", b"application/octet-stream")
_HEADER_LENGTH = b"inference-header-content-length"
_NO_HEADER_VALUE = re.compile(rb"[\x00-\x1f\x7f]")


def is_large_request(headers: HeaderMap, body: Buffer) -> bool:
    if b"content-encoding" in headers:
        return True
    if len(body) < OFF_LOOP_BYTES:
        return False
    length = headers.get(_HEADER_LENGTH, b"")
    if not length.isdigit() or len(length) > 6 or int(length) >= OFF_LOOP_BYTES:
        return True
    # Binary data costs nothing but where each element has a length of its own.
    return b"BYTES" in bytes(body[: int(length)])


def decode(headers: HeaderMap, body: Buffer, limits: Limits) -> InferRequest:
    """Raises `InferenceError`."""
    encoding = headers.get(b"content-encoding")
    if encoding:
        body = decompress(body, encoding.decode("latin-1"), limits.body_bytes)
    return decode_infer(body, _header_length(headers), limits)


def too_large(size: int, limit: int) -> InferenceError:
    return InferenceError(
        413, f"the body has at least {size} bytes, the limit is {limit}: send less, or raise --body-limit"
    )


async def decode_large(headers: HeaderMap, body: Buffer, limits: Limits) -> InferRequest:
    """`decode` in a thread."""
    return await asyncio.to_thread(decode, headers, body, limits)


def encode(answer: Answer) -> Encoded:
    """A Content-Length and `turnout_headers` are still to come."""
    error = answer.error
    if error is None and answer.response is not None:
        try:
            encoded, header_length = encode_infer(answer.response)
        except InferenceError as unencodable:
            error = unencodable
        else:
            if header_length is None:
                return 200, JSON_HEADERS, encoded
            return 200, [_BINARY, (_HEADER_LENGTH, b"%d" % header_length)], encoded
    assert error is not None
    headers = JSON_HEADERS
    if error.retry_after_s is not None:
        headers = [(b"retry-after", b"%d" % error.retry_after_s), *headers]
    return error.status, headers, [encode_error(str(error))]


def is_quick_answer(headers: HeaderMap, answer: Answer) -> bool:
    """Whether `encode` takes microseconds, and nothing comes behind it."""
    if answer.response is None:
        return True
    for output in answer.response.outputs:
        count = output.array.size
        if count >= OFF_LOOP_ELEMENTS and (not output.binary or output.datatype == "BYTES"):
            return False
        if count * _JSON_NUMBER_BYTES >= COMPRESSED_FROM_BYTES and b"accept-encoding" in headers:
            return False
    return True


async def encode_large(headers: HeaderMap, answer: Answer) -> Encoded:
    """`encode` in a thread, and compressed where the request's headers accept it."""
    return await asyncio.to_thread(_encode_large, headers, answer)


def _encode_large(headers: HeaderMap, answer: Answer) -> Encoded:
    status, out, body = encode(answer)
    encoding = accepted_encoding(headers.get(b"accept-encoding", b"").decode("latin-1"))
    if not encoding or size(body) < COMPRESSED_FROM_BYTES:
        return status, out, body
    squeezed = compress(b"".join(body), encoding)
    return status, [*out, (b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding")], [squeezed]


def turnout_headers(answer: Answer) -> Headers:
    """Who answered, as far as that was decided."""
    out: Headers = [(b"turnout-revision", answer.revision.encode())]
    served = answer.served
    if served is not None:
        # A registry may call a version anything; names of variants and digests have an alphabet.
        version = _NO_HEADER_VALUE.sub(b"?", served.pin.version.encode())
        out += (
            (b"turnout-version", version),
            (b"turnout-variant", served.labels.variant.encode()),
            (b"turnout-digest", served.digest.encode()),
        )
    return out


def size(body: Sequence[Buffer]) -> int:
    """Bytes."""
    return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in body)


def _header_length(headers: HeaderMap) -> int | None:
    text = headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise InferenceError(400, "Inference-Header-Content-Length must be a number of bytes")
    return int(text)
