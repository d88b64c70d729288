"""An HTTP server on loopback that misbehaves as it is told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json as json_format
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    method: str
    target: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    declared_bytes: int | None = None
    """A Content-Length other than the body's: the connection then ends early."""
    stall: bool = False
    """Headers and body are sent, and then nothing more until the server is closed."""
    silent: bool = False
    """Not even a status line is sent."""
    garbage: bool = False
    """Only the body is sent, which need not be HTTP."""


class FaultServer:
    """`async with FaultServer() as server: server.answer("/path", status=503)`.

    Several answers for one path are given in their order, the last for ever. The longest prefix of the path
    wins; other paths are 404. The host in `url` can be changed to reach it under another name.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.port = 0
        self._answers: dict[str, list[Answer]] = {}
        self._server: asyncio.Server | None = None
        self._closing = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url_as(self, host: str) -> str:
        return f"http://{host}:{self.port}"

    def answer(self, path: str, *, json: object = None, body: bytes = b"", **options: object) -> None:
        data = json_format.dumps(json).encode() if json is not None else body
        self._answers.setdefault(path, []).append(Answer(body=data, **options))  # type: ignore[arg-type]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._closing.set()
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await _read(reader)
        self.asked.append(asked)
        answer = self._next(asked.target.partition("?")[0])
        if answer.silent:
            await self._closing.wait()
        writer.write(answer.body if answer.garbage else _encoded(answer))
        await writer.drain()
        if answer.stall:
            await self._closing.wait()

    def _next(self, path: str) -> Answer:
        fitting = [prefix for prefix in self._answers if path.startswith(prefix)]
        if not fitting:
            return Answer(status=404)
        queue = self._answers[max(fitting, key=len)]
        return queue.pop(0) if len(queue) > 1 else queue[0]


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method=method, target=target, headers=headers, body=body)


def _encoded(answer: Answer) -> bytes:
    length = len(answer.body) if answer.declared_bytes is None else answer.declared_bytes
    headers = {"Content-Length": str(length), "Connection": "close", **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body
