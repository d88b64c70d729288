"""Connections of the fast lane within the test's own process, where their insides can be looked at."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from gateway.routing.state import Route
from gateway.serving.explicit import ExplicitVersions
from gateway.wire.app import data_plane
from gateway.wire.fast_lane import FastLane
from gateway.wire.models import Models
from gateway.wire.oip_json import Limits
from gateway.wire.readiness import Readiness
from tests.serving.fake_engine import ALWAYS_IN_THREADS, requests
from tests.serving.test_inference import Desk

BODY_LIMIT = 1024 * 1024
DEADLINE_S = 0.3
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}).encode()


def ask(query: str = "", *lines: str, body: bytes = BODY) -> bytes:
    """One request; with a query it goes through ASGI."""
    first = (f"POST /v2/models/digits/infer{query} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}")
    return "\r\n".join((*first, *lines, "", "")).encode() + body


class Connection(FastLane):
    head_s = body_s = write_s = half_closed_s = DEADLINE_S


class ServedLane:
    """Route `digits` of one fake engine. With `holding`, it runs when it is let go."""

    def __init__(
        self, *, holding: bool, keep_alive_s: int, app: Any, routes: tuple[Route, ...], **options: Any
    ) -> None:
        self._threads = ThreadPoolExecutor(1) if holding else None
        if holding:
            options["loop_budget_ns"] = ALWAYS_IN_THREADS
        self.desk = Desk(*routes, threads=self._threads, **options)
        self.hold = threading.Event()
        self.engine.gate = self.hold if holding else None
        explicit = cast(ExplicitVersions, self.desk.inference._explicit)
        models = Models(self.desk.live, explicit, cast(Any, None))
        readiness = Readiness(self.desk.live)
        plane = data_plane(self.desk.inference, models, readiness, Limits(body_bytes=BODY_LIMIT))
        self.lane = plane.lane
        self.made: list[Connection] = []
        self.state = ServerState()
        self.config = uvicorn.Config(
            app or plane,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=keep_alive_s,
        )
        self.config.load()
        self.port = 0
        self._clients: list[Client] = []

    @property
    def engine(self) -> Any:
        return self.desk.engines["1"]

    @property
    def arm(self) -> Any:
        return self.desk.live.snapshot.routes["digits"].arms["stable"]

    @property
    def counted(self) -> dict[int, int]:
        """Code → requests that version 1 was asked."""
        return requests(self.desk.writer, "digits", "stable", "1")

    def protocol(self) -> Connection:
        made = Connection(self.lane, config=self.config, server_state=self.state, app_state={})
        self.made.append(made)
        return made

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)

    async def client(self, data: bytes = b"") -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        client.writer.write(data)
        return client

    async def end(self) -> None:
        self.hold.set()
        for client in self._clients:
            client.writer.transport.abort()
            with suppress(ConnectionError):
                await client.writer.wait_closed()
        if self._threads is not None:
            self._threads.shutdown()


@asynccontextmanager
async def served_lane(
    *routes: Route, holding: bool = False, keep_alive_s: int = 5, app: Any = None, **options: Any
) -> AsyncIterator[ServedLane]:
    """`options` are the engines' (see `fake_engine.batcher`), and their signature."""
    served = ServedLane(holding=holding, keep_alive_s=keep_alive_s, app=app, routes=routes, **options)
    server = await asyncio.get_running_loop().create_server(served.protocol, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        async with server:
            yield served
            await served.end()
            await served.until(lambda: not served.state.connections)
    finally:
        served.hold.set()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next one."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
            return int(head[9:12]), head, await self.reader.readexactly(int(length.split(b":")[1]))

    async def status(self) -> int:
        """Of the next answer, whose body is passed over."""
        status, _, _ = await self.answer()
        return status

    async def ends(self) -> bool:
        """Whether nothing more comes before the server closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    def reset(self) -> None:
        """Closes so that the server is told that all is lost."""
        made = self.writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


def nothing_is_left(served: ServedLane) -> bool:
    """Of connections that are closed: no timer that keeps one in memory."""
    return not any(
        timer is not None and not timer.cancelled() and timer.when() > made.loop.time()
        for made in served.made
        for timer in (made._timer, made._write_timer, made._idle_timer, made.timeout_keep_alive_task)
    )
