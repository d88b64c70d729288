"""Infer requests over ASGI: reads the body, decodes, asks the data plane, writes the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from gateway.serving.answer import Answer
from gateway.serving.inference import OVERRIDE_HEADER, Inference
from gateway.serving.tensors import InferenceError, InferRequest
from gateway.wire import answers
from gateway.wire.codec import Codec, Encode, HeaderMap, Headers, OpenInference
from gateway.wire.oip_binary import Buffer
from gateway.wire.oip_json import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WATCHED_AFTER_S = 0.05
"""From then on a request looks whether its client is still there: most are answered long before."""


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


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
        headers: HeaderMap,
        receive: Receive,
        send: Send,
    ) -> None:
        code = 499
        try:
            await _wait(arrived, receive)
            status, out, body = await self._encode(answer, encode, headers)
            await _send(send, status, [*answers.turnout_headers(answer.revision, answer.served), *out], body)
            code = status
        except ClientGone:
            return
        finally:
            answer.cancel()
            answer.finish(code)

    async def _decode(self, route: str, headers: HeaderMap, receive: Receive) -> tuple[InferRequest, Encode]:
        body = await _read_body(headers, receive, self._limits.body_bytes)
        if answers.is_large_request(headers, body):
            return await asyncio.to_thread(self._decode_large, route, headers, body)
        return answers.decode(self._codec, headers, body, self._limits.body_bytes)

    def _decode_large(self, route: str, headers: HeaderMap, body: bytes) -> tuple[InferRequest, Encode]:
        request, encode = answers.decode(self._codec, headers, body, self._limits.body_bytes)
        self._inference.prepare(route, request)
        return request, encode

    async def _encode(self, answer: Answer, encode: Encode | None, headers: HeaderMap) -> answers.Encoded:
        response = answer.response
        if response is None or encode is None:
            return answers.encode_error(self._codec, answer.error)
        if answers.is_quick_response(headers, response):
            return answers.encode(self._codec, encode, response)
        return await asyncio.to_thread(answers.encode_large, self._codec, encode, response, headers)


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


async def _read_body(headers: HeaderMap, receive: Receive, limit: int) -> bytes:
    """Raises `InferenceError` (413) as soon as the body is over the limit."""
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        raise answers.too_large(int(announced), limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise answers.too_large(limit + 1, limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _send(send: Send, status: int, headers: Headers, body: Sequence[Buffer]) -> None:
    headers.append((b"content-length", b"%d" % answers.size(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in body[:-1]:
        await send({"type": "http.response.body", "body": bytes(part), "more_body": True})
    await send({"type": "http.response.body", "body": bytes(body[-1])})
