"""Infer requests over ASGI: reads the body, decodes, asks the data plane, writes the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from gateway.serving.inference import Answer, Inference
from gateway.serving.tensors import InferenceError, InferRequest
from gateway.wire.compression import accepted_encoding, compress, decompress
from gateway.wire.oip_json import Limits, decode_infer, encode_error, encode_infer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

OFF_LOOP_BYTES = 256 * 1024
"""Bodies of this size take milliseconds to decode: longer than a thread costs, and other requests wait."""
COMPRESSED_FROM_BYTES = 1024
WATCHED_AFTER_S = 0.05
"""From then on a request looks whether its client is still there: most are answered long before."""
_JSON = b"application/json"
_BINARY = b"application/octet-stream"


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


class InferEndpoint:
    """Answers one infer request as `await endpoint(scope, receive, send, route, version)`."""

    def __init__(self, inference: Inference, limits: Limits) -> None:
        self._inference = inference
        self._limits = limits

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, route: str, version: str | None
    ) -> None:
        started_ns = time.perf_counter_ns()
        headers = dict(scope["headers"])
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(_: Answer) -> None:
            if not arrived.done():
                arrived.set_result(None)

        try:
            request = await self._decode(headers, receive)
        except InferenceError as error:
            answer = self._inference.refuse(route, error, done, started_ns)
        except ClientGone:
            return
        else:
            answer = self._inference.start(route, version, request, headers.get, done, started_ns)
        code = 499
        try:
            await _wait(arrived, receive)
            status, out, body = self._encode(answer, headers)
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

    async def _decode(self, headers: dict[bytes, bytes], receive: Receive) -> InferRequest:
        body = await _read_body(headers, receive, self._limits.body_bytes)
        encoding = headers.get(b"content-encoding", b"")
        header_length = _header_length(headers)
        if not encoding and len(body) < OFF_LOOP_BYTES:
            return decode_infer(body, header_length, self._limits)
        return await asyncio.to_thread(self._decode_large, body, encoding.decode("latin-1"), header_length)

    def _decode_large(self, body: bytes, encoding: str, header_length: int | None) -> InferRequest:
        if encoding:
            return decode_infer(
                decompress(body, encoding, self._limits.body_bytes), header_length, self._limits
            )
        return decode_infer(body, header_length, self._limits)

    def _encode(self, answer: Answer, headers: dict[bytes, bytes]) -> tuple[int, Headers, Sequence[Any]]:
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
            try:
                encoded, header_length = encode_infer(answer.response)
            except InferenceError as unencodable:
                error = unencodable
            else:
                if header_length is None:
                    return 200, [*out, (b"content-type", _JSON)], [encoded]
                out += (
                    (b"content-type", _BINARY),
                    (b"inference-header-content-length", b"%d" % header_length),
                )
                return 200, out, encoded
        assert error is not None
        if error.retry_after_s is not None:
            out.append((b"retry-after", b"%d" % error.retry_after_s))
        return error.status, [*out, (b"content-type", _JSON)], [encode_error(str(error))]


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
