"""One contract for both ways of an infer request: the answers are equal, byte for byte, apart from their dates.

However a request is delivered, and whatever is on the connection before and behind it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from tests.servers.gateway import Gateway
from tests.wire.raw_connection import LIVE, RawConnection, status
from tests.wire.served import BODY_LIMIT, gateway, goes_on_serving, number, tensor
from tests.wire.test_http_contract import BODIES, DEADLINES, LENGTHS, NAMES, NUMBERS, TENSORS, Bad, sized
from tests.wire.ways import Sent, cut, every_way, exchange

__all__ = ["gateway", "goes_on_serving"]

ROWS = [[0.5, -1.0, 2.0, 1e-3]] * 2
SMALL_BODY = 2_000
"""Bytes that may be delivered one by one."""


def js(document: Any) -> bytes:
    return json.dumps(document).encode()


def ask(id: str, document: Any, route: str = "number", *lines: str) -> Sent:
    return Sent(id, js(document), route, lines)


def with_binary(id: str, document: Any, raw: bytes, route: str) -> Sent:
    head = js(document)
    return Sent(id, head + raw, route, (f"Inference-Header-Content-Length: {len(head)}",))


def many(rows: int) -> dict[str, Any]:
    return number(shape=[rows, 4], data=[0.25] * 4 * rows)


def halves(**parameters: Any) -> dict[str, Any]:
    return {**sized(4, shape=[1, 2], datatype="FP16"), **parameters}


PLAIN = ask("plain", number())
LATER = ask("later", number(), "later")
NOBODY = ask("unknown route", number(), "nobody")
LARGE = ask("a large answer, compressed", many(2000), "same", "Accept-Encoding: gzip")
BINARY = with_binary("binary in", sized(16), bytes(16), "number")
CLASSES = ask(
    "classification",
    {
        **number(data=[0.1, 0.7, 0.2, 0.0]),
        "outputs": [{"name": "output", "parameters": {"classification": 2}}],
    },
    "same",
)
GOOD = [
    PLAIN,
    LATER,
    LARGE,
    Sent("compact JSON", js(number()).replace(b" ", b"")),
    ask("nested data", number(shape=[2, 4], data=ROWS), "same"),
    ask("an id", {**number(), "id": "1 ü \u2028 \\"}),
    ask("parameters", {**number(), "parameters": {"priority": 1, "timeout": 10_000_000}}),
    ask("outputs", {**number(), "outputs": [{"name": "output"}]}),
    ask("two inputs", {"inputs": [tensor("a", (1, 3), data=[1.5] * 3), tensor("b", (1, 3), data=[2] * 3)]}, "sum"),
    ask("no rows", number(shape=[0, 4], data=[])),
    ask("numbers of every kind", number(data=[0, -0.0, 1.25e-7, 16777217]), "same"),
    ask("binary out", {**number(), "parameters": {"binary_data_output": True}}, "same"),
    ask("one binary output", {**number(), "outputs": [{"name": "output", "parameters": {"binary_data": True}}]}),
    BINARY,
    with_binary("FP16", halves(parameters={"binary_data_output": True}), b"\x00\x3c\x00\xc0", "half"),
    with_binary("FP16, answer in JSON", halves(), b"\x00\x3c\x00\xc0", "half"),
    ask("BYTES", {"inputs": [tensor("input", (1, 2), "BYTES", data=["ü", "b"])]}, "text"),
    ask("BYTES out", {"inputs": [tensor("input", (1, 2), "BYTES", data=["ü", ""])],
                      "parameters": {"binary_data_output": True}}, "text"),
    Sent("raw", bytes(16), "number", ("Inference-Header-Content-Length: 0",)),
    CLASSES,
    Sent("gzip", gzip.compress(js(number()), mtime=0), lines=("Content-Encoding: gzip",)),
    Sent("deflate", zlib.compress(js(number())), lines=("Content-Encoding: deflate",)),
    Sent("identity", js(number()), lines=("Content-Encoding: identity",)),
    ask("a large answer", many(2000), "same"),
    ask("a large answer, deflate", many(2000), "same", "Accept-Encoding: deflate, br;q=0.1"),
    ask("a large answer, no encoding known", many(2000), "same", "Accept-Encoding: br"),
    ask("an answer in between, compressed", many(100), "same", "Accept-Encoding: gzip"),
    ask("an answer in between", many(100), "same"),
    ask("a small answer is not compressed", number(), "same", "Accept-Encoding: gzip"),
    ask("a large request", many(20_000)),
    ask("a version", number(), "number/versions/1"),
    ask("a known version", number(), "known/versions/1"),
    ask("a variant", number(), "number", "Turnout-Variant: stable"),
    ask("a sticky key", number(), "number", "turnout-key: somebody"),
    ask("a header twice", number(), "number", "turnout-variant: stable", "turnout-variant: nope"),
    ask("a header of Latin-1", number(), "number", "X-Name: J\xfcrgen"),
    ask("a header with spaces and tabs", number(), "number", "X-A: \t b \t c \t ", "X-B:c", "X-C:", "X-D: "),
    ask("many headers", number(), "number", *(f"X-{n}: {n}" for n in range(240))),
]  # fmt: skip
SHAPED = [
    Sent("two hosts", js(number()), hosts=("a", "b")),
    Sent("no host", js(number()), hosts=()),
    ask("too many headers", number(), "number", *(f"X-{n}: {n}" for n in range(300))),
    ask("a header too long", number(), "number", "X: " + "a" * 70_000),
    ask("headers too long together", number(), "number", *(f"X-{n}: {'a' * 700}" for n in range(100))),
    ask("Content-Length twice", number(), "number", f"Content-Length: {len(js(number()))}"),
    ask("Content-Length and chunked", number(), "number", "Transfer-Encoding: chunked"),
    ask("a folded header", number(), "number", "X: a\r\n b"),
    ask("a space before the colon", number(), "number", "X : a"),
    ask("a NUL in a header", number(), "number", "X: a\x00b"),
    ask("a bare LF in a header", number(), "number", "X: a\nY: b"),
    ask("a bare CR in a header", number(), "number", "X: a\rY: b"),
    ask("an unknown expectation", number(), "number", "Expect: the-best"),
    ask("an offer of another protocol", number(), "number", "Connection: Upgrade", "Upgrade: h2c"),
    ask("a chunk of Proxy-Connection", number(), "number", "Proxy-Connection: close"),
]


def sent(bad: Bad) -> Sent:
    content = bad.content if bad.document is None else js(bad.document)
    lines = tuple(f"{name}: {value}" for name, value in bad.headers.items())
    return Sent(bad.id, content or b"", bad.route, lines)


BAD = [
    sent(bad)
    for bad in (*NAMES, *TENSORS, *NUMBERS, *BODIES, *LENGTHS, *DEADLINES)
    if bad.method == "POST" and not bad.path
]
ALL = [*GOOD, *SHAPED, *BAD]


def same(*exchanges: list[bytes]) -> list[bytes]:
    first, *others = exchanges
    assert first[0], "there was no answer"
    for other in others:
        assert other == first
    return first


def cases(*requests: Sent) -> Any:
    return pytest.mark.parametrize("request_", [pytest.param(each, id=each.id) for each in requests])


@cases(*ALL)
def test_whole(gateway: Gateway, request_: Sent) -> None:
    got = same(*every_way(gateway.data, [request_.whole()], [request_.whole("?")]))
    if request_ in GOOD and request_.id not in ("FP16, answer in JSON", "a header twice"):
        assert status(got[0]) == 200, got[0]


@cases(*ALL)
def test_in_two_pieces(gateway: Gateway, request_: Sent) -> None:
    """Cut within the first line, at each byte of the empty line, behind it, and before the last byte."""
    expected = exchange(gateway.data, request_.whole("?"))
    data = request_.whole()
    border = data.index(b"\r\n\r\n")
    for at in (1, 20, border + 1, border + 2, border + 3, border + 4, border + 5, -1):
        for warm in (False, True):
            same(expected, exchange(gateway.data, *cut(data, at), warm=warm))


@cases(*(each for each in ALL if len(each.whole()) < SMALL_BODY))
def test_byte_by_byte(gateway: Gateway, request_: Sent) -> None:
    data, asgi = request_.whole(), request_.whole("?")
    same(
        exchange(gateway.data, asgi),
        *every_way(gateway.data, cut(data, *range(len(data))), cut(asgi, *range(len(asgi)))),
    )


@cases(*GOOD, *BAD)
def test_chunked(gateway: Gateway, request_: Sent) -> None:
    """In one chunk, and in chunks that come two to a packet."""
    size = len(request_.body) // 5 + 1
    whole = same(*every_way(gateway.data, [request_.chunked(2**24)], [request_.chunked(2**24, "?")]))
    data, asgi = request_.chunked(size), request_.chunked(size, "?")
    middle = (-2 * size, -size - 3, -3)
    same(whole, *every_way(gateway.data, cut(data, *middle), cut(asgi, *middle)))


KEEPING = [PLAIN, LATER, NOBODY, LARGE, Sent("empty", b""), Sent("no JSON", b"{"), CLASSES]


@cases(*KEEPING)
@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("Connection: close", "1.1"),
        ("Connection: Close", "1.1"),
        ("Connection: keep-alive", "1.1"),
        ("Connection: Keep-Alive", "1.1"),
        ("Connection: keep-alive, close", "1.1"),
        ("Connection: x-other", "1.1"),
        ("Proxy-Connection: close", "1.1"),
        ("X: y", "1.0"),
        ("Connection: keep-alive", "1.0"),
    ],
)
def test_what_becomes_of_the_connection(gateway: Gateway, request_: Sent, line: str, version: str) -> None:
    request_ = Sent(request_.id, request_.body, request_.route, (*request_.lines, line), version)
    got = same(*every_way(gateway.data, [request_.whole()], [request_.whole("?")]))
    closes = version == "1.0" or line.lower().endswith(" close")
    assert (got[-1] == b"") == closes
    assert (b"\r\nconnection: close\r\n" in got[0]) == closes


@cases(*KEEPING)
def test_a_client_that_waits_for_100(gateway: Gateway, request_: Sent) -> None:
    seen = []
    for query in ("?", ""):
        for warm in (False, True):
            with RawConnection(gateway.data) as connection:
                if warm:
                    connection.write(PLAIN.whole())
                    connection.read()
                head = request_.head(query, f"Content-Length: {len(request_.body)}", "Expect: 100-continue")
                connection.write(head)
                interim = connection.read()
                connection.write(request_.body)
                seen.append([interim, connection.read()])
    assert same(*seen)[0] == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_client_that_waits_for_100_is_refused_before(gateway: Gateway) -> None:
    for warm in (b"", PLAIN.whole()):
        seen = []
        for query in ("?", ""):
            with RawConnection(gateway.data) as connection:
                connection.write(warm)
                assert not warm or connection.read()
                connection.write(PLAIN.head(query, "Content-Length: 9000000", "Expect: 100-continue"))
                seen.append([connection.read()])
        assert status(same(*seen)[0]) == 413


BEHIND = {
    "no HTTP": (b"NONSENSE\r\n\r\n", 400),
    "no version": (b"GET /v2\r\n\r\n", 400),
    "bad length": (PLAIN.head("", "Content-Length: 5x"), 400),
    "length and chunked": (PLAIN.head("", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "a chunk that lies": (PLAIN.head("", "Transfer-Encoding: chunked") + b"5\r\nabcdefgh\r\n0\r\n\r\n", 400),
    "a chunk that lies, by ASGI": (PLAIN.head("?", "Transfer-Encoding: chunked") + b"5\r\nabcdefgh\r\n", 400),
    "too many headers": (PLAIN.head("", *["X: y"] * 300), 431),
    "a target that is none": (b"GET http://[x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize(
    "before", [[PLAIN], [LATER], [PLAIN, NOBODY], [LATER, PLAIN], [LATER, LATER, PLAIN], [LARGE, PLAIN]],
    ids=lambda requests: "+".join(each.id for each in requests),
)  # fmt: skip
def test_bad_http_behind_good_requests(gateway: Gateway, behind: str, before: list[Sent]) -> None:
    """Every good request is answered, in order, then the bad one is refused, then the connection closed."""
    garbage, code = BEHIND[behind]
    n = len(before) + 1
    asgi = b"".join(each.whole("?") for each in before) + garbage
    data = b"".join(each.whole() for each in before) + garbage
    got = same(
        exchange(gateway.data, asgi, answers=n),
        exchange(gateway.data, data, answers=n),
        exchange(gateway.data, data, answers=n, warm=True),
        exchange(gateway.data, *cut(data, -len(garbage)), answers=n),
        exchange(gateway.data, *cut(data, -len(garbage), -3), answers=n, warm=True),
    )
    assert [status(each) for each in got[:-1]] == [*(404 if each is NOBODY else 200 for each in before), code]
    assert got[-1] == b""


PIPELINES = [
    ["", ""], ["", "?"], ["?", ""], ["", "", ""], ["", "?", ""], ["?", "", "?"], ["", "", "?"],
]  # fmt: skip


@pytest.mark.parametrize("queries", PIPELINES, ids=lambda queries: "+".join(map(repr, queries)))
@pytest.mark.parametrize(
    "requests",
    [[PLAIN, NOBODY, PLAIN], [LATER, PLAIN, Sent("no JSON", b"{")], [LARGE, PLAIN, LARGE], [BINARY, LATER, CLASSES]],
    ids=lambda requests: "+".join(each.id for each in requests),
)  # fmt: skip
def test_pipelined(gateway: Gateway, queries: list[str], requests: list[Sent]) -> None:
    """In one piece, and cut within the second one's head and body."""
    requests = requests[: len(queries)]
    n = len(requests)
    data = b"".join(each.whole(query) for each, query in zip(requests, queries, strict=True))
    alone = [exchange(gateway.data, each.whole("?")) for each in requests]
    expected = [*(answer[0] for answer in alone), alone[0][-1]]
    second = len(requests[0].whole(queries[0]))
    for at in ([], [second], [second + 9], [second + 30, -5]):
        for warm in (False, True):
            same(expected, exchange(gateway.data, *cut(data, *at), answers=n, warm=warm))


def test_a_body_longer_than_it_says(gateway: Gateway) -> None:
    """The request is answered; what is left over is no HTTP, and closes the connection."""
    expected = exchange(gateway.data, PLAIN.whole("?"))[0]
    for query in ("?", ""):
        head = PLAIN.head(query, f"Content-Length: {len(PLAIN.body)}")
        for pieces in ([head + PLAIN.body + b"}}"], [head + PLAIN.body, b"}}"], [head, PLAIN.body + b"}}"]):
            for warm in (False, True):
                answer, refusal, end = exchange(gateway.data, *pieces, answers=2, warm=warm)
                assert (answer, status(refusal), end) == (expected, 400, b"")


def test_empty_lines_between_requests(gateway: Gateway) -> None:
    """Are for old clients that send one more than they should (RFC 9112, 2.2)."""
    expected = exchange(gateway.data, PLAIN.whole("?"))
    for query in ("?", ""):
        data = b"\r\n\r\n" + PLAIN.whole(query)
        for pieces in ([data], cut(data, 2), cut(data, 4), cut(data, 1, 3)):
            for warm in (False, True):
                same(expected, exchange(gateway.data, *pieces, warm=warm))


def test_trailers_are_no_headers(gateway: Gateway) -> None:
    """What comes behind a body must not change how it was read (RFC 9110, 6.5.1)."""
    expected = exchange(gateway.data, PLAIN.whole("?"))
    for line in ("turnout-variant: nope", "content-encoding: gzip", "host: b", "x: " + "y" * 60_000):
        for query in ("?", ""):
            data = PLAIN.chunked(50, query).removesuffix(b"\r\n") + f"{line}\r\n\r\n".encode()
            for at in ([], [-4], [-30], [300]):
                for warm in (False, True):
                    same(expected, exchange(gateway.data, *cut(data, *at), warm=warm))


@pytest.mark.parametrize(
    "line", ["Connection: close", "Content-Length: 5", "Upgrade: h2c", "X: " + "y" * 500_000]
)
def test_trailers_that_are_refused(gateway: Gateway, line: str) -> None:
    for query in ("?", ""):
        data = PLAIN.chunked(50, query).removesuffix(b"\r\n") + f"{line}\r\n\r\n".encode()
        for warm in (False, True):
            refusal, end = exchange(gateway.data, *cut(data, -5), warm=warm)
            assert (status(refusal), end) == (400, b"")


@pytest.mark.parametrize("query", ["", "?"])
def test_one_answer_to_a_body_that_breaks_as_it_is_refused(gateway: Gateway, query: str) -> None:
    """Over the limit and then no chunk, in one packet: a second answer would be taken for the next request's."""
    data = PLAIN.head(query, "Transfer-Encoding: chunked") + b"%x\r\n" % BODY_LIMIT + bytes(BODY_LIMIT)
    for warm in (False, True):
        answer, end = exchange(gateway.data, data, b"\r\n2\r\nab\r\nxyz\r\n", warm=warm)
        assert (status(answer) in (400, 413), end) == (True, b"")


@pytest.mark.parametrize("query", ["", "?"])
def test_what_is_left_of_a_refused_body_is_passed_over(gateway: Gateway, query: str) -> None:
    """It must not be taken for the next request, whatever it looks like."""
    junk = (PLAIN.whole() * 20_000)[: 3 * 1024 * 1024]
    announced = PLAIN.head(query, f"Content-Length: {len(junk)}") + junk
    chunked = PLAIN.head(query, "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(junk), junk)
    for data in (announced, chunked):
        for warm in (False, True):
            with RawConnection(gateway.data) as connection:
                if warm:
                    connection.write(PLAIN.whole())
                    connection.read()
                connection.write(data, LIVE)
                assert status(connection.read()) == 413
                assert connection.read().endswith(b'{"live":true}')
