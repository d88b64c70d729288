"""The transport against a server that misbehaves, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx
import pytest

from registry_client.addresses import check_target, configured_url
from registry_client.errors import (
    InvalidConfiguration,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unavailable,
    Unsupported,
)
from registry_client.http_errors import EXCEPTIONS, error_for, error_for_status
from registry_client.parts import Part
from registry_client.transport import (
    JSON_LIMIT_BYTES,
    HttpTransport,
    Outside,
    Retries,
    TimeLimits,
    open_transport,
    retry_after,
)
from tests.servers.faults import FaultServer

SECRET = "s3cret-of-ours"
Json = dict[str, object]


@dataclass(slots=True)
class Waits:
    """A clock that never waits and remembers what was asked of it; chance always takes the most."""

    seconds: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def outside(self) -> Outside:
        return Outside(sleep=self.sleep, uniform=lambda low, high: high, now_s=lambda: 1_000_000.0)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as server:
        yield server


@pytest.fixture
async def transport(server: FaultServer, waits: Waits) -> AsyncIterator[HttpTransport]:
    transport = open_transport(
        httpx.URL(server.url),
        headers={"Authorization": f"Bearer {SECRET}", "X-Workspace": "w"},
        limits=TimeLimits(connect_s=1.0, read_s=0.2, total_s=5.0),
        retries=Retries(attempts=3, base_s=1.0, cap_s=3.0),
        outside=waits.outside(),
    )
    yield transport
    await transport.aclose()


async def read(transport: HttpTransport, url: str, offset: int = 0) -> tuple[int, int | None, bytes]:
    async with transport.stream(url, Part(offset)) as stream:
        return stream.offset, stream.total_bytes, b"".join([bytes(chunk) async for chunk in stream.chunks])


async def test_credentials_go_to_the_registry(server: FaultServer, transport: HttpTransport) -> None:
    server.answer("/a", json={"x": 1})
    assert await transport.get("a", Json, {"q": "ü&/"}) == {"x": 1}
    assert server.asked[0].headers["authorization"] == f"Bearer {SECRET}"
    assert server.asked[0].headers["accept-encoding"] == "identity"
    assert server.asked[0].target == "/a?q=%C3%BC%26%2F"


async def test_a_failing_server_is_asked_again(
    server: FaultServer, transport: HttpTransport, waits: Waits
) -> None:
    server.answer("/a", status=503)
    server.answer("/a", status=500)
    server.answer("/a", json={})
    assert await transport.get("a", Json) == {}
    assert waits.seconds == [2.0, 3.0]


async def test_json_that_is_cut_short_is_asked_for_again(
    server: FaultServer, transport: HttpTransport
) -> None:
    server.answer("/a", body=b'{"x"', declared_bytes=8)
    server.answer("/a", json={"x": 1})
    assert await transport.get("a", Json) == {"x": 1}


async def test_a_server_that_stays_down_is_unavailable(server: FaultServer, transport: HttpTransport) -> None:
    server.answer("/a", status=502)
    with pytest.raises(Unavailable, match="HTTP 502"):
        await transport.get("a", Json)
    assert len(server.asked) == 3


async def test_the_server_says_when_to_ask_again(
    server: FaultServer, transport: HttpTransport, waits: Waits
) -> None:
    server.answer("/a", status=429, headers={"Retry-After": "4"})
    server.answer("/a", json={})
    await transport.get("a", Json)
    assert waits.seconds == [4.0]


async def test_a_long_retry_after_is_the_callers_to_wait(
    server: FaultServer, transport: HttpTransport, waits: Waits
) -> None:
    server.answer("/a", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(Unavailable) as caught:
        await transport.get("a", Json)
    assert caught.value.retry_after_s == 3600
    assert waits.seconds == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("Mon, 12 Jan 1970 13:46:50 GMT", 10.0),
        ("Mon, 12 Jan 1970 13:46:30 GMT", 0.0),
        ("soon", None),
        ("-3", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, 1_000_000.0) == seconds


async def test_what_changes_something_is_not_repeated(server: FaultServer, transport: HttpTransport) -> None:
    server.answer("/a", status=503)
    with pytest.raises(Unavailable):
        await transport.post("a", Json, {"x": 1})
    assert len(server.asked) == 1
    with pytest.raises(Unavailable):
        await transport.post("a", Json, {"x": 1}, repeatable=True)
    assert [asked.body for asked in server.asked] == [b'{"x":1}'] * 4


@pytest.mark.parametrize("fault", [{"silent": True}, {"stall": True, "declared_bytes": 9}])
async def test_a_slow_server_is_unavailable(
    server: FaultServer, transport: HttpTransport, fault: dict[str, object]
) -> None:
    server.answer("/a", body=b"{}", **fault)
    with pytest.raises(Unavailable):
        await transport.get("a", Json)


async def test_the_total_time_is_limited(server: FaultServer) -> None:
    server.answer("/a", silent=True)
    limits = TimeLimits(read_s=60.0, total_s=0.05)
    transport = open_transport(httpx.URL(server.url), limits=limits)
    with pytest.raises(Unavailable, match=r"within 0\.05 s"):
        await transport.get("a", Json)
    await transport.aclose()


async def test_nobody_listens(waits: Waits) -> None:
    async with FaultServer() as gone:
        url = gone.url
    transport = open_transport(httpx.URL(url), outside=waits.outside())
    with pytest.raises(Unavailable, match="cannot be connected to"):
        await transport.get("a", Json)
    assert len(waits.seconds) == 3
    await transport.aclose()


@pytest.mark.parametrize("fault", [{"declared_bytes": 100}, {"garbage": True}])
async def test_a_truncated_answer_is_unavailable(
    server: FaultServer, transport: HttpTransport, fault: dict[str, object]
) -> None:
    server.answer("/a", body=b"{}", **fault)
    with pytest.raises(Unavailable, match="ended its answer early"):
        await transport.get("a", Json)
    with pytest.raises(Unavailable, match="ended its answer early"):
        await read(transport, "a")


async def test_a_truncated_body_gives_what_came_before(server: FaultServer, transport: HttpTransport) -> None:
    server.answer("/a", body=b"abc", declared_bytes=10)
    got = b""
    with pytest.raises(Unavailable):
        async with transport.stream("a") as stream:
            async for chunk in stream.chunks:
                got += chunk
    assert (got, stream.total_bytes) == (b"abc", 10)


@pytest.mark.parametrize(
    "body", [b"<html>", b"", b"[1]", b'{"a":NaN}', b"[" * 100_000, b"\xff\xfe", b'{"a":"\xff"}']
)
async def test_what_is_not_the_expected_json(
    server: FaultServer, transport: HttpTransport, body: bytes
) -> None:
    server.answer("/a", body=body)
    with pytest.raises(ProtocolError, match="JSON"):
        await transport.get("a", Json)


async def test_json_has_a_limit(server: FaultServer, transport: HttpTransport) -> None:
    server.answer("/a", body=b" " * (JSON_LIMIT_BYTES + 1))
    with pytest.raises(ProtocolError, match=f"more than {JSON_LIMIT_BYTES} bytes"):
        await transport.get("a", Json)


async def test_redirects_are_followed_three_times(server: FaultServer, transport: HttpTransport) -> None:
    for here, there in [("/1", "/2"), ("/2", "/3"), ("/3", "/4")]:
        server.answer(here, status=302, headers={"Location": there})
    server.answer("/4", body=b"there")
    assert (await read(transport, "1"))[2] == b"there"
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {SECRET}"}


async def test_a_redirect_loop_ends(server: FaultServer, transport: HttpTransport) -> None:
    server.answer("/a", status=307, headers={"Location": "/a"})
    with pytest.raises(ProtocolError, match="more than 3 times"):
        await transport.get("a", Json)
    assert len(server.asked) == 4


async def test_a_redirect_elsewhere_carries_nothing_of_ours(
    server: FaultServer, transport: HttpTransport
) -> None:
    async with FaultServer() as other:
        server.answer("/a", status=302, headers={"Location": f"{other.url}/b", "Set-Cookie": "c=1"})
        server.answer("/c", body=b"{}", headers={"Set-Cookie": "c=1"})
        other.answer("/b", body=b"{}")
        async with transport.stream("a", headers={"X-Signed": SECRET}) as stream:
            assert [bytes(chunk) async for chunk in stream.chunks] == [b"{}"]
        await transport.get("a", Json)
        await transport.get("c", Json)
        await transport.get("c", Json)
    for asked in other.asked:
        assert set(asked.headers) <= {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert all("cookie" not in asked.headers for asked in server.asked)


async def test_a_signed_address_gets_its_own_headers_only(
    server: FaultServer, transport: HttpTransport
) -> None:
    async with FaultServer() as store:
        store.answer("/b", body=b"abc")
        async with transport.stream(f"{store.url}/b?sig=1", headers={"X-Signed": "yes"}) as stream:
            assert [bytes(chunk) async for chunk in stream.chunks] == [b"abc"]
    assert store.asked[0].headers["x-signed"] == "yes"
    assert store.asked[0].target == "/b?sig=1"
    assert "authorization" not in store.asked[0].headers


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/", "http://user:pw@127.0.0.1/", "//", "gopher:x"],
)
async def test_a_redirect_to_no_address_of_ours(
    server: FaultServer, transport: HttpTransport, location: str
) -> None:
    server.answer("/a", status=302, headers={"Location": location})
    with pytest.raises(ProtocolError):
        await transport.get("a", Json)


async def test_a_redirect_to_nonsense(server: FaultServer, transport: HttpTransport) -> None:
    # httpx parses the address even where it does not follow it, and says then that the answer is not HTTP.
    server.answer("/a", status=302, headers={"Location": "http://[::zz]/"})
    with pytest.raises(Unavailable, match="not HTTP"):
        await transport.get("a", Json)


async def test_a_post_is_not_redirected(server: FaultServer, transport: HttpTransport) -> None:
    server.answer("/a", status=308, headers={"Location": "/b"})
    with pytest.raises(ProtocolError, match="redirects a POST"):
        await transport.post("a", Json, {})


@pytest.mark.parametrize(
    ("target", "base", "addresses", "fine"),
    [
        ("http://meta/", "http://hub/", {"meta": ["169.254.169.254"]}, False),
        ("http://meta/", "http://hub/", {"meta": ["8.8.8.8", "fe80::1%eth0"]}, False),
        ("http://meta/", "http://hub/", {"meta": ["::ffff:169.254.169.254"]}, False),
        ("http://me/", "http://hub/", {"me": ["127.0.0.1"], "hub": ["10.0.0.1"]}, False),
        ("http://me/", "http://hub/", {"me": ["127.0.0.1"], "hub": ["127.0.0.1"]}, True),
        ("http://store/", "http://hub/", {"store": ["10.0.0.2"]}, True),
        ("http://store/", "https://hub/", {"store": ["10.0.0.2"]}, False),
        ("https://store/", "http://hub/", {"store": []}, True),
    ],
)
async def test_where_a_registry_may_send_us(
    target: str, base: str, addresses: dict[str, list[str]], fine: bool
) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses.get(host, [])

    checking = check_target(httpx.URL(target), base=httpx.URL(base), resolve=resolve, came_from="hub")
    if fine:
        await checking
        return
    with pytest.raises(ProtocolError, match="not followed"):
        await checking


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"status": 206, "body": b"cdef", "headers": {"Content-Range": "bytes 2-5/6"}}, (2, 6, b"cdef")),
        ({"status": 206, "body": b"cdef", "headers": {"Content-Range": "bytes 2-5/*"}}, (2, None, b"cdef")),
        ({"body": b"abcdef"}, (0, 6, b"abcdef")),
    ],
)
async def test_a_range_is_believed_only_where_it_is_proved(
    server: FaultServer,
    transport: HttpTransport,
    answer: dict[str, object],
    expected: tuple[int, int | None, bytes],
) -> None:
    server.answer("/a", **answer)
    assert await read(transport, "a", 2) == expected
    assert server.asked[0].headers["range"] == "bytes=2-"


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 206, "body": b"bcdef", "headers": {"Content-Range": "bytes 1-5/6"}},
        {"status": 206, "body": b"cdef"},
        {"status": 206, "body": b"cdef", "headers": {"Content-Range": "pages 2-5/6"}},
        {"status": 416, "headers": {"Content-Range": "bytes */1"}},
        {"status": 204},
    ],
)
async def test_any_other_range_means_to_start_over(
    server: FaultServer, transport: HttpTransport, answer: dict[str, object]
) -> None:
    server.answer("/a", **answer)
    server.answer("/a", body=b"abcdef")
    assert await read(transport, "a", 2) == (0, 6, b"abcdef")
    assert "range" not in server.asked[1].headers


async def test_a_compressed_file_is_refused(server: FaultServer, transport: HttpTransport) -> None:
    server.answer("/a", body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    with pytest.raises(ProtocolError, match="compressed"):
        await read(transport, "a")


def exceptions_of_httpx() -> list[type[Exception]]:
    named = [getattr(httpx, name) for name in httpx.__all__]
    return [each for each in named if isinstance(each, type) and issubclass(each, Exception)]


def test_every_exception_of_httpx_is_mapped() -> None:
    assert len(exceptions_of_httpx()) > 20
    assert set(exceptions_of_httpx()) == set(EXCEPTIONS)


@pytest.mark.parametrize("kind", exceptions_of_httpx(), ids=lambda kind: kind.__name__)
def test_no_mapped_text_repeats_what_httpx_said(kind: type[Exception]) -> None:
    if kind is httpx.ConnectError:
        return  # the one whose text comes from the operating system
    error = kind.__new__(kind)
    error.args = (f"Illegal header value {SECRET}",)
    mapped = error_for(error, "http://hub/a")
    assert isinstance(mapped, EXCEPTIONS[kind][0])
    assert str(mapped).startswith("http://hub/a ")
    assert SECRET not in str(mapped)


@pytest.mark.parametrize("status", [*range(100, 200), *range(300, 600), 999])
def test_every_status_is_mapped(status: int) -> None:
    expected: type[Exception] = ProtocolError
    if status >= 500 or status in (408, 425, 429):
        expected = Unavailable
    if status in (401, 403, 407):
        expected = PermissionDenied
    if status in (404, 410):
        expected = NotFound
    if status == 501:
        expected = Unsupported
    assert type(error_for_status(status, "http://hub/a")) is expected


@pytest.mark.parametrize("status", [401, 404, 418, 500, 503])
async def test_no_error_shows_a_secret(server: FaultServer, transport: HttpTransport, status: int) -> None:
    server.answer("/a", status=status, body=SECRET.encode())
    for call in (
        transport.get("a", Json, {"token": SECRET}),
        read(transport, f"{server.url}/a?sig={SECRET}"),
    ):
        with pytest.raises(Exception, match="/a") as caught:
            await call
        assert SECRET not in str(caught.value)
    assert SECRET not in repr(transport)


def test_a_header_that_http_cannot_carry() -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        open_transport(httpx.URL("http://hub"), headers={"Authorization": f"Bearer {SECRET}\n"})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "hub", "sqlite:///x", "http://", "http://a:pw@hub", "http://hub?x=pw", "http://hub:x"]
)
def test_a_url_that_cannot_be_a_registry(url: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        configured_url(url, registry="prod")
    assert "prod" in str(caught.value)
    assert "pw" not in str(caught.value)
