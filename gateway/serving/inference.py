"""The one data plane under every protocol: from a decoded request to an answer."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from gateway.routing.table import Arm
from gateway.serving.batching import Work
from gateway.serving.classification import classify
from gateway.serving.engine import Array
from gateway.serving.explicit import ExplicitVersions
from gateway.serving.live import Live, LiveRoute, ServedArm
from gateway.serving.tensors import (
    InferenceError,
    InferRequest,
    InferResponse,
    OutputTensor,
    RequestedOutput,
)
from gateway.telemetry.observations import UNKNOWN, VersionObservations

log = logging.getLogger(__name__)

LONGEST_TIMEOUT_US = 24 * 3_600_000_000
"""A client may ask for more; integers without a limit do not fit the clock's floats."""
OVERRIDE_HEADER = b"turnout-variant"
Header = Callable[[bytes], "bytes | None"]
"""Lower-case name → value of the request's header or gRPC metadata."""


class Answer:
    """One request from its decision to its answer. The wire calls `finish` once, after the last byte.

    Until then the version that answers is leased, and a rollback's acknowledgement waits for it.
    """

    __slots__ = (
        "_done",
        "_gone",
        "_observations",
        "_request",
        "_route_name",
        "_started_ns",
        "_work",
        "error",
        "response",
        "revision",
        "served",
    )

    def __init__(
        self,
        route_name: str,
        revision: str,
        observations: VersionObservations,
        started_ns: int,
        done: Callable[[Answer], None],
    ) -> None:
        self._route_name = route_name
        self._started_ns = started_ns
        self._done = done
        self._gone = False
        self._request: InferRequest | None = None
        self._work: Work | None = None
        self._observations = observations
        self.revision = revision
        self.served: ServedArm | None = None
        self.response: InferResponse | None = None
        self.error: InferenceError | None = None

    def finish(self, code: int) -> None:
        """The client has its answer, with this status, or is gone (499)."""
        self._observations.answered(code, time.perf_counter_ns() - self._started_ns)
        served = self.served
        if served is not None:
            self.served = None
            served.leave()

    def cancel(self) -> None:
        """The client is gone: what did not run yet will not. `finish` is still to be called."""
        self._gone = True
        if self._work is not None:
            self._work.cancel()

    def _fail(self, error: InferenceError) -> None:
        self.error = error
        self._done(self)

    def _ran(self, outcome: list[Array] | InferenceError) -> None:
        if type(outcome) is list:
            try:
                self.response = self._response(outcome)
            except InferenceError as error:
                self.error = error
            except Exception as error:
                # An engine that returned something else than its signature promises.
                log.exception("the answer of %s cannot be used", self._observations.labels)
                self.error = InferenceError(
                    500, f"the model's answer cannot be used: {type(error).__name__}"
                )
        else:
            assert isinstance(outcome, InferenceError)
            self.error = outcome
        self._done(self)

    def _response(self, arrays: list[Array]) -> InferResponse:
        """Raises `InferenceError` where an output cannot be classified as the request wants."""
        request, served, work = self._request, self.served, self._work
        assert request is not None and served is not None and work is not None
        datatypes = served.loaded.checker.output_datatypes
        if not request.outputs:
            binary = request.binary_default
            outputs = [
                OutputTensor(name=name, datatype=datatypes[name], array=array, binary=binary)
                for name, array in zip(work.outputs, arrays, strict=True)
            ]
        else:
            outputs = [
                _asked_for(asked, datatypes[asked.name], array, batched=served.loaded.engine.signature.batchable)
                for asked, array in zip(request.outputs, arrays, strict=True)
            ]
        return InferResponse(
            route=self._route_name, version=served.pin.version, outputs=outputs, id=request.id
        )


class Inference:
    """Decides by the live snapshot which version answers, and has it run. Used on the event loop only."""

    def __init__(
        self, live: Live, explicit: ExplicitVersions, draw: Callable[[], float] = random.random
    ) -> None:
        self._live = live
        self._explicit = explicit
        self._draw = draw

    def start(
        self,
        route_name: str,
        version: str | None,
        request: InferRequest,
        header: Header,
        done: Callable[[Answer], None],
        started_ns: int,
    ) -> Answer:
        """Answers by calling `done` with the answer, before it returns or later, and always once.

        Between reading the snapshot and leasing the engine there is no `await`: one request sees one
        revision. `started_ns` is `time.perf_counter_ns()` at the request's arrival.
        """
        snapshot = self._live.snapshot
        route = snapshot.routes.get(route_name)
        if route is None:
            observations = self._live.refused(UNKNOWN)
            answer = Answer(route_name, snapshot.label, observations, started_ns, done)
            answer._fail(_unknown(route_name))
            return answer
        answer = Answer(route_name, snapshot.label, route.refused, started_ns, done)
        timeout_us = request.timeout_us
        if timeout_us is None:
            deadline_ns = started_ns + route.timeout_ns
        else:
            deadline_ns = started_ns + min(timeout_us, LONGEST_TIMEOUT_US) * 1000
        try:
            if version is None:
                served = self._choose(route, request, header)
            else:
                found = self._explicit.find(route, version)
                if found is None:
                    self._load_and_run(answer, version, request, deadline_ns)
                    return answer
                served = found
            _run(answer, served, request, deadline_ns)
        except InferenceError as error:
            answer._fail(error)
        return answer

    def refuse(
        self,
        route_name: str,
        error: InferenceError,
        done: Callable[[Answer], None],
        started_ns: int,
    ) -> Answer:
        """Counts and answers a request that could not be decoded."""
        snapshot = self._live.snapshot
        route = snapshot.routes.get(route_name)
        observations = route.refused if route is not None else self._live.refused(UNKNOWN)
        answer = Answer(route_name, snapshot.label, observations, started_ns, done)
        answer._fail(error)
        return answer

    def _choose(self, route: LiveRoute, request: InferRequest, header: Header) -> ServedArm:
        override = header(OVERRIDE_HEADER)
        entry = route.entry
        if override is not None:
            arm = _override(route, override.decode("latin-1"))
        else:
            if route.sticky_kind == "header":
                key = header(route.sticky_name)
            elif route.sticky_kind == "parameter":
                key = _parameter(request, route.sticky_name)
            else:
                key = None
            picked = entry.pick(key, self._draw)
            if picked is None:
                raise InferenceError(
                    503, f"route '{entry.name}' takes no traffic: all its weights are 0", retry_after_s=5
                )
            arm = picked
        served = route.served(arm)
        if served is None:
            raise InferenceError(
                503, f"version {arm.pin.version} of route '{entry.name}' is not loaded yet", retry_after_s=1
            )
        return served

    def _load_and_run(
        self, answer: Answer, version: str, request: InferRequest, deadline_ns: int
    ) -> None:
        """The version is not loaded: its request waits for it off the common path, within its deadline."""
        route_name = answer._route_name

        def loaded(future: asyncio.Future[ServedArm]) -> None:
            if answer._gone:
                return
            try:
                future.result()
                # Ticks have passed since the load was done: it may be denied or gone by now.
                snapshot = self._live.snapshot
                answer.revision = snapshot.label
                route = snapshot.routes.get(route_name)
                if route is None:
                    raise _unknown(route_name)
                served = self._explicit.find(route, version)
                if served is None:
                    raise InferenceError(
                        503, "the version was unloaded meanwhile: try again", retry_after_s=1
                    )
                _run(answer, served, request, deadline_ns)
            except InferenceError as error:
                answer._fail(error)
            except asyncio.CancelledError:
                answer._fail(InferenceError(503, "this worker is going away: try again", retry_after_s=1))
            except Exception as error:
                # The client waits for this call-back alone: without an answer it would wait for ever.
                log.exception("loading version %s of route %s failed", version, route_name)
                answer._fail(InferenceError(500, f"the version cannot be loaded: {type(error).__name__}"))

        timeout_s = (deadline_ns - time.perf_counter_ns()) / 1e9
        waiting = asyncio.ensure_future(self._explicit.load_within(route_name, version, timeout_s))
        waiting.add_done_callback(loaded)


def _run(answer: Answer, served: ServedArm, request: InferRequest, deadline_ns: int) -> None:
    answer._observations = served.observations
    answer._request = request
    answer.served = served
    served.enter()
    loaded = served.loaded
    inputs, outputs = loaded.checker.check(answer._route_name, request)
    batcher = loaded.batcher
    work = answer._work = Work(
        inputs, outputs, batcher.batchable, deadline_ns, served.observations, answer._ran
    )
    batcher.submit(work)


def _unknown(route_name: str) -> InferenceError:
    return InferenceError(404, f"Request for unknown model: '{route_name}' is not found")


def _override(route: LiveRoute, variant: str) -> Arm:
    try:
        arm = route.entry.overrides_to(variant)
    except PermissionError as error:
        raise InferenceError(403, str(error)) from None
    if arm is None:
        known = ", ".join(route.entry.arms)
        raise InferenceError(
            404, f"route '{route.entry.name}' has no variant '{variant[:140]}' (it has: {known})"
        )
    return arm


def _parameter(request: InferRequest, name: bytes) -> bytes | None:
    value = request.parameters.get(name.decode())
    return None if value is None else str(value).encode()


def _asked_for(asked: RequestedOutput, datatype: str, array: Array, *, batched: bool) -> OutputTensor:
    output = OutputTensor(name=asked.name, datatype=datatype, array=array, binary=asked.binary)
    return classify(output, asked.classification, batched=batched) if asked.classification else output
