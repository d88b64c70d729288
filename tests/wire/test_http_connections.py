"""Requests as bytes on a connection: its life, its framing, and the answers that are no errors."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.servers.gateway import Gateway, wait_for
from tests.wire.raw_connection import RawConnection
from tests.wire.served import gateway, goes_on_serving, number

__all__ = ["gateway", "goes_on_serving"]

INFER = "/v2/models/number/infer"


class Connection:
    """A socket that writes whatever it is told, and reads one response at a time."""

    def __init__(self, gateway: Gateway) -> None:
        parts = urlsplit(gateway.data)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)

    def write(self, *parts: bytes) -> None:
        self._socket.sendall(b"".join(parts))

    def read(self, method: str = "POST") -> tuple[HTTPResponse, bytes]:
        response = HTTPResponse(self._socket, method=method)
        response.begin()
        return response, response.read()

    def is_closed_by_the_server(self) -> bool:
        return self._socket.recv(1) == b""

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def connection(gateway: Gateway) -> Iterator[Connection]:
    made = Connection(gateway)
    yield made
    made.close()


def head(
    *lines: str, method: str = "POST", path: str = INFER, version: str = "1.1", host: bool = True
) -> bytes:
    first = [f"{method} {path} HTTP/{version}", *(["Host: gateway"] if host else [])]
    return "\r\n".join((*first, *lines, "", "")).encode()


def request(*lines: str, document: Any = None, **more: Any) -> bytes:
    body = json.dumps(number() if document is None else document).encode()
    return head(*lines, f"Content-Length: {len(body)}", **more) + body


def answered(response: HTTPResponse, body: bytes) -> None:
    assert response.status == 200, body
    assert json.loads(body)["outputs"][0]["data"] == [1.0]


def test_a_connection_is_kept(connection: Connection) -> None:
    for _ in range(3):
        connection.write(request())
        answered(*connection.read())


def test_an_error_keeps_the_connection(connection: Connection) -> None:
    connection.write(request(document={"inputs": []}))
    assert connection.read()[0].status == 400
    connection.write(request())
    answered(*connection.read())


def test_connection_close_is_honoured(connection: Connection) -> None:
    connection.write(request("Connection: close"))
    response, body = connection.read()
    answered(response, body)
    assert response.headers["connection"] == "close"
    assert connection.is_closed_by_the_server()


def test_http_1_0_needs_no_host_and_closes(connection: Connection) -> None:
    connection.write(request(version="1.0", host=False))
    answered(*connection.read())
    assert connection.is_closed_by_the_server()


@pytest.mark.parametrize(
    ("hosts", "text"),
    [((), "the Host header is missing"), (("a", "b"), "the Host header is given more than once")],
)
def test_exactly_one_host(connection: Connection, hosts: tuple[str, ...], text: str) -> None:
    connection.write(request(*(f"Host: {host}" for host in hosts), host=False))
    response, body = connection.read()
    assert (response.status, json.loads(body)) == (400, {"error": text})


def test_a_chunked_body(connection: Connection) -> None:
    connection.write(head("Transfer-Encoding: chunked"))
    body = json.dumps(number()).encode()
    for part in (body[:7], body[7:50], body[50:], b""):
        connection.write(b"%x\r\n%s\r\n" % (len(part), part))
    answered(*connection.read())


def test_a_chunked_body_over_the_limit(connection: Connection) -> None:
    """Its length is nowhere announced: it is refused when the limit is passed, not when it ends."""
    connection.write(head("Transfer-Encoding: chunked"))
    for _ in range(17):
        connection.write(b"10000\r\n", bytes(0x10000), b"\r\n")
    response, body = connection.read()
    assert response.status == 413
    assert "the limit is 1048576" in json.loads(body)["error"]


def test_an_announced_body_over_the_limit_is_not_waited_for(connection: Connection) -> None:
    connection.write(head("Content-Length: 5000000", "Expect: 100-continue"))
    response, body = connection.read()
    assert response.status == 413
    assert "the body has at least 5000000 bytes" in json.loads(body)["error"]


def test_expect_100_continue(connection: Connection) -> None:
    body = json.dumps(number()).encode()
    connection.write(head(f"Content-Length: {len(body)}", "Expect: 100-continue"))
    interim = connection._socket.recv(1000)
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.write(body)
    answered(*connection.read())


def test_pipelined_requests_are_answered_in_order(gateway: Gateway, connection: Connection) -> None:
    """The first one takes a quarter of a second; all come in one write, and one by one from the buffer."""
    slow = {"path": "/v2/models/slow/infer"}
    connection.write(
        request(**slow),
        request(),
        request(path="/v2/models/nobody/infer"),
        head(method="GET", path="/v2/health/live"),
        request(),
    )
    stream = connection._socket.makefile("rb")
    seen = []
    for _ in range(5):
        status = int(stream.readline().split()[1])
        headers = dict(line.split(b": ", 1) for line in iter(stream.readline, b"\r\n"))
        seen.append((status, stream.read(int(headers[b"content-length"]))))
    assert [status for status, _ in seen] == [200, 200, 404, 200, 200]
    assert json.loads(seen[0][1])["model_name"] == "slow"
    assert json.loads(seen[3][1]) == {"live": True}
    stream.close()


def test_a_head_is_answered_without_a_body(connection: Connection) -> None:
    connection.write(head(method="HEAD", path="/v2"))
    response, body = connection.read("HEAD")
    assert (response.status, body) == (200, b"")
    assert int(response.headers["content-length"]) > 0
    connection.write(head(method="HEAD"))
    response, _ = connection.read("HEAD")
    assert (response.status, response.headers["allow"]) == (405, "POST")


def test_an_offer_of_http_2_is_passed_over(connection: Connection) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAA")
    for lines in (offer, ()):
        connection.write(request(*lines))
        answered(*connection.read())


def test_a_target_in_absolute_form(connection: Connection) -> None:
    connection.write(request(path=f"http://elsewhere{INFER}"))
    answered(*connection.read())


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        head("Content-Length: 3", "Content-Length: 4"),
        head("Content-Length: 3", "Transfer-Encoding: chunked"),
        head("Content-Length: -1"),
        head("Content-Length: 99999999999999999999999"),
        head("X: a\x00b"),
        b"GET /v2/models/\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_closed(connection: Connection, data: bytes) -> None:
    connection.write(data)
    response, body = connection.read()
    assert (response.status, json.loads(body)) == (400, {"error": "the request is no valid HTTP"})
    assert connection.is_closed_by_the_server()


def test_a_client_that_goes_in_the_middle(gateway: Gateway) -> None:
    """Of its head, of its body, or before its answer: the last is counted as 499."""
    counted = 'turnout_requests_total{code="499",route="slow",variant="stable",version="1"}'
    before = gateway.metrics().get(counted, 0.0)
    for data in (b"POST /v2", request()[:-5], request(path="/v2/models/slow/infer")):
        connection = RawConnection(gateway.data)
        connection.write(data)
        connection.reset()
    wait_for(lambda: gateway.metrics().get(counted, 0.0) == before + 1, 10)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_large_answers_are_compressed_when_asked(gateway: Gateway, encoding: str) -> None:
    rows = number(shape=[500, 4], data=[0.0] * 2000)
    content = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding](json.dumps(rows).encode())
    response = httpx.post(
        gateway.data + INFER,
        content=content,
        headers={"content-encoding": encoding, "accept-encoding": encoding},
    )
    assert response.headers["content-encoding"] == encoding
    assert response.headers["vary"] == "accept-encoding"
    assert response.json()["outputs"][0]["data"] == [1.0] * 500


def test_no_rows_give_no_rows(gateway: Gateway) -> None:
    response = httpx.post(gateway.data + INFER, json=number(shape=[0, 4], data=[]))
    assert response.json()["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [0, 1], "data": []}]


def test_no_outputs_named_gives_all(gateway: Gateway) -> None:
    for outputs in ([], None):
        response = httpx.post(gateway.data + INFER, json=number() | {"outputs": outputs})
        assert response.json()["outputs"][0]["data"] == [1.0]


def test_every_answer_says_who_gave_it(gateway: Gateway) -> None:
    response = httpx.post(gateway.data + INFER, json=number() | {"id": "ü"})
    assert response.json()["id"] == "ü"
    assert response.headers["turnout-version"] == response.json()["model_version"] == "1"
    assert response.headers["turnout-variant"] == "stable"
    assert response.headers["turnout-revision"] == "1.1"
    assert len(response.headers["turnout-digest"]) == 64
    refused = httpx.post(gateway.data + INFER, json=number(shape=[4, 1]))
    assert (refused.status_code, refused.headers["turnout-version"]) == (400, "1")
