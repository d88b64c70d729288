"""Whatever head is taken for plain, the parser would have read as the very same request, and as one alone."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from gateway.wire.http_protocol import HEAD_BYTES, HEADERS
from gateway.wire.plain_heads import PlainHeads

FIRST = b"POST /v2/models/digits/infer HTTP/1.1"
BEHIND = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"


class Parsed:
    """What a parser calls back, as uvicorn sets one up."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.whole: list[tuple[Any, ...]] = []
        self.begun = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.begun += 1
        self.url, self.fields, self.body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        parser = self.parser
        state = (parser.get_http_version(), parser.should_keep_alive(), parser.should_upgrade())
        self.whole.append((parser.get_method(), self.url, self.fields, self.body, state))


NAME_BYTES = b"!#$%&'*+-.^_`|~09azAZ"
GOOD_NAMES = st.sampled_from(
    [b"Accept", b"Content-Type", b"turnout-key", b"X", b"x-a", b"User-Agent", b"X_Y", b"~!"]
)
GOOD_VALUES = st.sampled_from([b"a", b"*/*", b"application/json", b"a b", b"a, b;q=0.5", b'"\\"', b"~", b"0"])
SPECIAL = [
    b"Content-Length", b"content-length", b"Connection", b"Proxy-Connection", b"Transfer-Encoding", b"Upgrade",
    b"Expect", b"HTTP2-Settings", b"Keep-Alive", b"TE", b"Trailer", b"Host", b"Content-Encoding",
]  # fmt: skip
ODD_VALUES = [
    b"", b" ", b"\t", b"a\t", b"a ", b"\ta", b"a\tb", b"\xff", b"a\x00", b"a\x7f", b"a\nb", b"a\rb", b"a\r\n b", b"a\n",
    b"close", b"keep-alive", b"Keep-Alive", b"keep-alive, close", b"upgrade", b"chunked", b"gzip, chunked",
    b"identity", b"websocket", b"h2c", b"100-continue", b"5", b"+5", b"-5", b"0005", b"00", b"5,5", b"5, 5", b"5 ",
    b"5 5", b"0x5", b"5_0", b"5.0", b"1e1", b"18446744073709551616", b"9" * 16, b"9" * 40, b"\xd9\xa5",
]  # fmt: skip
SEPARATORS = st.sampled_from([b": ", b": ", b": ", b":", b":  ", b" : ", b":\t", b"", b" ", b";"])
ANY_LINE = st.one_of(
    st.builds(lambda *parts: b"".join(parts), GOOD_NAMES | st.sampled_from(SPECIAL), SEPARATORS,
              GOOD_VALUES | st.sampled_from(ODD_VALUES)),
    st.builds(lambda name, value: name + b": " + value, st.binary(max_size=4), st.binary(max_size=6)),
    st.binary(max_size=12),
    st.sampled_from([b"", b" folded", b"\tfolded", b":", b": a", b"no colon", b"GET / HTTP/1.1"]),
)  # fmt: skip
GOOD_LINE = st.builds(lambda name, value: name + b": " + value, GOOD_NAMES, GOOD_VALUES) | st.sampled_from(
    [b"Connection: keep-alive", b"connection:Keep-Alive", b"Content-Encoding: gzip", b"Keep-Alive: timeout=5"]
)
GOOD_FIRST = st.sampled_from(
    [
        FIRST,
        b"POST /v2/models/a/versions/1.0-b_c/infer HTTP/1.1",
        b"POST /v2/models/" + b"a" * 128 + b"/infer HTTP/1.1",
    ]
)
ANY_FIRST = st.sampled_from(
    [
        FIRST + b" ", FIRST.replace(b"1.1", b"1.0"), FIRST.replace(b"1.1", b"1.2"), FIRST.replace(b" HTTP", b"  HTTP"),
        FIRST.replace(b"POST", b"post"), FIRST.replace(b"infer", b"infer?a"), FIRST.replace(b"digits", b"%64"),
        FIRST.replace(b"digits", b"a/../b"), FIRST.replace(b"digits", b"a" * 129), FIRST.replace(b"HTTP", b"http"),
        FIRST[:-9], FIRST.replace(b"POST ", b"POST\t"), b"\r\n" + FIRST, FIRST + b"\nX: a",
    ]
)  # fmt: skip


def _name(line: bytes) -> bytes:
    return line.split(b":")[0].lower()


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Often good; else with something odd somewhere, be it a line or a byte."""
    length = draw(st.integers(0, 40))
    lines = [
        b"Host: a",
        b"Content-Length: %d" % length,
        *draw(st.lists(GOOD_LINE, max_size=4, unique_by=_name)),
    ]
    odd = draw(st.sampled_from(["nothing", "a line", "nothing", "the first line", "nothing", "a byte"]))
    if odd == "a line":
        place = draw(st.integers(0, len(lines)))
        lines[place : place + draw(st.integers(0, 1))] = [draw(ANY_LINE)]
    first = draw(ANY_FIRST if odd == "the first line" else GOOD_FIRST)
    head = b"\r\n".join((first, *draw(st.permutations(lines))))
    if odd == "a byte":
        at = draw(st.integers(0, len(head)))
        head = head[:at] + draw(st.binary(max_size=2)) + head[at + draw(st.integers(0, 2)) :]
    return head


SHARED = PlainHeads()
"""Remembers the lines of all examples: what one of them taught it must not change how another is read."""


@settings(max_examples=1500, deadline=None)
@given(head=heads(), known=st.booleans())
@example(head=FIRST + b"\r\nHost: a\r\nContent-Length: 3", known=False)
def test_the_parser_reads_the_same(head: bytes, known: bool) -> None:
    read = (SHARED if known else PlainHeads()).read(head)
    event(f"plain: {read is not None}")
    # What the lane cuts off as a head ends at the first empty line.
    if read is None or b"\r\n\r\n" in head + b"\r\n\r":
        return
    target, fields, length = read
    if length > 10**6:
        return
    body = (b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n" * (length // 20 + 1))[:length]
    parsed = Parsed(head + b"\r\n\r\n" + body + BEHIND)
    assert parsed.begun == len(parsed.whole) == 2
    method, url, their_fields, their_body, state = parsed.whole[0]
    assert (method, their_body, state) == (b"POST", body, ("1.1", True, False))
    assert dict(their_fields) == fields
    assert len(their_fields) == len(fields)
    route, version = target
    assert url.decode() == f"/v2/models/{route}{f'/versions/{version}' if version is not None else ''}/infer"


def test_most_of_the_good_heads_are_plain() -> None:
    """Else the test above says nothing."""
    read = []

    @settings(max_examples=300, deadline=None, database=None)
    @given(head=heads())
    def count(head: bytes) -> None:
        read.append(PlainHeads().read(head) is not None)

    count()
    assert sum(read) > len(read) / 5


@pytest.mark.parametrize(
    "value", [value for value in ODD_VALUES if not value.isascii() or not value.isdigit()]
)
def test_a_length_that_is_no_number_is_not_plain(value: bytes) -> None:
    assert PlainHeads().read(FIRST + b"\r\nHost: a\r\nContent-Length: " + value) is None


@pytest.mark.parametrize(
    "line", [b"X: a\r\n b", b"X: a\nY: b", b"X: a\rY: b", b"X : a", b"X: \xff", b"X:", b"X"]
)
def test_hostile_lines_are_not_plain(line: bytes) -> None:
    good = FIRST + b"\r\nHost: a\r\nContent-Length: 3\r\n"
    assert PlainHeads().read(good + b"X: a") is not None
    assert PlainHeads().read(good + line) is None


def test_the_limits_of_all_heads_are_those_of_plain_ones() -> None:
    good = FIRST + b"\r\nHost: a\r\nContent-Length: 3"
    assert PlainHeads().read(good + b"".join(b"\r\nX-%d: a" % n for n in range(HEADERS - 2))) is not None
    assert PlainHeads().read(good + b"".join(b"\r\nX-%d: a" % n for n in range(HEADERS - 1))) is None
    assert PlainHeads().read(good + b"\r\nX: " + b"a" * (HEAD_BYTES - len(good) - 20)) is not None
    assert PlainHeads().read(good + b"\r\nX: " + b"a" * HEAD_BYTES) is None


def test_what_is_remembered_is_bounded() -> None:
    """Clients may send any number of different lines, and of long ones."""
    plain = PlainHeads()
    for n in range(20_000):
        head = b"POST /v2/models/m%d/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX: %d\r\nY: %s"
        assert plain.read(head % (n, n, b"y" * 1000)) is not None
    assert len(plain._fields) <= 4096 >= len(plain._targets)
    assert max(map(len, plain._fields)) <= 256
