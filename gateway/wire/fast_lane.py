"""Plain infer requests from the bytes of a connection to the bytes of its answer: no scope, no task, no ASGI.

Whatever is not plain goes uvicorn's own way, and so does all that comes behind a request that is under way:
the order of pipelined answers is uvicorn's business. Both ways give the same answers, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.routing.manifest import NAME
from gateway.serving.inference import Answer, Inference
from gateway.serving.live import ServedArm
from gateway.serving.tensors import InferenceError, InferRequest
from gateway.wire import answers
from gateway.wire.answers import Headers
from gateway.wire.http_protocol import HttpProtocol, Phase
from gateway.wire.oip_binary import Buffer
from gateway.wire.oip_json import Limits

log = logging.getLogger(__name__)

_INFER = re.compile(rf"/v2/models/({NAME.pattern})(?:/versions/({NAME.pattern}))?/infer".encode())
_REMEMBERED = 10_000
"""Paths: clients may name any version."""

Target = tuple[str, "str | None"]
"""Route and version."""


class Lane:
    """What the connections of a worker share."""

    def __init__(self, inference: Inference, limits: Limits) -> None:
        self.inference = inference
        self.limits = limits
        self.draining = False
        self._targets: dict[bytes, Target] = {}
        self._heads: dict[ServedArm, bytes] = {}
        self._heads_of: tuple[object, str] = (None, "")

    def target(self, url: bytes) -> Target | None:
        """None for whatever is no infer request with plain names and without a query."""
        target = self._targets.get(url)
        if target is None:
            match = _INFER.fullmatch(url)
            if match is None:
                return None
            target = match[1].decode(), None if match[2] is None else match[2].decode()
            if len(self._targets) >= _REMEMBERED:
                self._targets.clear()
            self._targets[url] = target
        return target

    def head(self, answer: Answer, defaults: Headers) -> bytes:
        """The first lines of an answer of status 200: who gave it, and when.

        `defaults` is uvicorn's list of headers, which it replaces each second for the sake of the date.
        """
        of, revision = self._heads_of
        if of is not defaults or revision is not answer.revision:
            self._heads.clear()
            self._heads_of = defaults, answer.revision
        served = answer.served
        assert served is not None
        head = self._heads.get(served)
        if head is None:
            head = self._heads[served] = _head(200, [*defaults, *answers.turnout_headers(answer)])
        return head


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
        self._fields: dict[bytes, bytes] = {}
        """The request's headers."""
        self._parts: list[bytes] = []
        self._received_bytes = 0
        self._refusal: InferenceError | None = None
        self._ready = False
        """Whether nothing more of the request is needed."""
        self._started_ns = 0
        self._answer: Answer | None = None
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._ready:
            # Not in the parser's call-back, whose exceptions are taken for bad HTTP.
            self._ready = False
            try:
                self._start()
            except Exception:
                log.exception("a request could not be answered")
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._target = None
        answer, self._answer = self._answer, None
        super().connection_lost(exc)
        if answer is not None:
            answer.cancel()
            answer.finish(499)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.pipeline:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        if not self._receiving:
            super().on_body(body)
            return
        self._body_bytes += len(body)
        self._received_bytes += len(body)
        if self._received_bytes <= self._lane.limits.body_bytes:
            self._parts.append(body)
        elif self._target is not None and self._refusal is None:
            self._parts.clear()
            self._refusal = answers.too_large(self._received_bytes, self._lane.limits.body_bytes)
            self._ready = True

    def on_message_complete(self) -> None:
        if not self._receiving:
            super().on_message_complete()
            return
        self._phase = Phase.WHOLE
        self._receiving = False
        if self._target is not None:
            self._ready = True

    def _to_application(self) -> None:
        target = self._lane.target(self.url)
        self._receiving = target is not None and self._is_plain()
        if not self._receiving:
            super()._to_application()
            return
        self._started_ns = time.perf_counter_ns()
        self._target = target
        self._received_bytes = 0
        cycle = self._own
        cycle.response_started = cycle.response_complete = False
        self.cycle = cycle  # type: ignore[assignment]

    def _is_plain(self) -> bool:
        """Whether nothing about the request's head asks for more than the lane knows."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        fields = self._fields = dict(self.headers)
        if (
            len(fields) != len(self.headers)
            or b"host" not in fields
            or b"expect" in fields
            or self.parser.get_method() != b"POST"
            or not self.parser.should_keep_alive()
        ):
            return False
        # HTTP/1.0 keeps a connection only where it is asked to.
        if b"connection" in fields and self.parser.get_http_version() != "1.1":
            return False
        announced = fields.get(b"content-length")
        return announced is None or int(announced) <= self._lane.limits.body_bytes

    def _start(self) -> None:
        parts, self._parts = self._parts, []
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        fields, limits = self._fields, self._lane.limits
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            self._refuse_request(refusal)
        elif answers.is_large_request(fields, body):
            self._in_task(self._decode_large(body))
        else:
            try:
                request = answers.decode(fields, body, limits)
            except InferenceError as error:
                self._refuse_request(error)
            else:
                self._run(request)

    async def _decode_large(self, body: bytes) -> None:
        try:
            request = await answers.decode_large(self._fields, body, self._lane.limits)
        except InferenceError as error:
            if self._target is not None:
                self._refuse_request(error)
        else:
            if self._target is not None:
                self._run(request)

    def _run(self, request: InferRequest) -> None:
        assert self._target is not None
        route, version = self._target
        answer = self._lane.inference.start(
            route, version, request, self._fields.get, self._answered, self._started_ns
        )
        if self._target is not None:
            self._answer = answer

    def _refuse_request(self, error: InferenceError) -> None:
        assert self._target is not None
        self._lane.inference.refuse(self._target[0], error, self._answered, self._started_ns)

    def _answered(self, answer: Answer) -> None:
        self._answer = answer
        if answers.is_quick_answer(self._fields, answer):
            self._write(answer, *answers.encode(answer))
        else:
            self._in_task(self._write_large(answer))

    async def _write_large(self, answer: Answer) -> None:
        encoded = await answers.encode_large(self._fields, answer)
        if self._answer is answer:
            self._write(answer, *encoded)

    def _write(self, answer: Answer, status: int, headers: Headers, body: Sequence[Buffer]) -> None:
        cycle = self._own
        if status == 200:
            head = self._lane.head(answer, self.server_state.default_headers)
        else:
            head = _head(status, [*self.server_state.default_headers, *answers.turnout_headers(answer)])
        if self._lane.draining:
            cycle.keep_alive = False
        closing = b"" if cycle.keep_alive else b"connection: close\r\n"
        if headers is answers.JSON_HEADERS:
            (part,) = body
            self.transport.write(
                b"%scontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s"
                % (head, len(part), closing, part)
            )
        else:
            length = b"content-length: %d\r\n" % answers.size(body)
            self.transport.writelines([head, _lines(headers), length, closing, b"\r\n", *body])
        self._answer = self._target = None
        answer.finish(status)
        self._complete()

    def _complete(self) -> None:
        cycle = self._own
        cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
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
            self.transport.close()
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


def _head(status: int, headers: Headers) -> bytes:
    return STATUS_LINE[status] + _lines(headers)


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%s: %s\r\n" % header for header in headers])
