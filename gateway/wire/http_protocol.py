"""One HTTP connection: uvicorn's protocol, where it trusts its clients too much or understands too little.

It closes connections whose requests never become whole and those whose answers nobody reads, bounds the head
of a request, answers what is no HTTP in the protocol's own form and behind what it was asked before, and
passes over offers to upgrade, which Java's client makes with each connection.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.wire.oip_json import encode_error

HEAD_BYTES = 64 * 1024
"""Of a request's line and headers."""
HEADERS = 256
HEAD_S = 10.0
"""From a connection or the first byte of a request to the end of its headers."""
BODY_S = 20.0
"""In each such period a body brings `BODY_BYTES`, or its end."""
BODY_BYTES = 64 * 1024
WRITE_S = 20.0
"""In each such period a client takes some of an answer that waits for it."""
_BETWEEN_BYTES = 4
"""The colon, the space and the end of the line."""
_UPGRADE_HEADERS = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Phase(Enum):
    FRESH = "no byte of a request has come on this connection"
    HEAD = "the headers are not complete"
    BODY = "the headers are, the body is not"
    WHOLE = "nothing is missing; between two requests the time-out is for keeping alive"


class HttpProtocol(HttpToolsProtocol):
    """Arms a timer only for what does not come in one piece, so that most requests cost none."""

    head_s = HEAD_S
    body_s = BODY_S
    write_s = WRITE_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = Phase.FRESH
        self._head_bytes = 0
        """Of the pieces that ended within this head."""
        self._piece_bytes = 0
        self._body_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._due = False
        """Whether a deadline begins: a new head, or a new body."""
        self._too_much = ""
        """What of the head is over its limit."""
        self._last_words: bytes | None = None
        """An answer that closes the connection, once those before it are out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._disarm_write()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._last_words is not None:
            return
        self._piece_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_over_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse_unparsable()
            return
        if self._phase is Phase.WHOLE:
            if self._timer is not None:
                self._disarm()
            return
        if self._phase is Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._too_much = _too_many_bytes()
                self._refuse_unparsable()
                return
        if self._due:
            self._arm(self.head_s if self._phase is Phase.HEAD else self.body_s)

    def on_message_begin(self) -> None:
        # uvicorn makes the scope here: see `_to_application`.
        self.url = b""
        self.headers = []
        self._phase, self._due = Phase.HEAD, True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._check_head()
        if self.parser.should_upgrade():
            return  # the parser stops behind the headers: see _pass_over_upgrade
        self._phase, self._due = Phase.BODY, True
        self._to_application()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._phase = Phase.WHOLE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._last_words is not None and not self.pipeline and not self.transport.is_closing():
            self._say_last_words()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered: it has a while to go on."""
        super().pause_writing()
        if self._write_timer is None:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self.write_s, self._look_whether_read)

    def resume_writing(self) -> None:
        self._disarm_write()
        super().resume_writing()

    def _check_head(self) -> None:
        """Raises where the head is over a limit, which ends the parser with an error."""
        headers = self.headers
        if len(headers) > HEADERS:
            self._too_much = f"{len(headers)} headers, the limit is {HEADERS}"
        elif self._head_bytes + self._piece_bytes > HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + _BETWEEN_BYTES for name, value in headers)
            if size > HEAD_BYTES:
                self._too_much = _too_many_bytes()
        if self._too_much:
            raise ValueError(self._too_much)

    def _to_application(self) -> None:
        """Hands the request, of which the head is known, to uvicorn's own way."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            HttpToolsProtocol.on_header(self, name, value)
        super().on_headers_complete()

    def _pass_over_upgrade(self, rest: bytes) -> None:
        """Parses the request again without its offer, which a server is free not to take (RFC 9110, 7.8).

        The parser takes what is behind the headers for another protocol, while it is the request's body.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(400, "CONNECT is not for this server: it is no proxy")
            return
        head = [b"%s %s HTTP/1.1" % (method, self.url)]
        head += [b"%s: %s" % header for header in self.headers if header[0] not in _UPGRADE_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"\r\n".join((*head, b"", b"")) + rest)

    def _refuse_unparsable(self) -> None:
        if self._too_much:
            self._refuse(431, f"the request's head has {self._too_much}")
        else:
            self._refuse(400, "the request is no valid HTTP")

    def _refuse(self, status: int, message: str) -> None:
        """Answers outside of the application, behind the answers that are under way, and closes."""
        self._disarm()
        if self.transport.is_closing():
            return
        body = encode_error(message)
        self._last_words = (
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, HTTPStatus(status).phrase.encode(), len(body), body)
        )
        self.flow.pause_reading()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            if self._phase is Phase.BODY and cycle is not None:
                self._last_words = b""  # the request whose body is broken has been answered
            self._say_last_words()
        elif self._phase is Phase.BODY:
            # The request itself, not one behind it, came to nothing.
            if cycle.response_started or self.pipeline:
                self._last_words = b""
            cycle.disconnected = True
            cycle.message_event.set()
            self._say_last_words()

    def _say_last_words(self) -> None:
        if self._last_words:
            self.transport.write(self._last_words)
        self.transport.close()

    def _arm(self, after_s: float) -> None:
        self._disarm()
        self._body_bytes = 0
        self._due = False
        self._timer = self.loop.call_later(after_s, self._expired)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _disarm_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expired(self) -> None:
        self._timer = None
        if self.flow.read_paused or (self._phase is Phase.BODY and self._body_bytes >= BODY_BYTES):
            # It is us who do not read on, or the body comes, and is only large.
            self._arm(self.body_s)
        elif self._phase is Phase.FRESH:
            self.transport.close()
        else:
            self._refuse(408, "the rest of the request did not come in time")

    def _look_whether_read(self) -> None:
        self._write_timer = None
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes >= self._unread_bytes:
            self.transport.abort()
            return
        self._unread_bytes = unread_bytes
        self._write_timer = self.loop.call_later(self.write_s, self._look_whether_read)


def _too_many_bytes() -> str:
    return f"more than {HEAD_BYTES} bytes, the limit"
