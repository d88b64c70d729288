"""Clients that do not read what they asked for, or do not stop asking."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from tests.wire.lane import Client, ServedLane, ask, nothing_is_left, served_lane

BOTH_WAYS = pytest.mark.parametrize("query", ["", "?"], ids=["lane", "asgi"])


@pytest.mark.parametrize("query", ["", "?"])
async def test_pipelined_requests_are_read_as_they_are_answered(query: str) -> None:
    """A client that does not stop: what waits is one read at most, however many answers there were."""
    async with served_lane() as served:
        client = await served.client()
        request, waiting, answered = ask(query), 0, 0
        writing = asyncio.ensure_future(_write_for_ever(client, request * 100))
        while answered < 5000:
            assert await client.status() == 200
            answered += 1
            waiting = max(waiting, len(served.made[0].pipeline))
        writing.cancel()
        assert waiting <= 256 * 1024 / len(request) + 1


async def _write_for_ever(client: Client, data: bytes) -> None:
    while True:
        client.writer.write(data)
        await client.writer.drain()


@BOTH_WAYS
@pytest.mark.parametrize("line", ["", "Connection: close"])
async def test_a_client_that_never_reads_is_closed(query: str, line: str) -> None:
    """At the write deadline; also where the close has begun and only a little is unread."""
    rows = {"name": "x", "shape": [40_000, 1], "datatype": "FP32", "data": [1] * 40_000}
    large = json.dumps({"inputs": [rows], "parameters": {"binary_data_output": True}}).encode()
    async with served_lane() as served:
        client = await served.client()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        writing = asyncio.ensure_future(
            _write_for_ever(client, ask(query, *[line][: bool(line)], body=large))
        )
        await served.until(lambda: served.state.total_requests)
        await served.until(lambda: not served.state.connections)
        writing.cancel()
        await served.until(lambda: not served.state.tasks)
        assert served.arm._in_flight == 0
        assert nothing_is_left(served)


async def reluctant(served: ServedLane, rows: int, query: str, *lines: str) -> socket.socket:
    """A client that asked for so many rows and reads nothing, with little room in the kernel's buffers."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", served.port))
    await served.until(lambda: served.state.connections)
    served.made[0].transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    tensor = {"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": [1.5] * rows}
    await loop.sock_sendall(client, ask(query, *lines, body=json.dumps({"inputs": [tensor]}).encode()))
    return client


@pytest.mark.parametrize(("query", "lines"), [("", []), ("?", []), ("?", ["Connection: close"])])
async def test_a_close_does_not_wait_for_ever(query: str, lines: list[str]) -> None:
    """What is unread is too little for the transport to tell: the connection was idle, or is to be closed."""
    async with served_lane(keep_alive_s=1) as served:
        with await reluctant(served, 6_000, query, *lines):
            (made,) = served.made
            await served.until(made.transport.is_closing)
            assert 0 < made.transport.get_write_buffer_size() < 64 * 1024
            await served.until(lambda: not served.state.connections)


async def test_a_client_that_stops_to_read_as_it_is_closed() -> None:
    async with served_lane() as served:
        with await reluctant(served, 60_000, "?", "Connection: close") as client:
            (made,) = served.made
            await served.until(made.transport.is_closing)
            # So that what is left does not fit into the kernel's buffers.
            made.transport.set_write_buffer_limits(high=64 * 1024, low=60 * 1024)
            assert made.transport.get_write_buffer_size() > 64 * 1024
            while made.transport.get_write_buffer_size() > 58 * 1024:
                await asyncio.get_running_loop().sock_recv(client, 4096)
            await served.until(lambda: not served.state.connections)
            assert nothing_is_left(served)
