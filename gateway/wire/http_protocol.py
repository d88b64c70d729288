"""One HTTP connection: uvicorn's protocol, where it trusts its clients too much or understands too little.

It closes connections whose requests never become whole and those whose answers nobody reads, bounds the head
of a request, answers what is no HTTP in the protocol's own form and behind what it was asked before, and
passes over offers to upgrade, which Java's client makes with each connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from enum import Enum
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

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
HALF_CLOSED_S = 1.0
"""How long a client gets its answers that has closed its own half of the connection. Most such clients have gone
altogether, which looks the same, and what still waits to run for them is to be dropped."""
_SILENCE = b"", b""
"""For the last words of a connection that closes without any."""
_BETWEEN_BYTES = 4
"""The colon, the space and the end of the line."""
_VERSIONS = ("1.1", "1.0")
_FRAMING = frozenset(
    {b"connection", b"proxy-connection", b"content-length", b"transfer-encoding", b"upgrade"}
)
_UPGRADE_HEADERS = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Phase(Enum):
    FRESH = "no byte of a request has come on this connection"
    HEAD = "the headers are not complete"
    BODY = "the headers are, the body is not"
    WHOLE = "nothing is missing; between two requests the time-out is for keeping alive"


class _Flow(FlowControl):
    """Reads on when there is nothing left to answer: uvicorn would read more requests with each answer.

    A read may bring thousands of small ones, so that a client that never stops would fill the memory.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class HttpProtocol(HttpToolsProtocol):
    """Arms a timer only for what does not come in one piece, so that most requests cost none."""

    head_s = HEAD_S
    body_s = BODY_S
    write_s = WRITE_S
    half_closed_s = HALF_CLOSED_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = Phase.FRESH
        self._head_bytes = 0
        """Of the pieces that ended within this head, and held nothing else."""
        self._begun = 0
        """Heads that began in this piece."""
        self._piece_bytes = 0
        self._body_bytes = 0
        self._dry_bytes = 0
        """What came within a body and was none of it: the chunks' own lines, and what is behind the last."""
        self._running: RequestResponseCycle | None = None
        """The application's latest request; others may wait behind it."""
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._due = False
        """Whether a deadline begins: a new head, or a new body."""
        self._too_much = ""
        """What of the head is over its limit."""
        self._last_words: tuple[bytes, bytes] | None = None
        """An answer that closes the connection, once those before it are out: its head but for `origin` and
        the empty line, and its body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._arm(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._disarm_write()
        self._unset_keepalive_if_required()
        if self._running is not None and not self._running.response_complete:
            # uvicorn tells the latest request that came, which may be one that still waits.
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: the client will write no more, but it may be reading."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        if self._last_words is None:
            if self._phase is Phase.BODY:
                if not self.pipeline:
                    return False  # the rest of this very request is missing
                self.pipeline.popleft()
            self._last_words = _SILENCE
            self._disarm()
            self._timer = self.loop.call_later(self.half_closed_s, self._look_whether_gone)
        return True

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        body_bytes = self._body_bytes
        is_between = self._phase is Phase.WHOLE or self._phase is Phase.FRESH
        self._begun = 0
        if self._last_words is not None or not self._parse(data):
            return
        if self._phase is Phase.WHOLE:
            if self._timer is not None:
                self._disarm()
            if self.cycle is not None and self.cycle.response_complete:
                # An empty line, or the rest of a body that was refused: there is no answer to come.
                self._keep_alive()
            return
        if self._phase is Phase.HEAD:
            if self._begun <= is_between:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES:
                    self._too_much = _too_many_bytes()
        elif self._phase is Phase.BODY:
            self._dry_bytes = self._dry_bytes + len(data) if self._body_bytes == body_bytes else 0
            if self._dry_bytes > HEAD_BYTES:
                self._refuse(400, f"the body's framing takes more than {HEAD_BYTES} bytes, the limit")
                return
        if self._too_much:
            self._refuse_unparsable()
        elif self._due:
            self._arm(self.head_s if self._phase is Phase.HEAD else self.body_s)

    def _parse(self, data: bytes) -> bool:
        """Whether it was HTTP; if not, it has been refused."""
        while True:
            self._piece_bytes = len(data)
            try:
                self.parser.feed_data(data)
                return True
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self._refuse(400, "CONNECT is not for this server: it is no proxy")
                    return False
                data = self._without_offer() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self._refuse_unparsable()
                return False

    def on_message_begin(self) -> None:
        # uvicorn makes the scope here: see `_to_application`.
        self.url = b""
        self.headers = []
        self._phase, self._due = Phase.HEAD, True
        self._head_bytes = 0
        self._begun += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.BODY:
            # A trailer: it must not change how the request was read (RFC 9110, 6.5.1), but the parser lets it.
            if name.lower() in _FRAMING:
                raise ValueError("a trailer about the framing of the message that it ends")
            return
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._check_head()
        if self.parser.should_upgrade():
            return  # the parser stops behind the headers: see _without_offer
        self._to_application()
        self._phase, self._due = Phase.BODY, True
        self._dry_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._phase = Phase.WHOLE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writing()
        elif self._last_words is not None and is_last:
            self._say_last_words()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered: it has a while to go on."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._disarm_write()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _check_head(self) -> None:
        """Raises where the head is over a limit, which ends the parser with an error."""
        headers = self.headers
        if self.parser.get_http_version() not in _VERSIONS:
            raise ValueError("the parser knows 0.9 and 2.0, too, which are framed in other ways")
        if len(headers) > HEADERS:
            self._too_much = f"{len(headers)} headers, the limit is {HEADERS}"
        elif self._head_bytes + self._piece_bytes > HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + _BETWEEN_BYTES for name, value in headers)
            if size > HEAD_BYTES:
                self._too_much = _too_many_bytes()
        if self._too_much:
            raise ValueError(self._too_much)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _to_application(self) -> None:
        """Hands the request, of which the head is known, to uvicorn's own way."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            HttpToolsProtocol.on_header(self, name, value)
        super().on_headers_complete()

    def _without_offer(self) -> bytes:
        """The request's head for a new parser, without its offer: a server need not take it (RFC 9110, 7.8).

        The parser takes what is behind the headers for another protocol, while it is the request's body.
        """
        head = [
            b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        head += [b"%s: %s" % header for header in self.headers if header[0] not in _UPGRADE_HEADERS]
        if not self.parser.should_keep_alive():
            head.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join((*head, b"", b""))

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
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
            % (status, HTTPStatus(status).phrase.encode(), len(body)),
            body,
        )
        self.flow.pause_reading()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            if self._phase is Phase.BODY:
                self._last_words = _SILENCE  # the request whose body is broken has been answered
            self._say_last_words()
        elif self._phase is Phase.BODY:
            # The request itself, not one behind it, came to nothing.
            if self.pipeline:
                self.pipeline.popleft()
                return
            if cycle.response_started:
                self._last_words = _SILENCE
            cycle.disconnected = True
            cycle.message_event.set()
            self._say_last_words()

    def _say_last_words(self) -> None:
        head, body = self._last_words or _SILENCE
        if head:
            self.transport.writelines([head, self.origin(), b"\r\n", body])
        self._close()

    def origin(self) -> bytes:
        """Lines of headers for an answer that is given here: by which revision, where there is such a thing."""
        return b""

    def _close(self) -> None:
        """Once all is written that was to be: in vain where nobody reads it, so there is a deadline."""
        self.transport.close()
        self._watch_writing()

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

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
            self._close()
        else:
            self._refuse(408, "the rest of the request did not come in time")

    def _look_whether_gone(self) -> None:
        self._timer = None
        if self.transport.get_write_buffer_size():
            # It may be reading; if not, that has its own deadline.
            self._timer = self.loop.call_later(self.half_closed_s, self._look_whether_gone)
        else:
            self.transport.abort()

    def _watch_writing(self) -> None:
        is_lost = self.parser is None
        if self._write_timer is None and not is_lost:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self.write_s, self._look_whether_read)

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
