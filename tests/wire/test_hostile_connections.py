"""Attacks on a real gateway: each is refused or closed, other clients notice nothing, and the memory comes back."""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for
from tests.servers.load import Load
from tests.wire.raw_connection import RawConnection, status
from tests.wire.served import BODY_LIMIT, MANIFEST, MODELS, number
from tests.wire.ways import Sent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")

PLAIN = Sent("plain", json.dumps(number()).encode())
LARGE = Sent(
    "large",
    json.dumps(number(shape=[20_000, 4], data=[0.0] * 80_000)).encode(),
    "same",
    ("Accept-Encoding: br",),
)
MARGIN_BYTES = 48 * 1024 * 1024
"""What one attack may leave behind: arenas of the allocator that are in pieces."""
IDLE = 10_000
IDLE_BYTES = 16 * 1024
"""Of a worker's memory, that an idle connection may take."""
DESCRIPTORS = IDLE + 2_000


@pytest.fixture(scope="module")
def descriptors() -> Iterator[int]:
    """As many as may be opened; the gateway inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    yield max(soft, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def gateway(descriptors: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    manifest = MANIFEST.replace(
        "{stable: {model: local/number@champion}}, overrides: true",
        "{stable: {model: local/number@2, weight: 0}, canary: {model: local/number@1, weight: 100}}, fallback: stable",
    )
    made = Gateway(tmp_path_factory.mktemp("hostile"), manifest, "--workers", "1", "--body-limit", "1M")
    for name, model in MODELS.items():
        source = models.save(model, made.directory / "sources" / name / "model.onnx")
        publish(made.directory / "models", name, source, version="1", aliases=["champion"])
    constant = models.save(models.constant(2.0), made.directory / "sources" / "number2" / "model.onnx")
    publish(made.directory / "models", "number", constant, version="2", aliases=[])
    try:
        yield made.start()
    finally:
        made.kill()


def memory(gateway: Gateway) -> int:
    """Bytes of the worker's own, shared pages left out."""
    (pid,) = gateway.worker_pids()
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(
        int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))
    )


def descriptors_of(gateway: Gateway) -> int:
    (pid,) = gateway.worker_pids()
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@contextlib.contextmanager
def attack(gateway: Gateway, margin_bytes: int = MARGIN_BYTES) -> Iterator[None]:
    """Others are answered meanwhile, all of them; then memory and descriptors are where they were."""
    (pid,) = gateway.worker_pids()
    with RawConnection(gateway.data) as connection:
        for _ in range(200):
            connection.write(PLAIN.whole())
            assert status(connection.read()) == 200
    before, open_before = memory(gateway), descriptors_of(gateway)
    with Load(f"{gateway.data}/v2/models/number/infer", number(), clients=2) as others:
        wait_for(lambda: others.answered > 20, 20)
        yield
        during = others.answered
        wait_for(lambda: others.answered > during + 20, 20)
    assert (others.lost, others.refused, set(others.codes)) == ([], 0, {200})
    wait_for(lambda: descriptors_of(gateway) <= open_before + 2, 30)
    wait_for(
        lambda: memory(gateway) < before + margin_bytes, 20, lambda: f"{memory(gateway) - before} bytes more"
    )
    assert gateway.worker_pids() == [pid]
    assert "Traceback" not in gateway.log


def refused(gateway: Gateway, data: bytes) -> bytes:
    """The answer to what cannot be sent to its end, since the server closes."""
    with RawConnection(gateway.data) as connection:
        with contextlib.suppress(ConnectionError):
            connection.write(data)
        return connection.read()


GET = b"GET /v2 HTTP/1.1\r\nHost: a\r\n"
JSON = json.dumps(number()).encode()
REFUSED = {
    "a header of 64 KiB": (GET + b"X: " + b"a" * 65536 + b"\r\n\r\n", 431),
    "a header of a megabyte": (GET + b"X: " + b"a" * 2**20 + b"\r\n\r\n", 431),
    "a target of 64 KiB": (b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    "1,000 headers": (GET + b"".join(b"X-%d: a\r\n" % n for n in range(1000)) + b"\r\n", 431),
    "a bad Content-Length": (PLAIN.head("", "Content-Length: 5x") + b"12345", 400),
    "Content-Length with Transfer-Encoding": (
        PLAIN.head("", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "a chunk that lies": (PLAIN.head("", "Transfer-Encoding: chunked") + b"5\r\nabcdefgh\r\n0\r\n\r\n", 400),
    "a chunk without end": (PLAIN.head("", "Transfer-Encoding: chunked") + b"fffffffff0\r\n" + bytes(2**21), 413),
    "a chunk of 2^64": (PLAIN.head("", "Transfer-Encoding: chunked") + b"1" + b"0" * 16 + b"\r\n", 400),
    "a chunk's extension without end": (
        PLAIN.head("", "Transfer-Encoding: chunked") + b"5;x=" + b"a" * 2**20, 400),
    "trailers without end": (
        PLAIN.head("", "Transfer-Encoding: chunked") + b"0\r\n" + b"X: abc\r\n" * 2**18, 400),
    "a gzip bomb": (
        Sent("", gzip.compress(bytes(500 * BODY_LIMIT), 9), lines=("Content-Encoding: gzip",)).whole(), 413),
    "HTTP/0.9": (b"GET /v2\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(gateway: Gateway, name: str) -> None:
    data, code = REFUSED[name]
    with attack(gateway):
        for _ in range(20):
            assert status(refused(gateway, data)) == code


def test_1000_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    with attack(gateway):
        for query in ("", "?"):
            requests = [Sent("", json.dumps({**number(), "id": str(n)}).encode()) for n in range(1000)]
            with RawConnection(gateway.data) as connection:
                data = b"".join(each.whole(query) for each in requests)
                threading.Thread(target=connection.write, args=(data,)).start()
                for n in range(1000):
                    answer = connection.read()
                    assert status(answer) == 200
                    assert json.loads(answer.partition(b"\r\n\r\n")[2])["id"] == str(n)


def push(connection: RawConnection, data: bytes, until: Callable[[], bool]) -> int:
    """Writes for ever, as far as the server takes it, and reads nothing; the bytes that it took."""
    connection.socket.setblocking(False)
    taken = 0
    view = memoryview(data)
    while not until():
        try:
            taken += connection.socket.send(view[taken % len(data) :])
        except BlockingIOError:
            time.sleep(0.005)  # the server's turn
        except ConnectionError:
            break
    return taken


@pytest.mark.parametrize("query", ["", "?"])
def test_a_client_that_pipelines_for_ever_and_never_reads(gateway: Gateway, query: str) -> None:
    """What it sent and was not answered is bounded, and at the write deadline it is closed."""
    with attack(gateway), RawConnection(gateway.data, receive_bytes=4096) as connection:
        before, peak, ends = memory(gateway), 0, time.monotonic() + 4

        def done() -> bool:
            nonlocal peak
            peak = max(peak, memory(gateway))
            return time.monotonic() > ends

        push(connection, PLAIN.whole(query) * 200, done)
        assert peak - before < 64 * 1024 * 1024


@pytest.mark.parametrize("query", ["", "?"])
def test_large_answers_that_nobody_reads(gateway: Gateway, query: str) -> None:
    with attack(gateway), contextlib.ExitStack() as stack:
        before = memory(gateway)
        for _ in range(30):
            connection = stack.enter_context(RawConnection(gateway.data, receive_bytes=4096))
            connection.write(LARGE.whole(query))
        wait_for(lambda: descriptors_of(gateway) > 30, 10)
        assert memory(gateway) - before < 200 * 1024 * 1024


def test_half_requests_and_silence(gateway: Gateway) -> None:
    """They hold nothing up; when they go, so does all that they had."""
    parts = [
        PLAIN.whole()[:10],
        PLAIN.whole()[:-1],
        PLAIN.head("", "Content-Length: 1000000") + bytes(500_000),
    ]
    with attack(gateway), contextlib.ExitStack() as stack:
        for part in parts * 50:
            stack.enter_context(RawConnection(gateway.data)).write(part)


@pytest.mark.parametrize("how", ["reset", "close"])
def test_clients_that_go_at_any_moment(gateway: Gateway, how: str) -> None:
    data = PLAIN.whole() + PLAIN.whole("?") + PLAIN.chunked(40) + LARGE.whole()
    with attack(gateway):
        for at in range(1, len(data), len(data) // 200):
            connection = RawConnection(gateway.data)
            connection.write(data[:at])
            getattr(connection, how)()


def test_a_client_that_closes_its_half(gateway: Gateway) -> None:
    with attack(gateway):
        for query in ("", "?"):
            for data in (PLAIN.whole(query), Sent("", JSON, "later").whole(query), PLAIN.whole(query) * 3):
                with RawConnection(gateway.data) as connection:
                    connection.write(data)
                    connection.socket.shutdown(socket.SHUT_WR)
                    assert connection.rest().count(b"HTTP/1.1 200 ") == data.count(b"POST ")


def test_10_000_idle_connections(gateway: Gateway, descriptors: int) -> None:
    """Each with an answer behind it: it is kept for a while."""
    if descriptors < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} descriptors, the hard limit is {descriptors}")
    with attack(gateway, 2 * MARGIN_BYTES), contextlib.ExitStack() as stack:
        before = memory(gateway)
        for n in range(IDLE):
            # Each source address has some 28,000 ports, and those that others use are gone.
            connection = stack.enter_context(RawConnection(gateway.data, source=f"127.0.0.{2 + n % 4}"))
            connection.write(PLAIN.whole())
            assert status(connection.read()) == 200
        assert descriptors_of(gateway) > IDLE
        each = (memory(gateway) - before) / IDLE
        print(f"{each:.0f} bytes for each idle connection")
        assert each < IDLE_BYTES


def test_every_lease_is_returned(gateway: Gateway) -> None:
    """Behind all of the above: a rollback of the version that was asked waits for nobody."""
    for route, variant in (("number", "canary"), ("same", "stable"), ("later", "stable")):
        in_flight = f'turnout_requests_in_flight{{route="{route}",variant="{variant}",version="1"}}'
        wait_for(lambda key=in_flight: gateway.metrics()[key] == 0, 10)
    result = gateway.turnout("rollback", "number", "--wait", "--timeout", "10")
    assert result.returncode == 0, result.stdout + result.stderr
    with RawConnection(gateway.data) as connection:
        connection.write(PLAIN.whole())
        assert b"turnout-version: 2\r\n" in connection.read()
