"""Infer requests over ASGI: reads the body, decodes, asks the data plane, writes the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from gateway.serving.inference import OVERRIDE_HEADER, Answer, Inference
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse
from gateway.wire.compression import accepted_encoding, compress, decompress
from gateway.wire.oip_binary import Buffer
from gateway.wire.oip_json import Limits, decode_infer, encode_error, encode_infer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Encode = Callable[[InferResponse], tuple[Headers, Sequence[Any]]]
"""An answer's own headers, and the buffers of its body. Raises `InferenceError` where it cannot be written."""

OFF_LOOP_BYTES = 256 * 1024
"""Bodies of this size take milliseconds to decode: longer than a thread costs, and other requests wait."""
COMPRESSED_FROM_BYTES = 1024
WATCHED_AFTER_S = 0.05
"""From then on a request looks whether its client is still there: most are answered long before."""
JSON = b"application/json"
_BINARY = b"application/octet-stream"


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


class Codec(Protocol):
    """One protocol's form of a request and of its answer."""

    def decode(self, body: Buffer, headers: dict[bytes, bytes]) -> tuple[InferRequest, Encode]:
        """The request, and how its answer is written. May be called in a thread. Raises `InferenceError`."""

    def encode_error(self, error: InferenceError) -> bytes:
        """A JSON body."""


class OpenInference:
    """The Open Inference Protocol v2."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def decode(self, body: Buffer, headers: dict[bytes, bytes]) -> tuple[InferRequest, Encode]:
        return decode_infer(body, _header_length(headers), self._limits), self._encode

    def encode_error(self, error: InferenceError) -> bytes:
        return encode_error(str(error))

    @staticmethod
    def _encode(response: InferResponse) -> tuple[Headers, Sequence[Any]]:
        encoded, header_length = encode_infer(response)
        if header_length is None:
            return [(b"content-type", JSON)], [encoded]
        length = (b"inference-header-content-length", b"%d" % header_length)
        return [(b"content-type", _BINARY), length], encoded


class InferEndpoint:
    """Answers one infer request as `await endpoint(scope, receive, send, route, version)`."""

    def __init__(self, inference: Inference, limits: Limits, codec: Codec | None = None) -> None:
        self._inference = inference
        self._limits = limits
        self._codec: Codec = OpenInference(limits) if codec is None else codec

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        route: str,
        version: str | None,
        variant: str | None = None,
    ) -> None:
        """A `variant` is one that the request chooses by its path, as others do by their header."""
        started_ns = time.perf_counter_ns()
        headers = dict(scope["headers"])
        if variant is not None:
            headers[OVERRIDE_HEADER] = variant.encode()
        arrived, done = _arrival()
        encode: Encode | None = None
        try:
            request, encode = await self._decode(route, headers, receive)
        except InferenceError as error:
            answer = self._inference.refuse(route, error, done, started_ns)
        except ClientGone:
            return
        else:
            answer = self._inference.start(route, version, request, headers.get, done, started_ns)
        await self._answer(answer, encode, arrived, headers, receive, send)

    async def refuse(
        self, scope: Scope, receive: Receive, send: Send, route: str, error: InferenceError
    ) -> None:
        """Counts and answers a request that is not worth decoding."""
        arrived, done = _arrival()
        answer = self._inference.refuse(route, error, done, time.perf_counter_ns())
        await self._answer(answer, None, arrived, dict(scope["headers"]), receive, send)

    async def _answer(
        self,
        answer: Answer,
        encode: Encode | None,
        arrived: asyncio.Future[None],
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
    ) -> None:
        code = 499
        try:
            await _wait(arrived, receive)
            status, out, body = self._encode(answer, encode)
            accepted = headers.get(b"accept-encoding")
            if accepted is not None and _size(body) >= COMPRESSED_FROM_BYTES:
                out, body = await _compressed(out, body, accepted_encoding(accepted.decode("latin-1")))
            await _send(send, status, out, body)
            code = status
        except ClientGone:
            return
        finally:
            answer.cancel()
            answer.finish(code)

    async def _decode(
        self, route: str, headers: dict[bytes, bytes], receive: Receive
    ) -> tuple[InferRequest, Encode]:
        body = await _read_body(headers, receive, self._limits.body_bytes)
        encoding = headers.get(b"content-encoding", b"")
        if not encoding and len(body) < OFF_LOOP_BYTES:
            return self._codec.decode(body, headers)
        return await asyncio.to_thread(self._decode_large, route, body, encoding.decode("latin-1"), headers)

    def _decode_large(
        self, route: str, body: Buffer, encoding: str, headers: dict[bytes, bytes]
    ) -> tuple[InferRequest, Encode]:
        if encoding:
            body = decompress(body, encoding, self._limits.body_bytes)
        request, encode = self._codec.decode(body, headers)
        self._inference.prepare(route, request)
        return request, encode

    def _encode(self, answer: Answer, encode: Encode | None) -> tuple[int, Headers, Sequence[Any]]:
        out: Headers = [(b"turnout-revision", answer.revision.encode())]
        served = answer.served
        if served is not None:
            out += (
                (b"turnout-version", served.pin.version.encode()),
                (b"turnout-variant", served.labels.variant.encode()),
                (b"turnout-digest", served.digest.encode()),
            )
        error = answer.error
        if error is None and answer.response is not None:
            assert encode is not None
            try:
                own, body = encode(answer.response)
            except InferenceError as unencodable:
                error = unencodable
            else:
                return 200, [*out, *own], body
        assert error is not None
        if error.retry_after_s is not None:
            out.append((b"retry-after", b"%d" % error.retry_after_s))
        return error.status, [*out, (b"content-type", JSON)], [self._codec.encode_error(error)]


def _arrival() -> tuple[asyncio.Future[None], Callable[[Answer], None]]:
    """A future, and the call-back that ends it."""
    arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(_: Answer) -> None:
        if not arrived.done():
            arrived.set_result(None)

    return arrived, done


async def _wait(arrived: asyncio.Future[None], receive: Receive) -> None:
    """Raises `ClientGone` where the client goes first: what has not run yet for it need not."""
    if arrived.done():
        return
    watching: list[asyncio.Task[None]] = []

    async def watch() -> None:
        if (await receive())["type"] == "http.disconnect" and not arrived.done():
            arrived.set_exception(ClientGone())

    timer = asyncio.get_running_loop().call_later(
        WATCHED_AFTER_S, lambda: watching.append(asyncio.ensure_future(watch()))
    )
    try:
        await arrived
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()


async def _read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """Raises `InferenceError` (413) as soon as the body is over the limit."""
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(int(announced), limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(size, limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(size: int, limit: int) -> InferenceError:
    return InferenceError(
        413, f"the body has at least {size} bytes, the limit is {limit}: send less, or raise --body-limit"
    )


def _header_length(headers: dict[bytes, bytes]) -> int | None:
    text = headers.get(b"inference-header-content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise InferenceError(400, "Inference-Header-Content-Length must be a number of bytes")
    return int(text)


async def _compressed(headers: Headers, body: Sequence[Any], encoding: str) -> tuple[Headers, Sequence[Any]]:
    if not encoding:
        return headers, body
    squeezed = await asyncio.to_thread(compress, b"".join(body), encoding)
    return [*headers, (b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding")], [squeezed]


def _size(body: Sequence[Any]) -> int:
    return sum(len(part) if isinstance(part, bytes) else memoryview(part).nbytes for part in body)


async def _send(send: Send, status: int, headers: Headers, body: Sequence[Any]) -> None:
    headers.append((b"content-length", b"%d" % _size(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in body[:-1]:
        await send({"type": "http.response.body", "body": bytes(part), "more_body": True})
    await send({"type": "http.response.body", "body": bytes(body[-1])})
