"""A connection whose every byte is the test's, both ways."""

from __future__ import annotations

import re
import socket
import struct
from types import TracebackType
from urllib.parse import urlsplit

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
_DATE = re.compile(rb"^date: .*?\r\n", re.MULTILINE)
_LENGTH = re.compile(rb"^content-length: (\d+)\r\n", re.MULTILINE)


class RawConnection:
    """Writes what it is told, and reads answers as the bytes that they are, apart from their dates."""

    def __init__(self, url: str, *, source: str = "", receive_bytes: int = 0) -> None:
        """`url` is the gateway's; `receive_bytes` is the kernel's buffer, for a client that does not read."""
        parts = urlsplit(url)
        self.socket = socket.socket()
        self.socket.settimeout(20)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self.socket.makefile("rb")

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, *pieces: bytes) -> None:
        """Each in a system call of its own."""
        for piece in pieces:
            self.socket.sendall(piece)

    def read(self) -> bytes:
        """One answer with a Content-Length, or an interim one; nothing where the server has closed."""
        head = b"".join(iter(self._line, b""))
        length = _LENGTH.search(head)
        body = self._stream.read(int(length[1])) if length else b""
        return _DATE.sub(b"", head) + body

    def rest(self) -> bytes:
        """All until the server closes."""
        return _DATE.sub(b"", self._stream.read())

    def reset(self) -> None:
        """Closes so that the server hears of it at once, whatever is under way."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._stream.close()
        self.socket.close()

    def _line(self) -> bytes:
        """A line of a head; nothing behind its last one, the empty one."""
        if self._ended:
            self._ended = False
            return b""
        line = self._stream.readline()
        self._ended = line == b"\r\n"
        return line

    _ended = False


def status(answer: bytes) -> int:
    return int(answer[9:12])
