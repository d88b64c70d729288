"""One request in every way that its bytes may reach a gateway's code.

A target without a query may go by the fast lane: its head is read by the parser on a new connection, and line by
line on one that has answered already. With a query, which changes no answer, it goes through ASGI.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from tests.wire.raw_connection import LIVE, RawConnection

WARMING = (
    b"POST /v2/models/number/infer HTTP/1.1\r\nHost: gateway\r\nContent-Length: 78\r\n\r\n"
    b'{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[0,0,0,0]}]}'
)


@dataclass(frozen=True)
class Sent:
    """One request as it is written."""

    id: str
    body: bytes
    route: str = "number"
    """With `/versions/V`, where one is asked for."""
    lines: tuple[str, ...] = ()
    version: str = "1.1"
    hosts: tuple[str, ...] = ("gateway",)

    def head(self, query: str, *framing: str) -> bytes:
        first = f"POST /v2/models/{self.route}/infer{query} HTTP/{self.version}"
        hosts = (f"Host: {host}" for host in self.hosts)
        return "\r\n".join((first, *hosts, *self.lines, *framing, "", "")).encode("latin-1")

    def whole(self, query: str = "") -> bytes:
        return self.head(query, f"Content-Length: {len(self.body)}") + self.body

    def chunked(self, size: int, query: str = "") -> bytes:
        parts = [self.body[at : at + size] for at in range(0, len(self.body), size)]
        chunks = (b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))
        return self.head(query, "Transfer-Encoding: chunked") + b"".join(chunks)


def exchange(url: str, *pieces: bytes, answers: int = 1, warm: bool = False) -> list[bytes]:
    """The answers, and one to a question behind them: nothing where the connection was closed instead."""
    with RawConnection(url) as connection:
        if warm:
            connection.write(WARMING)
            assert connection.read().startswith(b"HTTP/1.1 200 ")
        with suppress(ConnectionError):  # refused before it was all written
            connection.write(*pieces)
        got = [connection.read() for _ in range(answers)]
        try:
            connection.write(LIVE)
            return [*got, connection.read()]
        except ConnectionError:
            return [*got, b""]


def every_way(url: str, pieces: Sequence[bytes], through_asgi: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The same exchange by way of ASGI, the parser, and the lines of its head."""
    yield exchange(url, *through_asgi)
    yield exchange(url, *pieces)
    yield exchange(url, *pieces, warm=True)


def cut(data: bytes, *at: int) -> list[bytes]:
    """The pieces between these places; negative ones count from the end."""
    places = sorted({place % len(data) for place in at} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]
