"""Infer requests over ASGI: reads the body, decodes, asks the data plane, writes the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from gateway.serving.answer import Answer
from gateway.serving.inference import Inference
from gateway.serving.tensors import InferenceError, InferRequest
from gateway.wire import answers
from gateway.wire.answers import HeaderMap, Headers
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
            encoded = answers.encode_quickly(headers, answer)
            status, out, body = encoded or await answers.encode_large(headers, answer)
            await _send(send, status, [*answers.turnout_headers(answer), *out], body)
            code = status
        except ClientGone:
            return
        finally:
            answer.cancel()
            answer.finish(code)

    async def _decode(self, headers: HeaderMap, receive: Receive) -> InferRequest:
        body = await _read_body(headers, receive, self._limits.body_bytes)
        if answers.is_large_request(headers, body):
            return await answers.decode_large(headers, body, self._limits)
        return answers.decode(headers, body, self._limits)


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
