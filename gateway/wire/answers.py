"""From a request's bytes to the data plane and from its answer to bytes, for every way that HTTP takes here.

What may take milliseconds goes to a thread: `is_large_request` and `is_quick_response` tell.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from gateway.serving.live import ServedArm
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse
from gateway.wire.codec import HEADER_LENGTH, JSON_HEADERS, Codec, Encode, HeaderMap, Headers
from gateway.wire.compression import accepted_encoding, compress, decompress
from gateway.wire.oip_binary import Buffer

log = logging.getLogger(__name__)

Encoded = tuple[int, Headers, Sequence[Buffer]]
"""Status, headers that say what the body is, and the parts of the body."""

OFF_LOOP_BYTES = 256 * 1024
"""JSON of this size takes milliseconds to decode: longer than a thread costs, and other requests wait."""
OFF_LOOP_ELEMENTS = 16 * 1024
"""So many numbers take a millisecond to write as JSON."""
COMPRESSED_FROM_BYTES = 1024
REVISION_HEADER = b"turnout-revision"
SMALL_ELEMENTS = 256
"""Fewer make an answer that is written in microseconds, and not worth to compress."""
_NO_HEADER_VALUE = re.compile(rb"[\x00-\x1f\x7f]")
_NO_ANSWER = InferenceError(500, "the model gave no answer")


def is_large_request(headers: HeaderMap, body: Buffer) -> bool:
    """Whether `decode` is for a thread."""
    if b"content-encoding" in headers:
        return True
    if len(body) < OFF_LOOP_BYTES:
        return False
    length = headers.get(HEADER_LENGTH, b"")
    if not length.isdigit() or len(length) > 6 or int(length) >= OFF_LOOP_BYTES:
        return True
    # Binary data costs nothing but where each element has a length of its own.
    return b"BYTES" in bytes(body[: int(length)])


def decode(codec: Codec, headers: HeaderMap, body: Buffer, limit: int) -> tuple[InferRequest, Encode]:
    """The request, and how its answer is written. Raises `InferenceError`."""
    encoding = headers.get(b"content-encoding")
    if encoding:
        body = decompress(body, encoding.decode("latin-1"), limit)
    return codec.decode(body, headers)


def too_large(size: int, limit: int) -> InferenceError:
    return InferenceError(
        413, f"the body has at least {size} bytes, the limit is {limit}: send less, or raise --body-limit"
    )


def is_quick_response(headers: HeaderMap, response: InferResponse) -> bool:
    """Whether `encode` takes microseconds, and nothing comes behind it; `headers` are the request's."""
    for output in response.outputs:
        count = output.array.size
        if count >= OFF_LOOP_ELEMENTS and (not output.binary or output.datatype == "BYTES"):
            return False
        if count >= SMALL_ELEMENTS and b"accept-encoding" in headers:
            return False
    return True


def encode(codec: Codec, encode: Encode, response: InferResponse) -> Encoded:
    """An answer, or why it cannot be written."""
    try:
        return 200, *encode(response)
    except InferenceError as unencodable:
        return encode_error(codec, unencodable)
    except Exception as error:
        # What an engine gave is no tensor of its datatype; the client waits for an answer all the same.
        log.exception("an answer of route %r cannot be written", response.route)
        reason = f"the model's answer cannot be used: {type(error).__name__}"
        return encode_error(codec, InferenceError(500, reason))


def encode_large(codec: Codec, encode_: Encode, response: InferResponse, headers: HeaderMap) -> Encoded:
    """For a thread: as `encode`, and compressed where the request's headers accept it."""
    status, out, body = encode(codec, encode_, response)
    encoding = accepted_encoding(headers.get(b"accept-encoding", b"").decode("latin-1"))
    if not encoding or size(body) < COMPRESSED_FROM_BYTES:
        return status, out, body
    squeezed = compress(b"".join(body), encoding)
    return status, [*out, (b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding")], [squeezed]


def encode_error(codec: Codec, error: InferenceError | None) -> Encoded:
    error = error or _NO_ANSWER
    headers = JSON_HEADERS
    if error.retry_after_s is not None:
        headers = [(b"retry-after", b"%d" % error.retry_after_s), *headers]
    return error.status, headers, [codec.encode_error(error)]


def turnout_headers(revision: str, served: ServedArm | None) -> Headers:
    """Who answered, as far as that was decided."""
    out: Headers = [(REVISION_HEADER, revision.encode())]
    if served is not None:
        # A registry may call a version anything; names of variants and digests have an alphabet.
        version = _NO_HEADER_VALUE.sub(b"?", served.pin.version.encode())
        out += (
            (b"turnout-version", version),
            (b"turnout-variant", served.labels.variant.encode()),
            (b"turnout-digest", served.digest.encode()),
        )
    return out


def header_lines(headers: Headers) -> bytes:
    """As they are written behind a status line."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def size(body: Sequence[Buffer]) -> int:
    """Bytes."""
    return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in body)
