"""One HTTP connection: uvicorn's protocol, where it trusts its clients too much or understands too little.

It closes connections whose requests never become whole, bounds the head of a request, answers what is no HTTP
in the protocol's own form, and passes over offers to upgrade, which Java's client makes with each connection.
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
HEAD_S = 10.0
"""From a connection or the first byte of a request to the end of its headers."""
BODY_S = 20.0
"""In each such period a body brings `BODY_BYTES`, or its end."""
BODY_BYTES = 64 * 1024
_BETWEEN_BYTES = 4
"""The colon, the space and the end of the line."""
_UPGRADE_HEADERS = frozenset({b"connection", b"upgrade", b"http2-settings"})


class _Phase(Enum):
    FRESH = "no byte of a request has come on this connection"
    HEAD = "the headers are not complete"
    BODY = "the headers are, the body is not"
    WHOLE = "nothing is missing; between two requests the time-out is uvicorn's"


class HttpProtocol(HttpToolsProtocol):
    """Arms a timer only for what does not come in one piece, so that most requests cost none."""

    head_s = HEAD_S
    body_s = BODY_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = _Phase.FRESH
        self._head_bytes = 0
        self._body_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        """Whether a deadline begins: a new head, or a new body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_over_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse_unparsable()
            return
        if self._phase is _Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse_unparsable()
        if self._phase is _Phase.WHOLE:
            self._disarm()
        elif self._due:
            self._arm(self.head_s if self._phase is _Phase.HEAD else self.body_s)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self._due = _Phase.HEAD, True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + _BETWEEN_BYTES
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the head is too large")  # ends the parser with an error
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser stops behind the headers: see _pass_over_upgrade
        self._phase, self._due = _Phase.BODY, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._phase = _Phase.WHOLE
        super().on_message_complete()

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
        if self._head_bytes > HEAD_BYTES:
            self._refuse(431, f"the request's headers have more than {HEAD_BYTES} bytes, the limit")
        else:
            self._refuse(400, "the request is no valid HTTP")

    def _refuse(self, status: int, message: str) -> None:
        """Answers outside of the application, where no answer of it is under way, and closes."""
        self._disarm()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if self._phase is _Phase.BODY:
            may_answer = not cycle.response_started and not self.pipeline
        else:
            may_answer = cycle is None or cycle.response_complete
        if may_answer:
            body = encode_error(message)
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s" % (status, HTTPStatus(status).phrase.encode(), len(body), body)
            )
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
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

    def _expired(self) -> None:
        self._timer = None
        if self.flow.read_paused or (self._phase is _Phase.BODY and self._body_bytes >= BODY_BYTES):
            # It is us who do not read on, or the body comes, and is only large.
            self._arm(self.body_s)
        elif self._phase is _Phase.FRESH:
            self.transport.close()
        else:
            self._refuse(408, "the rest of the request did not come in time")
