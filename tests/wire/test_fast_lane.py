"""What goes by the fast lane, and what a connection leaves behind it: nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from tests import states
from tests.serving.fake_engine import requests
from tests.wire.lane import (
    BODY,
    BODY_LIMIT,
    DEADLINE_S,
    ServedLane,
    ask,
    nothing_is_left,
    served_lane,
)

BOTH_WAYS = pytest.mark.parametrize("query", ["", "?"], ids=["lane", "asgi"])
CHUNKED = ask("", "Transfer-Encoding: chunked").replace(b"Content-Length: %d\r\n" % len(BODY), b"")
IN_CHUNKS = CHUNKED.removesuffix(BODY) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"


class NoApp:
    """Answers 299, which nothing else does, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        await send({"type": "http.response.start", "status": 299, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def served() -> AsyncIterator[ServedLane]:
    async with served_lane(app=NoApp()) as made:
        yield made


PLAIN = {
    "plain": ask(),
    "with headers": ask("", "Accept: */*", "Content-Type: application/json", "turnout-key: a"),
    "kept alive": ask("", "Connection: Keep-Alive"),
    "no JSON": ask(body=b"{"),
    "empty": ask(body=b""),
    "unknown route": ask().replace(b"digits", b"nobody"),
    "a version": ask().replace(b"digits", b"digits/versions/1"),
    "an encoding": ask("", "Content-Encoding: br"),
    "folded into lower case": ask().replace(b"Host", b"host").replace(b"Content-Length", b"content-length"),
}


@pytest.mark.parametrize("data", [*PLAIN.values(), IN_CHUNKS], ids=[*PLAIN, "chunked"])
async def test_goes_by_the_lane(served: ServedLane, data: bytes) -> None:
    """By the parser on a new connection and where it comes in pieces, by its lines afterwards."""
    client = await served.client(data)
    first = await client.status()
    read = served.lane.known
    heads: list[Any] = []
    served.lane.known = lambda head: heads.append(read(head)) or heads[-1]  # type: ignore[method-assign]
    client.writer.write(data)
    assert await client.status() == first
    assert [head is not None for head in heads] == [data is not IN_CHUNKS]
    for piece in (data[:40], data[40:-1], data[-1:]):
        client.writer.write(piece)
        await client.writer.drain()
        await asyncio.sleep(0)
    assert await client.status() == first
    client.close()
    assert served.config.loaded_app.calls == 0
    assert first != 299


OTHERS = {
    "a query": ask("?"),
    "no host": ask().replace(b"Host", b"Ghost"),
    "two hosts": ask("", "Host: b"),
    "a header twice": ask("", "X: a", "X: b"),
    "to be closed": ask("", "Connection: close"),
    "HTTP/1.0": ask().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "waits for 100": ask("", "Expect: 100-continue"),
    "PUT": ask().replace(b"POST", b"PUT"),
    "an announced body over the limit": ask(body=bytes(BODY_LIMIT + 1)),
    "escapes": ask().replace(b"digits", b"%64igits"),
    "no name": ask().replace(b"digits", b".."),
    "absolute form": ask().replace(b"/v2", b"http://a/v2"),
    "another path": LIVE,
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
async def test_goes_to_the_application(served: ServedLane, data: bytes) -> None:
    client = await served.client(data)
    assert await client.status() == 299
    other = await served.client(ask())
    assert await other.status() == 200
    other.writer.write(data)
    assert await other.status() == 299
    assert served.config.loaded_app.calls == 2


async def test_what_comes_behind_a_request_under_way_goes_to_the_application() -> None:
    async with served_lane(app=NoApp(), holding=True) as served:
        client = await served.client(ask() + ask())
        await served.until(lambda: served.engine.entered.is_set())
        assert served.config.loaded_app.calls == 0
        served.hold.set()
        assert [await client.status(), await client.status()] == [200, 299]
        client.writer.write(ask())
        assert await client.status() == 200


@BOTH_WAYS
async def test_a_client_that_goes_is_499(query: str) -> None:
    """By a reset at once, by a close after the while in which it may be reading yet."""
    async with served_lane(holding=True) as served:
        leaving = [await served.client(ask(query)) for _ in range(2)]
        await served.until(lambda: served.arm._in_flight == 2)
        leaving[0].reset()
        leaving[1].close()
        await served.until(lambda: served.arm._in_flight == 0)
        assert served.counted == {499: 2}
        served.hold.set()
        client = await served.client(ask())
        assert await client.status() == 200
        assert served.counted == {200: 1, 499: 2}


@pytest.mark.parametrize("queries", ["", "?", ["", ""], ["?", ""], ["", "?"], ["", "", "?"]])
async def test_a_client_that_closes_its_half_gets_its_answers(queries: list[str] | str) -> None:
    queries = [queries] if isinstance(queries, str) else queries
    async with served_lane(holding=True) as served:
        client = await served.client(b"".join(map(ask, queries)))
        client.writer.write_eof()
        await served.until(lambda: has_seen_the_end(served))
        served.hold.set()
        assert [await client.status() for _ in queries] == [200] * len(queries)
        assert await client.ends()
        assert served.counted == {200: len(queries)}


@BOTH_WAYS
async def test_a_client_that_closed_its_half_may_read_slowly(query: str) -> None:
    async with served_lane() as served:
        client = await served.client()
        await served.until(lambda: served.state.connections)
        (made,) = served.made
        made.write_s = 100 * DEADLINE_S
        made.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        rows = {"name": "x", "shape": [60_000, 1], "datatype": "FP32", "data": [1.5] * 60_000}
        client.writer.write(ask(query, body=json.dumps({"inputs": [rows]}).encode()))
        client.writer.write_eof()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await served.until(lambda: made.transport.is_closing() and made.transport.get_write_buffer_size())
        await asyncio.sleep(2 * DEADLINE_S)
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await client.status() == 200


@BOTH_WAYS
@pytest.mark.parametrize("rest", [ask()[:30], ask()[:-1], IN_CHUNKS[:-2]])
async def test_half_a_request_behind_a_whole_one_and_half_a_close(query: str, rest: bytes) -> None:
    async with served_lane(holding=True) as served:
        client = await served.client(ask(query) + rest)
        client.writer.write_eof()
        await served.until(lambda: has_seen_the_end(served))
        served.hold.set()
        assert await client.status() == 200
        assert await client.ends()


@pytest.mark.parametrize("rest", [b"", ask()[:30], ask()[:-1]])
async def test_half_a_close_with_nothing_to_answer(served: ServedLane, rest: bytes) -> None:
    client = await served.client(rest)
    client.writer.write_eof()
    assert await client.ends()
    await served.until(lambda: not served.state.connections)


@pytest.mark.parametrize("first", ["", "?"])
@pytest.mark.parametrize("second", ["", "?", None])
@pytest.mark.parametrize("noise", [b"", b"\r\n"])
async def test_an_idle_connection_is_closed(first: str, second: str | None, noise: bytes) -> None:
    """Whichever way its last answers went, and with an empty line behind them."""
    async with served_lane(keep_alive_s=1) as served:
        client = await served.client(ask(first))
        assert await client.status() == 200
        if second is not None:
            client.writer.write(ask(second))
            assert await client.status() == 200
        client.writer.write(noise)
        assert await client.ends()
        assert nothing_is_left(served)


async def test_a_connection_is_idle_behind_the_rest_of_a_refused_body() -> None:
    async with served_lane(keep_alive_s=1) as served:
        for query in ("", "?"):
            body = bytes(BODY_LIMIT * 2)
            data = ask(query, "Transfer-Encoding: chunked").split(b"Content-Length")[0]
            data += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (len(body), body)
            client = await served.client(data)
            assert await client.status() == 413
            client.writer.write(b"\r\n0\r\n\r\n")
            assert await client.ends()


async def test_a_body_whose_framing_breaks_as_it_is_refused(served: ServedLane) -> None:
    """One answer, not two."""
    head = CHUNKED.removesuffix(BODY)
    broken = b"%x\r\n%s\r\n2\r\nab\r\nxyz\r\n" % (BODY_LIMIT, bytes(BODY_LIMIT))
    client = await served.client(head + broken)
    code = await client.status()
    assert await client.ends()
    assert requests(served.desk.writer, "digits", "", "") == ({} if code == 400 else {413: 1})


async def test_chunks_of_two_bytes_take_no_more_memory_than_their_sum(served: ServedLane) -> None:
    client = await served.client(CHUNKED.removesuffix(BODY) + b"2\r\n  \r\n" * 100_000)
    await served.until(lambda: served.made and len(served.made[0]._body) == 200_000)
    client.close()


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_nothing_is_left_of_connections_that_go_at_any_moment(how: str) -> None:
    """Cut after each few bytes of a conversation; every arm is idle behind it, and no task or timer is left."""
    conversation = ask() + ask("?") + IN_CHUNKS + ask() + LIVE
    async with served_lane() as served:
        for at in range(0, len(conversation), 23):
            client = await served.client(conversation[:at])
            await client.writer.drain()
            await asyncio.sleep(0.001 * (at % 3))
            getattr(client, how)()
        await served.until(lambda: not served.state.connections and not served.state.tasks)
        assert served.arm._in_flight == 0
        assert nothing_is_left(served)
        assert set(served.counted) <= {200, 499}


@BOTH_WAYS
async def test_a_body_that_comes_byte_by_byte(query: str) -> None:
    """In time it is answered, else refused; what was answered before it does not matter."""
    async with served_lane() as served:
        client = await served.client(ask())
        assert await client.status() == 200
        for byte in ask(query):
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert await client.status() == 200
        client.writer.write(ask(query, body=bytes(10_000))[:-9_999])
        refusal = asyncio.ensure_future(client.status())
        while not refusal.done():
            client.writer.write(b" ")
            await asyncio.wait([refusal], timeout=0.01)
        assert refusal.result() == 408
        assert await client.ends()


async def test_a_client_that_goes_while_its_request_is_decoded() -> None:
    """In a thread, since it is large: it is counted, and not run."""
    rows = {"name": "x", "shape": [60_000, 1], "datatype": "FP32", "data": [1.5] * 60_000}
    async with served_lane() as served:
        client = await served.client(ask(body=json.dumps({"inputs": [rows]}).encode()))
        await served.until(lambda: served.state.tasks)
        client.reset()
        await served.until(lambda: not served.state.connections)
        await served.until(lambda: not served.state.tasks)
        assert (
            sum(requests(served.desk.writer, "digits", "", "").values()) + sum(served.counted.values()) == 1
        )


async def test_the_name_of_a_version_cannot_split_an_answer() -> None:
    """A registry may call it anything."""
    version = "1\r\nx-evil: 1\r\n\r\n\x00\x7f\u0085ü"
    split = states.route({"stable 1": 100})
    stable = replace(split.variants["stable"], pin=states.pin("1", version=version))
    async with served_lane() as served:
        served.desk.live.swap(states.in_force(replace(split, variants={"stable": stable})))
        for query in ("", "?", ""):
            client = await served.client(ask(query))
            async with asyncio.timeout(10):
                head = await client.reader.readuntil(b"\r\n\r\n")
                body = await client.reader.readexactly(int(head.split(b"content-length: ")[1].split()[0]))
            assert b"\r\nturnout-version: 1??x-evil: 1????" in head
            assert json.loads(body)["model_version"] == version


@BOTH_WAYS
async def test_a_reset_of_an_idle_connection_leaves_nothing(query: str) -> None:
    async with served_lane() as served:
        client = await served.client(ask(query))
        assert await client.status() == 200
        await served.until(lambda: not served.state.tasks)
        client.reset()
        await served.until(lambda: not served.state.connections)
        assert nothing_is_left(served)


async def test_a_thousand_pipelined_requests(served: ServedLane) -> None:
    """Some go by the lane: the first of a read, where nothing waits."""
    client = await served.client(ask() * 1000)
    assert {await client.status() for _ in range(1000)} == {200, 299}


async def test_a_thousand_pipelined_offers_to_upgrade(served: ServedLane) -> None:
    client = await served.client(ask("", "Connection: Upgrade", "Upgrade: h2c") * 1000)
    assert {await client.status() for _ in range(1000)} == {200, 299}


async def test_an_offer_to_upgrade_keeps_what_else_it_said() -> None:
    async with served_lane() as served:
        client = await served.client(ask("", "Connection: close, Upgrade", "Upgrade: h2c"))
        assert await client.status() == 200
        assert await client.ends()


def has_seen_the_end(served: ServedLane) -> bool:
    """Or will not before it has answered, since requests wait."""
    return any(made._last_words is not None or made.pipeline for made in served.made)
