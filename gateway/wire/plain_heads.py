"""The heads of plain infer requests, read line by line: a third of what the parser's call-backs cost.

Clients send the same lines again and again, so most are known already. What is accepted here is a small part
of what HTTP allows, and the parser would give the very same fields for it (a test compares the two); whatever
is not accepted is the parser's. See docs/decisions/010.
"""

from __future__ import annotations

import re

from gateway.routing.names import NAME
from gateway.wire.http_protocol import HEAD_BYTES, HEADERS

Target = tuple[str, "str | None"]
"""Route and version."""
Fields = dict[bytes, bytes]
"""Lower-case name → value."""
Head = tuple[Target, Fields, int]
"""Target, headers and Content-Length."""

INFER_PATH = re.compile(rf"/v2/models/({NAME.pattern})(?:/versions/({NAME.pattern}))?/infer".encode())
_FIRST_LINE = re.compile(rb"POST " + INFER_PATH.pattern + rb" HTTP/1\.1")
_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ?([!-~](?:[ -~]*[!-~])?)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,14}")
_NOT_PLAIN = frozenset(
    {b"connection", b"proxy-connection", b"transfer-encoding", b"upgrade", b"expect", b"http2-settings"}
)
"""They change how the rest of the connection is read or answered."""
_KEPT = (b"connection", b"keep-alive")
_REMEMBERED = 4096
"""Lines of each kind: clients may send any number of different ones."""
_LONGEST = 256


class PlainHeads:
    """Reads heads, and remembers the lines that it has read."""

    def __init__(self) -> None:
        self._targets: dict[bytes, Target] = {}
        self._fields: dict[bytes, tuple[bytes, bytes]] = {}
        self._known = self._fields.__getitem__

    def read(self, head: bytes) -> Head | None:
        """A head without its empty line; None where it is not plain."""
        lines = head.split(b"\r\n")
        first = lines.pop(0)
        if len(head) > HEAD_BYTES or len(lines) > HEADERS:
            return None
        target = self._targets.get(first) or self._read_target(first)
        if target is None:
            return None
        try:
            fields = dict(map(self._known, lines))
        except KeyError:
            read = [self._fields.get(line) or self._read_field(line) for line in lines]
            if None in read:
                return None
            fields = dict(read)  # type: ignore[arg-type]
        # Each once: the parser knows what to do with two of a kind.
        if len(fields) != len(lines) or b"host" not in fields or b"content-length" not in fields:
            return None
        return target, fields, int(fields[b"content-length"])

    def _read_target(self, line: bytes) -> Target | None:
        match = _FIRST_LINE.fullmatch(line)
        if match is None:
            return None
        target = match[1].decode(), None if match[2] is None else match[2].decode()
        if len(self._targets) >= _REMEMBERED:
            self._targets.clear()
        self._targets[line] = target
        return target

    def _read_field(self, line: bytes) -> tuple[bytes, bytes] | None:
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        field = match[1].lower(), match[2]
        name, value = field
        if name in _NOT_PLAIN and (name, value.lower()) != _KEPT:
            return None
        if name == b"content-length" and not _LENGTH.fullmatch(value):
            return None
        if len(line) <= _LONGEST:
            if len(self._fields) >= _REMEMBERED:
                self._fields.clear()
            self._fields[line] = field
        return field
