"""Plain infer requests from the bytes of a connection to the bytes of its answer: no scope, no task, no ASGI.

Whatever is not plain goes uvicorn's own way, and so does all that comes behind a request that is under way:
the order of pipelined answers is uvicorn's business. Both ways give the same answers, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.serving.answer import Answer
from gateway.serving.inference import Decided
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse
from gateway.wire import answers
from gateway.wire.bundles import Collector
from gateway.wire.codec import Headers, encode_open
from gateway.wire.http_protocol import HttpProtocol, Phase
from gateway.wire.lane import Lane
from gateway.wire.oip_binary import Buffer
from gateway.wire.plain_heads import INFER_PATH, Fields, Target

log = logging.getLogger(__name__)

_BEGINNING = b"POST /v2/models/"
_BLANK_LINE = b"\r\n\r\n"


class _NoEvent:
    """Nobody waits: there is no task."""

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class _Cycle:
    """Stands where uvicorn has the cycle of a request and its response; one for all requests of a connection."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete", "response_started")

    def __init__(self) -> None:
        self.disconnected = False
        self.keep_alive = True
        self.response_started = False
        self.response_complete = True
        self.message_event = _NO_EVENT


class FastLane(HttpProtocol):
    """A connection whose plain infer requests go by the lane."""

    def __init__(self, lane: Lane, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lane = lane
        self._own = _Cycle()
        self._target: Target | None = None
        """Of the request that is under way here, None where none is."""
        self._receiving = False
        """Whether what the parser has at hand is a part of that request."""
        self._fields: Fields = {}
        """The request's headers."""
        self._body: bytes | bytearray = b""
        self._refusal: InferenceError | None = None
        self._ready = False
        """Whether nothing more of the request is needed."""
        self.started_ns = 0
        self.collector: Collector | None = None
        """Who has the request that is under way."""
        self._answer: Answer | None = None
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.WHOLE and data.startswith(_BEGINNING) and self._is_waiting():
            end = data.find(_BLANK_LINE)
            known = self._lane.known(data[:end]) if end > 0 else None
            if known is not None:
                (target, fields, length), collector = known
                body = data[end + 4 :]
                if len(body) == length <= self._lane.limits.body_bytes:
                    self._begin(target, fields)
                    if collector is not None:
                        self.collector = collector
                        collector.add(self, body)
                    else:
                        self._start(body)
                    return
        super().data_received(data)
        if self._ready:
            # Not in the parser's call-back, whose exceptions are taken for bad HTTP.
            self._ready = False
            body = bytes(self._body)
            self._body = b""
            if not self.transport.is_closing():
                self._start(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._target = None
        collector, self.collector = self.collector, None
        if collector is not None:
            collector.lost(time.perf_counter_ns() - self.started_ns)
        answer, self._answer = self._answer, None
        super().connection_lost(exc)
        if answer is not None:
            answer.cancel()
            answer.finish(499)

    def origin(self) -> bytes:
        """When it is written, not when it is made: those that wait before it may be routed by a later one."""
        return answers.header_lines(answers.turnout_headers(self._lane.revision, None))

    def start_again(self, body: bytes, decided: Decided) -> None:
        """See `Asker.start_again`."""
        self.collector = None
        self._start(body, decided)

    def fail(self, decided: Decided, error: InferenceError) -> None:
        """See `Asker.fail`."""
        self.collector = None
        self._lane.inference.fail(decided, error, self._answered, self.started_ns)

    def give_up(self) -> None:
        """See `Asker.give_up`."""
        self.transport.abort()

    def answer_row(self, lines: bytes, body: bytes, now: float) -> None:
        """See `Asker.answer_row`. Where it raises the request is still the collector's, to be counted once."""
        cycle = self._own
        if self._lane.draining or not cycle.keep_alive or self.pipeline or self._last_words is not None:
            self._close_or_go_on(lines, body)
            return
        self.transport.write(b"%s%d\r\n\r\n%s" % (lines, len(body), body))
        self._target = self.collector = None
        self.server_state.total_requests += 1
        cycle.response_complete = True
        self._idle_since = now
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)
        if self.flow.write_paused:
            self.flow.pause_reading()

    def _close_or_go_on(self, lines: bytes, body: bytes) -> None:
        if self._lane.draining:
            self._own.keep_alive = False
        closing = b"" if self._own.keep_alive else b"connection: close\r\n"
        self.transport.write(b"%s%d\r\n%s\r\n%s" % (lines, len(body), closing, body))
        self._target = self.collector = None
        self._complete()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.pipeline:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        if not self._receiving:
            super().on_body(body)
            return
        self._body_bytes += len(body)
        if self._target is None or self._refusal is not None:
            return
        limit = self._lane.limits.body_bytes
        if len(self._body) + len(body) > limit:
            self._body = b""
            self._refusal = answers.too_large(limit + 1, limit)
            self._ready = True
        elif not self._body:
            self._body = body
        else:
            # Not a list of parts: a client may send them of a byte or two.
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        if not self._receiving:
            super().on_message_complete()
            return
        self._phase = Phase.WHOLE
        self._receiving = False
        if self._target is not None:
            self._ready = True

    def _to_application(self) -> None:
        target = self._plain_target()
        self._receiving = target is not None
        if target is None:
            super()._to_application()
        else:
            self._body = b""
            self._begin(target, self._fields)

    def _is_waiting(self) -> bool:
        """Whether every request of this connection has been answered, and another one may come."""
        cycle = self.cycle
        return cycle is None or (cycle.response_complete and self._last_words is None)

    def _plain_target(self) -> Target | None:
        """None where anything about the request's head asks for more than the lane knows."""
        match = INFER_PATH.fullmatch(self.url)
        if match is None or not self._is_waiting():
            return None
        fields = self._fields = dict(self.headers)
        if (
            len(fields) != len(self.headers)
            or b"host" not in fields
            or b"expect" in fields
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or not self.parser.should_keep_alive()
        ):
            return None
        announced = fields.get(b"content-length")
        if announced is not None and int(announced) > self._lane.limits.body_bytes:
            return None
        return match[1].decode(), None if match[2] is None else match[2].decode()

    def _begin(self, target: Target, fields: Fields) -> None:
        self.started_ns = time.perf_counter_ns()
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._target = target
        self._fields = fields
        cycle = self._own
        cycle.response_started = cycle.response_complete = False
        self.cycle = cycle  # type: ignore[assignment]

    def _start(self, body: bytes, decided: Decided | None = None) -> None:
        try:
            if self._refusal is not None:
                raise self._refusal
            if answers.is_large_request(self._fields, body):
                self._in_task(self._decode_large(body, decided))
                return
            request, _ = self._lane.codec.decode(body, self._fields)
        except InferenceError as error:
            self._refusal = None
            self._refuse_request(error)
        else:
            self._run(request, decided)

    async def _decode_large(self, body: bytes, decided: Decided | None) -> None:
        target = self._target
        assert target is not None
        decoded: InferRequest | InferenceError
        try:
            lane = self._lane
            decoded, _ = await asyncio.to_thread(
                answers.decode, lane.codec, self._fields, body, lane.limits.body_bytes
            )
        except InferenceError as error:
            decoded = error
        if self._target is None:
            gone = InferenceError(499, "the client went away")
            self._lane.inference.refuse(target[0], gone, lambda _: None, self.started_ns).finish(499)
        elif isinstance(decoded, InferenceError):
            self._refuse_request(decoded)
        else:
            self._run(decoded, decided)

    def _run(self, request: InferRequest, decided: Decided | None) -> None:
        assert self._target is not None
        route, version = self._target
        answer = self._lane.inference.start(
            route, version, request, self._fields.get, self._answered, self.started_ns, decided
        )
        if self._target is not None:
            self._answer = answer

    def _refuse_request(self, error: InferenceError) -> None:
        assert self._target is not None
        self._lane.inference.refuse(self._target[0], error, self._answered, self.started_ns)

    def _answered(self, answer: Answer) -> None:
        self._answer = answer
        codec = self._lane.codec
        if answer.error is not None:
            self._write(answer, *answers.encode_error(codec, answer.error))
            return
        response = answer.response
        assert response is not None
        if answers.is_quick_response(self._fields, response):
            self._write(answer, *answers.encode(codec, encode_open, response))
        else:
            self._in_task(self._write_large(answer, response))

    async def _write_large(self, answer: Answer, response: InferResponse) -> None:
        encoded = await asyncio.to_thread(
            answers.encode_large, self._lane.codec, encode_open, response, self._fields
        )
        if self._answer is answer:
            self._write(answer, *encoded)

    def _write(self, answer: Answer, status: int, headers: Headers, body: Sequence[Buffer]) -> None:
        cycle = self._own
        if self._lane.draining:
            cycle.keep_alive = False
        head = [
            *self.server_state.default_headers,
            *answers.turnout_headers(answer.revision, answer.served),
            *headers,
        ]
        head.append((b"content-length", b"%d" % answers.size(body)))
        if not cycle.keep_alive:
            head.append((b"connection", b"close"))
        self.transport.writelines([STATUS_LINE[status], answers.header_lines(head), b"\r\n", *body])
        self._answer = self._target = None
        answer.finish(status)
        self._complete()

    def _complete(self) -> None:
        cycle = self._own
        cycle.response_complete = True
        if not cycle.keep_alive:
            self._close()
        elif self.pipeline or self._last_words is not None:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._idle_since = self.loop.time()
            if self._idle_timer is None:
                self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)
        if self.flow.write_paused:
            self.flow.pause_reading()

    def _look_whether_idle(self) -> None:
        """One timer for the life of the connection, not one for each request."""
        self._idle_timer = None
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._look_whether_idle)
        elif (
            self._phase is Phase.WHOLE
            and self.cycle.response_complete
            and self.timeout_keep_alive_task is None  # which is uvicorn's, behind an answer of its own
        ):
            self._close()
        # Else the next answer makes a timer again.

    def _in_task(self, work: Coroutine[Any, Any, None]) -> None:
        """For what takes a thread; uvicorn waits for its tasks when it stops."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a request could not be answered", exc_info=task.exception())
            self.transport.close()
