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
from gateway.serving.answer import NOTHING_ASKED, Answer
from gateway.serving.explicit import ExplicitVersions
from gateway.serving.live import Live, LiveRoute, ServedArm, Snapshot
from gateway.serving.tensors import InferenceError, InferRequest

log = logging.getLogger(__name__)

LONGEST_TIMEOUT_US = 24 * 3_600_000_000
"""A client may ask for more; integers without a limit do not fit the clock's floats."""
OVERRIDE_HEADER = b"turnout-variant"
REMEMBERED_KEYS, REMEMBERED_BYTES = 4096, 64
"""Sticky keys of a route whose arm need not be computed again, and how long they may be."""
Decided = tuple[Snapshot, ServedArm]
"""Which version is to answer a request, and the snapshot that says so: at another one it may not."""
Header = Callable[[bytes], "bytes | None"]
"""Lower-case name → value of the request's header or gRPC metadata."""


class Inference:
    """Decides by the live snapshot which version answers, and has it run. Used on the event loop only."""

    def __init__(
        self, live: Live, explicit: ExplicitVersions, draw: Callable[[], float] = random.random
    ) -> None:
        self._live = live
        self._explicit = explicit
        self._draw = draw

    @property
    def snapshot(self) -> Snapshot:
        """The one that decides now."""
        return self._live.snapshot

    def foresee(self, route_name: str, header: Header) -> tuple[ServedArm | None, bool]:
        """The arm for a request with these headers, and whether every such request gets it at this snapshot.

        None where that takes more than the headers, or no version may answer. Of a version that is limited
        each request is still to be spent.
        """
        route = self._live.snapshot.routes.get(route_name)
        if route is None or route.sticky_kind == "parameter" or header(OVERRIDE_HEADER) is not None:
            return None, True
        try:
            served = self._choose(route, NOTHING_ASKED, header)
            sticky = route.sticky_kind == "header" and header(route.sticky_name) is not None
            if served.quota is not None and served.quota.by_key:
                if sticky:
                    return None, True  # who has the head does not know the key
                served = _stand_in(route, served)
        except InferenceError:
            return None, True
        return served, sticky or not route.entry.is_split

    def stand_in(self, decided: Decided) -> Decided:
        """What answers in place of a limited version that may not. Raises `InferenceError`."""
        snapshot, served = decided
        return snapshot, _stand_in(snapshot.routes[served.labels.route], served)

    def start(
        self,
        route_name: str,
        version: str | None,
        request: InferRequest,
        header: Header,
        done: Callable[[Answer], None],
        started_ns: int,
        decided: Decided | None = None,
    ) -> Answer:
        """Answers by calling `done` with the answer, before it returns or later, and always once.

        Between reading the snapshot and leasing the engine there is no `await`: one request sees one
        revision. `started_ns` is `time.perf_counter_ns()` at the request's arrival. What was `decided` holds
        for as long as its snapshot does: were a variant drawn again for each request that failed with others,
        the others' variants would answer for one that is broken, and it would look well. A limited version's
        request was spent by who decided.
        """
        snapshot = self._live.snapshot
        route = snapshot.routes.get(route_name)
        if route is None:
            answer = Answer(route_name, snapshot.label, self._live.unknown, started_ns, done)
            answer.fail(_unknown(route_name))
            return answer
        answer = Answer(route_name, snapshot.label, route, started_ns, done)
        timeout_us = request.timeout_us
        if timeout_us is None:
            deadline_ns = started_ns + route.timeout_ns
        else:
            deadline_ns = started_ns + min(timeout_us, LONGEST_TIMEOUT_US) * 1000
        try:
            if decided is not None and decided[0] is snapshot:
                served = decided[1]
            elif version is None:
                served = self._choose(route, request, header)
                if served.quota is not None and not served.quota.spend(_key(route, request, header)):
                    served = _stand_in(route, served)
            else:
                found = self._explicit.find(route, version)
                if found is None:
                    self._load_and_run(answer, version, request, header, deadline_ns)
                    return answer
                served = found
                if served.quota is not None:
                    _expose_explicit(route, served, _key(route, request, header))
            answer.queue(served, request, deadline_ns)
        except InferenceError as error:
            answer.fail(error)
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
        snapshot = self._live.snapshot
        route = snapshot.routes.get(route_name)
        answer = Answer(route_name, snapshot.label, route or self._live.unknown, started_ns, done)
        answer.fail(error)
        return answer

    def fail(
        self, decided: Decided, error: InferenceError, done: Callable[[Answer], None], started_ns: int
    ) -> Answer:
        """Counts and answers a request of which a version made nothing."""
        snapshot, served = decided
        name = served.labels.route
        answer = Answer(name, snapshot.label, snapshot.routes[name], started_ns, done)
        answer.lease(served)
        answer.fail(error)
        return answer

    def _choose(self, route: LiveRoute, request: InferRequest, header: Header) -> ServedArm:
        override = header(OVERRIDE_HEADER)
        key = None
        if override is None:
            # `_key`, without the call.
            if route.sticky_kind == "header":
                key = header(route.sticky_name)
            elif route.sticky_kind == "parameter":
                key = _parameter(request, route.sticky_name)
            if key is not None:
                chosen = route.chosen.get(key)
                if chosen is not None:
                    return chosen
            arm = route.entry.pick(key, self._draw)
        else:
            arm = _override(route, override.decode("latin-1"))
        served = route.served(arm) if arm is not None else None
        if served is None:
            raise _unavailable(route, arm)
        if key is not None and len(key) <= REMEMBERED_BYTES:
            if len(route.chosen) >= REMEMBERED_KEYS:
                route.chosen.clear()
            route.chosen[key] = served
        return served

    def _load_and_run(
        self, answer: Answer, version: str, request: InferRequest, header: Header, deadline_ns: int
    ) -> None:
        """The version is not loaded: its request waits for it off the common path, within its deadline."""
        route_name = answer.route_name

        def loaded(future: asyncio.Future[ServedArm]) -> None:
            if answer.gone:
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
                if served.quota is not None:
                    _expose_explicit(route, served, _key(route, request, header))
                answer.queue(served, request, deadline_ns)
            except InferenceError as error:
                answer.fail(error)
            except asyncio.CancelledError:
                answer.fail(InferenceError(503, "this worker is going away: try again", retry_after_s=1))
            except Exception as error:
                # The client waits for this call-back alone: without an answer it would wait for ever.
                log.exception("loading version %s of route %s failed", version, route_name)
                answer.fail(InferenceError(500, f"the version cannot be loaded: {type(error).__name__}"))

        timeout_s = (deadline_ns - time.perf_counter_ns()) / 1e9
        waiting = asyncio.ensure_future(self._explicit.load_within(route_name, version, timeout_s))
        waiting.add_done_callback(loaded)


def _unknown(route_name: str) -> InferenceError:
    return InferenceError(404, f"Request for unknown model: '{route_name}' is not found")


def _unavailable(route: LiveRoute, arm: Arm | None) -> InferenceError:
    name = route.entry.name
    if arm is None:
        return InferenceError(503, f"route '{name}' takes no traffic: all its weights are 0", retry_after_s=5)
    return InferenceError(
        503, f"version {arm.pin.version} of route '{name}' is not loaded yet", retry_after_s=1
    )


def _stand_in(route: LiveRoute, served: ServedArm) -> ServedArm:
    """What answers in place of a version that may not be exposed further. Raises `InferenceError`."""
    fallback = route.entry.fallback
    found = route.served(fallback) if fallback is not None else None
    if found is None:
        raise InferenceError(
            503,
            f"version {served.pin.version} of route '{route.entry.name}' may not be exposed further, "
            "and its fallback is not loaded",
            retry_after_s=1,
        )
    return found


def _expose_explicit(route: LiveRoute, served: ServedArm, key: bytes | None) -> None:
    """Spends a request that names its version itself: no other one may answer it. Raises `InferenceError`."""
    if served.quota is not None and not served.quota.spend(key):
        raise InferenceError(
            503,
            f"version {served.pin.version} of route '{route.entry.name}' may not be exposed further now: "
            "it has a limit or a lease",
            retry_after_s=1,
        )


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


def _key(route: LiveRoute, request: InferRequest, header: Header) -> bytes | None:
    """The request's sticky key."""
    if route.sticky_kind == "header":
        return header(route.sticky_name)
    return _parameter(request, route.sticky_name) if route.sticky_kind == "parameter" else None


def _parameter(request: InferRequest, name: bytes) -> bytes | None:
    value = request.parameters.get(name.decode())
    return None if value is None else str(value).encode()
