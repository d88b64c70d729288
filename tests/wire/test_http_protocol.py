"""Connections whose requests never become whole, or are no HTTP: over real sockets, with short deadlines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.wire.http_protocol import HEAD_BYTES, HttpProtocol

HEAD_S, BODY_S = 0.15, 0.2


class _Impatient(HttpProtocol):
    head_s = HEAD_S
    body_s = BODY_S


async def echo(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """The length of the body; a body that does not come whole is no answer's business."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    body = json.dumps({"method": scope["method"], "path": scope["path"], "bytes": size}).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(
        echo, http=_Impatient, ws="none", lifespan="off", log_config=None, access_log=False
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Impatient(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.started = time.monotonic()

    @classmethod
    async def connected(cls, port: int, data: bytes = b"") -> _Client:
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        client.writer.write(data)
        return client

    async def rest(self) -> bytes:
        """All until the server closes."""
        try:
            async with asyncio.timeout(5):
                return await self.reader.read()
        finally:
            self.writer.close()

    async def answer(self) -> tuple[int, bytes]:
        """One response with a Content-Length."""
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            body = await self.reader.readexactly(int(lengths[0].split(b":")[1]))
        return int(head.split()[1]), body


POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"


async def test_a_silent_connection_is_closed(port: int) -> None:
    client = await _Client.connected(port)
    assert await client.rest() == b""
    assert HEAD_S <= time.monotonic() - client.started < 2


async def test_half_a_head_is_refused_however_slowly_it_comes(port: int) -> None:
    client = await _Client.connected(port, b"GET / HTTP/1.1\r\n")
    reading = asyncio.ensure_future(client.rest())
    while not reading.done():
        client.writer.write(b"X: y\r\n")
        await asyncio.wait([reading], timeout=0.03)
    answer = reading.result()
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "error": "the rest of the request did not come in time"
    }


async def test_half_a_body_is_refused(port: int) -> None:
    client = await _Client.connected(port, POST + b"12345")
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_large_body_may_take_its_time(port: int) -> None:
    client = await _Client.connected(port, POST.replace(b"10", b"1000000"))
    began = time.monotonic()
    for _ in range(10):
        client.writer.write(bytes(100_000))
        await client.writer.drain()
        await asyncio.sleep(BODY_S / 3)
    assert time.monotonic() - began > 2 * BODY_S
    assert json.loads((await client.answer())[1])["bytes"] == 1_000_000
    client.writer.close()


async def test_a_whole_request_is_in_no_hurry(port: int) -> None:
    """Between requests the time-out is the keep-alive's."""
    client = await _Client.connected(port, POST + b"0123456789")
    assert (await client.answer())[0] == 200
    await asyncio.sleep(2 * max(HEAD_S, BODY_S))
    client.writer.write(POST + b"0123456789")
    assert (await client.answer())[0] == 200
    client.writer.close()


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
async def test_an_offer_to_upgrade_is_passed_over(port: int, offer: bytes) -> None:
    """Java's client makes one with its first request, body and all, and keeps the connection."""
    offered = POST.replace(
        b"\r\n\r\n",
        b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAM\r\n\r\n" % offer,
    )
    client = await _Client.connected(port, offered + b"01234")
    client.writer.write(b"56789" + POST + b"0123456789")
    for _ in range(2):
        status, body = await client.answer()
        assert status == 200
        assert json.loads(body) == {"method": "POST", "path": "/x", "bytes": 10}
    client.writer.close()


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"NONSENSE\r\n\r\n", 400, "the request is no valid HTTP"),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "CONNECT is not for this server"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * (HEAD_BYTES + 1) + b"\r\n\r\n", 431, "more than 65536 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 1_000 + b"\r\n", 431, "1000 headers, the limit is 256"),
        (POST.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), 400, "no valid HTTP"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "no valid HTTP"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400, "no valid HTTP"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            400,
            "no valid HTTP",
        ),
    ],
)
async def test_what_is_no_http_gets_the_protocols_own_error(
    port: int, data: bytes, status: int, text: str
) -> None:
    client = await _Client.connected(port, data)
    code, body = await client.answer()
    assert code == status
    assert text in json.loads(body)["error"]
    client.writer.close()
