"""The one channel between the supervisor and a worker: calls in both directions over a socket pair."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

log = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")
FRAME_LIMIT_BYTES = 64 * 1024 * 1024
Handler = Callable[..., Awaitable[Any]]


class ChannelClosed(Exception):
    """The other side is gone."""


class CallFailed(Exception):
    """The other side refused or failed; the text is its reason.

    `status` is for failures that a client of the data plane gets to see, 0 otherwise.
    """

    def __init__(self, message: str, *, status: int = 0, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class _Frame(msgspec.Struct, array_like=True):
    call: int
    """Positive: a call. Negative: the answer to that call. Zero: a call that wants no answer."""
    method: str = ""
    params: dict[str, Any] = {}
    error: str | None = None
    status: int = 0
    retry_after_s: int | None = None


class Channel:
    """Both ends are alike: each serves `handlers` and may `call` those of the other side.

    Handlers run concurrently, each in a task of its own. The channel ends when the other process does.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._calls = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(_Frame)

    async def run(self, end: socket.socket) -> None:
        """Serves until the other side closes. Everybody who still waits for an answer gets `ChannelClosed`."""
        reader, self._writer = await asyncio.open_unix_connection(sock=end)
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > FRAME_LIMIT_BYTES:
                    raise ChannelClosed(f"a frame of {length} bytes")
                self._receive(self._decoder.decode(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._end()

    async def call(self, method: str, *, timeout_s: float | None = None, **params: Any) -> Any:
        """The other side's result. Raises `CallFailed`, `ChannelClosed`, `TimeoutError`."""
        number = next(self._calls)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(_Frame(number, method, params))
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._waiting.pop(number, None)

    def notify(self, method: str, **params: Any) -> None:
        """A call without an answer; lost if the other side is gone."""
        if self._writer is not None:
            self._send(_Frame(0, method, params))

    def close(self) -> None:
        """Ends the channel; the other side sees it and ends as well."""
        if self._writer is not None:
            self._writer.close()

    def _send(self, frame: _Frame) -> None:
        if self._writer is None or self._writer.is_closing():
            raise ChannelClosed("the other process is gone")
        encoded = self._encoder.encode(frame)
        self._writer.write(_LENGTH.pack(len(encoded)) + encoded)

    def _receive(self, frame: _Frame) -> None:
        if frame.call < 0:
            future = self._waiting.get(-frame.call)
            if future is None or future.done():
                return
            if frame.error is None:
                future.set_result(frame.params.get("result"))
            else:
                future.set_exception(
                    CallFailed(frame.error, status=frame.status, retry_after_s=frame.retry_after_s)
                )
            return
        task = asyncio.create_task(self._handle(frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, frame: _Frame) -> None:
        answer = _Frame(-frame.call)
        try:
            answer.params = {"result": await self._handlers[frame.method](**frame.params)}
        except CallFailed as error:
            answer.error, answer.status, answer.retry_after_s = str(error), error.status, error.retry_after_s
        except Exception as error:
            # A bug in a handler must reach the caller, who would wait for ever, and the log.
            log.exception("channel: %s failed", frame.method)
            answer.error = f"{frame.method} failed: {type(error).__name__}: {error}"
        if frame.call:
            try:
                self._send(answer)
            except ChannelClosed:
                return

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for task in self._tasks:
            task.cancel()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ChannelClosed("the other process is gone"))
