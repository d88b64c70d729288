"""The one data plane under every protocol: from a decoded request to an answer."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

from gateway.routing.table import Arm
from gateway.serving.batching import Work
from gateway.serving.classification import classify
from gateway.serving.engine import Array
from gateway.serving.explicit import ExplicitVersions
from gateway.serving.live import Live, LiveRoute, ServedArm, Snapshot
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse, OutputTensor
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
        "_started_ns",
        "_work",
        "error",
        "response",
        "revision",
        "served",
    )

    def __init__(self, started_ns: int, done: Callable[[Answer], None]) -> None:
        self._started_ns = started_ns
        self._done = done
        self._gone = False
        self._work: Work | None = None
        self._observations: VersionObservations | None = None
        self.revision = ""
        self.served: ServedArm | None = None
        self.response: InferResponse | None = None
        self.error: InferenceError | None = None

    def finish(self, code: int) -> None:
        """The client has its answer, with this status, or is gone (499)."""
        if self._observations is not None:
            self._observations.answered(code, time.perf_counter_ns() - self._started_ns)
        if self.served is not None:
            served, self.served = self.served, None
            served.leave()

    def cancel(self) -> None:
        """The client is gone: what did not run yet will not. `finish` is still to be called."""
        self._gone = True
        if self._work is not None:
            self._work.cancel()

    def _fail(self, error: InferenceError) -> None:
        self.error = error
        self._done(self)


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
        answer = Answer(started_ns, done)
        snapshot = self._live.snapshot
        answer.revision = snapshot.label
        try:
            route = _route(snapshot, route_name)
        except InferenceError as error:
            answer._observations = self._live.refused(UNKNOWN)
            answer._fail(error)
            return answer
        answer._observations = route.refused
        timeout_us = request.timeout_us if request.timeout_us is not None else route.entry.timeout_ms * 1000
        deadline_ns = started_ns + min(timeout_us, LONGEST_TIMEOUT_US) * 1000
        try:
            if version is None:
                served = self._choose(route, request, header)
            else:
                found = self._explicit.find(route, version)
                if found is None:
                    self._load_and_run(answer, route_name, version, request, deadline_ns)
                    return answer
                served = found
            self._run(answer, served, route_name, request, deadline_ns)
        except InferenceError as error:
            answer._fail(error)
        return answer

    def prepare(self, route_name: str, request: InferRequest) -> None:
        """Makes the tensors of a large untyped request ahead of `start`, in a thread: the loop only takes them.

        They are for the signature of the route's fallback, which its other variants nearly always share. What
        is wrong with them is for `start` to say.
        """
        route = self._live.snapshot.routes.get(route_name)
        fallback = route.entry.fallback if route is not None else None
        served = route.served(fallback) if route is not None and fallback is not None else None
        if request.untyped is not None and served is not None:
            request.untyped = lru_cache(maxsize=1)(request.untyped)
            with suppress(InferenceError):
                request.untyped(served.loaded.engine.signature)

    def refuse(
        self,
        route_name: str,
        error: InferenceError,
        done: Callable[[Answer], None],
        started_ns: int,
    ) -> Answer:
        """Counts and answers a request that could not be decoded."""
        answer = Answer(started_ns, done)
        snapshot = self._live.snapshot
        answer.revision = snapshot.label
        route = snapshot.routes.get(route_name)
        answer._observations = route.refused if route is not None else self._live.refused(UNKNOWN)
        answer._fail(error)
        return answer

    def _choose(self, route: LiveRoute, request: InferRequest, header: Header) -> ServedArm:
        entry = route.entry
        override = header(OVERRIDE_HEADER)
        if override is not None:
            arm = _override(route, override.decode("latin-1"))
        else:
            picked = entry.pick(_sticky_key(route, request, header), self._draw())
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

    def _run(
        self, answer: Answer, served: ServedArm, route_name: str, request: InferRequest, deadline_ns: int
    ) -> None:
        answer._observations = served.observations
        answer.served = served
        served.enter()
        loaded = served.loaded
        inputs, outputs = loaded.checker.check(route_name, request)

        def ran(outcome: list[Array] | InferenceError) -> None:
            try:
                if isinstance(outcome, InferenceError):
                    raise outcome
                answer.response = _response(route_name, served, request, outputs, outcome)
            except InferenceError as error:
                answer.error = error
            except Exception as error:
                # An engine that returned something else than its signature promises.
                log.exception("the answer of %s cannot be used", served.labels)
                answer.error = InferenceError(
                    500, f"the model's answer cannot be used: {type(error).__name__}"
                )
            answer._done(answer)

        answer._work = Work(
            inputs,
            outputs,
            batchable=loaded.batcher.batchable,
            deadline_ns=deadline_ns,
            observations=served.observations,
            done=ran,
        )
        loaded.batcher.submit(answer._work)

    def _load_and_run(
        self, answer: Answer, route_name: str, version: str, request: InferRequest, deadline_ns: int
    ) -> None:
        """The version is not loaded: its request waits for it off the common path, within its deadline."""

        def loaded(future: asyncio.Future[ServedArm]) -> None:
            if answer._gone:
                return
            try:
                future.result()
                # Ticks have passed since the load was done: it may be denied or gone by now.
                snapshot = self._live.snapshot
                answer.revision = snapshot.label
                served = self._explicit.find(_route(snapshot, route_name), version)
                if served is None:
                    raise InferenceError(
                        503, "the version was unloaded meanwhile: try again", retry_after_s=1
                    )
                self._run(answer, served, route_name, request, deadline_ns)
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


def _route(snapshot: Snapshot, name: str) -> LiveRoute:
    route = snapshot.routes.get(name)
    if route is None:
        raise InferenceError(404, f"Request for unknown model: '{name}' is not found")
    return route


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


def _sticky_key(route: LiveRoute, request: InferRequest, header: Header) -> bytes | None:
    if route.sticky_kind == "header":
        return header(route.sticky_name)
    if route.sticky_kind == "parameter":
        value = request.parameters.get(route.sticky_name.decode())
        return None if value is None else str(value).encode()
    return None


def _response(
    route_name: str, served: ServedArm, request: InferRequest, names: tuple[str, ...], arrays: list[Array]
) -> InferResponse:
    """Raises `InferenceError` where an output cannot be classified as the request wants."""
    signature = served.loaded.engine.signature
    datatypes = {spec.name: spec.datatype for spec in signature.outputs}
    wanted = {output.name: output for output in request.outputs}
    outputs = []
    for name, array in zip(names, arrays, strict=True):
        asked = wanted.get(name)
        binary = asked.binary if asked is not None else request.binary_default
        output = OutputTensor(name=name, datatype=datatypes[name], array=array, binary=binary)
        if asked is not None and asked.classification:
            output = classify(output, asked.classification, batched=signature.batchable)
        outputs.append(output)
    return InferResponse(route=route_name, version=served.pin.version, outputs=outputs, id=request.id)
