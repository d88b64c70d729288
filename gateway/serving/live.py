"""What is live in this worker: the snapshot that requests read, and the engines that stand behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from gateway.routing.state import EMPTY, EngineOptions, InForce, Pin
from gateway.routing.table import Arm, RouteEntry, Tables
from gateway.serving.batching import Batcher
from gateway.serving.engine import Engine
from gateway.serving.exposure import Quota, Quotas
from gateway.serving.validation import Checker
from gateway.telemetry.observations import UNKNOWN, Labels, ObservationWriter, VersionObservations

PINNED = "pinned"
"""The variant label of requests that name their version themselves."""


class EngineKey(NamedTuple):
    """One version loaded in one way: two routes with the same options share it."""

    digest: str
    options: EngineOptions


class LoadedVersion:
    """An engine with all that a request needs of it. It is closed when nobody needs it any more."""

    __slots__ = ("_close", "_leases", "_retired", "batcher", "checker", "engine", "key", "refuses_zeros")

    def __init__(
        self,
        key: EngineKey,
        engine: Engine,
        batcher: Batcher,
        close: Callable[[Engine], None],
        *,
        refuses_zeros: str = "",
    ) -> None:
        self.key = key
        self.refuses_zeros = refuses_zeros
        """Why its warm-up failed, "" where it did not: zeros are no legal input for every model."""
        self.engine = engine
        self.batcher = batcher
        self.checker = Checker(engine.signature)
        self._close = close
        self._leases = 0
        self._retired = False

    def lease(self) -> None:
        self._leases += 1

    def release(self) -> None:
        self._leases -= 1
        if self._retired and self._leases == 0:
            self._close(self.engine)

    def retire(self) -> None:
        """No new request comes; the engine goes with its last lease, at once if there is none."""
        if not self._retired:
            self._retired = True
            if self._leases == 0:
                self._close(self.engine)


class ServedArm:
    """A variant of a route with the loaded version that answers for it; lives across snapshots."""

    __slots__ = ("_block", "_idle", "_in_flight", "_writer", "digest", "labels", "loaded", "pin", "quota")

    def __init__(self, labels: Labels, pin: Pin, loaded: LoadedVersion, writer: ObservationWriter) -> None:
        self.labels = labels
        self.pin = pin
        self.digest = pin.digest
        self.loaded = loaded
        self._writer = writer
        self.quota: Quota | None = None
        """What each request must be spent from, None where the version is not limited."""
        self._block: VersionObservations | None = None
        self._in_flight = 0
        self._idle: list[Callable[[], None]] = []

    @property
    def observations(self) -> VersionObservations:
        """Memory is taken with the first count: most of 10,000 declared routes are hardly ever asked."""
        if self._block is None:
            self._block = self._writer.block(self.labels)
        return self._block

    def enter(self, requests: int = 1) -> None:
        """From here to `leave`, the answers of these count as this arm's; the arm has one lease for all."""
        if not self._in_flight:
            self.loaded.lease()
        self._in_flight += requests

    def leave(self, requests: int = 1) -> None:
        self._in_flight -= requests
        if not self._in_flight:
            self.loaded.release()
            self.observe()
            if self._idle:
                for callback in self._idle:
                    callback()
                self._idle.clear()

    def observe(self) -> None:
        """Shows how many requests are in flight: with each run and when there are none, not with each request."""
        if self._block is not None:
            self._block.in_flight(self._in_flight)

    @property
    def busy(self) -> bool:
        return self._in_flight > 0

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Calls back when no answer of this arm is under way; at once if none is."""
        if self._in_flight == 0:
            callback()
        else:
            self._idle.append(callback)


class LiveRoute:
    """One route of one snapshot."""

    __slots__ = (
        "_answering",
        "_refused",
        "_writer",
        "arms",
        "chosen",
        "complete",
        "entry",
        "keys",
        "sticky_kind",
        "sticky_name",
        "timeout_ns",
    )

    def __init__(
        self,
        entry: RouteEntry,
        arms: Mapping[str, ServedArm],
        engines: Collection[EngineKey],
        writer: ObservationWriter,
    ) -> None:
        self.entry = entry
        self.keys = required_keys(entry)
        self.complete = all(key in engines for key in self.keys)
        """Whether all that the entry needs was loaded when this was made: then it is never made again."""
        self.arms = arms
        """By variant name; a variant whose version is not loaded here is missing."""
        # By the name that an arm has itself, which for a denied variant's is the fallback's: an arm is one variant's
        # only, and the hash of a name costs nothing.
        self._answering = {arm.variant: arms[name] for name, arm in entry.arms.items() if name in arms}
        self._writer = writer
        self._refused: VersionObservations | None = None
        self.chosen: dict[bytes, ServedArm] = {}
        """By sticky key, of those that were seen lately: the same users come again and again."""
        self.timeout_ns = entry.timeout_ms * 1_000_000
        kind, _, name = entry.sticky.partition(":")
        self.sticky_kind = kind
        self.sticky_name = name.lower().encode() if kind == "header" else name.encode()

    @property
    def refused(self) -> VersionObservations:
        """Where requests are counted that reach no version; memory is taken when one does."""
        if self._refused is None:
            self._refused = self._writer.block(Labels(self.entry.name, "", ""))
        return self._refused

    @property
    def ready(self) -> bool:
        """Whether every version that the split needs is loaded."""
        return all(name in self.arms for name, share in self.entry.shares_bp.items() if share)

    def served(self, arm: Arm) -> ServedArm | None:
        """The arm's own engine, or the fallback's while it is not loaded: an answer beats an error."""
        served = self._answering.get(arm.variant)
        if served is None and self.entry.fallback is not None:
            served = self._answering.get(self.entry.fallback.variant)
        return served


class Snapshot:
    """The compiled, immutable routing table of one revision with its engines."""

    __slots__ = ("held", "label", "routes")

    def __init__(self, held: InForce, routes: Mapping[str, LiveRoute]) -> None:
        self.held = held
        self.label = held.label
        self.routes = routes

    def missing(self) -> list[str]:
        """Routes whose split needs a version that is not loaded."""
        return [name for name, route in self.routes.items() if not route.complete and not route.ready]


def required_keys(entry: RouteEntry) -> tuple[EngineKey, ...]:
    """What must be loaded for a route."""
    return tuple(EngineKey(pin.digest, entry.engine) for pin in entry.required)


_Served = dict[tuple[Labels, EngineKey], ServedArm]


class UnknownRoute:
    """Where requests for names that no route has are counted."""

    def __init__(self, writer: ObservationWriter) -> None:
        self._writer = writer

    @property
    def refused(self) -> VersionObservations:
        return self._writer.block(Labels(UNKNOWN, "", ""))


class Live:
    """Holds the one reference that requests read; `swap` replaces it. Used on the event loop only.

    A swap makes anew only what has changed: with 10,000 routes, one that is rolled back is one of them.
    """

    def __init__(self, observations: ObservationWriter, quotas: Quotas | None = None) -> None:
        self._observations = observations
        self._quotas = quotas if quotas is not None else Quotas()
        self.unknown = UnknownRoute(observations)
        self._tables = Tables()
        self._served: dict[str, _Served] = {}
        """By route: the arms of the snapshot, and the explicit ones."""
        self._explicit_routes: set[str] = set()
        self._needed: Counter[EngineKey] = Counter()
        """How many routes of the snapshot need an engine."""
        self._made_with: dict[EngineKey, LoadedVersion] = {}
        self._leaving: list[ServedArm] = []
        self.engines: dict[EngineKey, LoadedVersion] = {}
        self.snapshot = Snapshot(EMPTY, {})

    def lacking(self, held: InForce) -> set[EngineKey]:
        """What `held` needs and is not loaded."""
        routes = self.snapshot.routes
        return {
            key
            for name, entry in self._tables.of(held).items()
            if not _still_good(routes.get(name), entry)
            for key in required_keys(entry)
            if key not in self.engines
        }

    def swap(self, held: InForce) -> list[ServedArm]:
        """Makes `held` the truth for every request from now on, with the engines that are loaded.

        Returns the arms that may answer no more because they are denied, and those of earlier swaps that are
        not idle yet: the swap is complete for an operator when they all are.
        """
        table, known = self._tables.of(held), self.snapshot.routes
        replaced = {key for key in self._needed if self.engines.get(key) is not self._made_with.get(key)}
        changed = {
            name
            for name, entry in table.items()
            if not _still_good(known.get(name), entry)
            or name in self._explicit_routes
            or (replaced and not replaced.isdisjoint(known[name].keys))
        }
        removed = known.keys() - table.keys()
        before = {name: self._served.pop(name, {}) for name in changed | removed}
        routes = {**known, **{name: self._live_route(table[name], before[name]) for name in changed}}
        for name in removed:
            del routes[name]
        self.snapshot = Snapshot(held, routes)
        self._count_needs(known, routes, changed | removed)
        self._explicit_routes = {name for name in self._explicit_routes & changed if self._has_explicit(name)}
        gone = self._retire_arms(before)
        for name in removed:
            self._quotas.forget(name)
            self._observations.retire(Labels(name, "", ""))
        denied = [arm for arm in gone if (arm.labels.route, arm.digest) in held.denies]
        self._leaving = [arm for arm in (*self._leaving, *denied) if arm.busy]
        return list(self._leaving)

    def retire_unneeded(self, also_needed: Iterable[EngineKey] = ()) -> None:
        """Lets go of every engine that neither the snapshot nor `also_needed` names."""
        needed = self.required_keys() | set(also_needed)
        for key in [key for key in self.engines if key not in needed]:
            self.retire(key)

    def retire(self, key: EngineKey) -> None:
        """Lets go of one engine that nothing needs."""
        loaded = self.engines.pop(key, None)
        if loaded is not None:
            loaded.retire()

    def required_keys(self) -> set[EngineKey]:
        return set(self._needed)

    def explicit(self, route: LiveRoute, pin: Pin, loaded: LoadedVersion) -> ServedArm:
        """The arm for requests that name this version themselves."""
        name = route.entry.name
        self._explicit_routes.add(name)
        served = self._served.setdefault(name, {})
        arm = self._served_arm(Labels(name, PINNED, pin.version), pin, loaded, served, served)
        arm.quota = self._quotas.of(route.entry).get(pin.digest)
        return arm

    def forget_explicit(self, route: str, pin: Pin) -> None:
        """The version was only loaded because somebody named it, and it is not wanted any more."""
        served = self._served.get(route, {})
        for key, arm in list(served.items()):
            if arm.labels == (route, PINNED, pin.version) and arm.digest == pin.digest:
                del served[key]
                self._observations.retire(arm.labels)

    def _live_route(self, entry: RouteEntry, before: _Served) -> LiveRoute:
        served = self._served[entry.name] = _Served()
        arms = {}
        for name, arm in entry.arms.items():
            loaded = self.engines.get(EngineKey(arm.pin.digest, entry.engine))
            if loaded is not None:
                labels = Labels(entry.name, arm.variant, arm.pin.version)
                arms[name] = self._served_arm(labels, arm.pin, loaded, before, served)
        for (labels, key), explicit in before.items():
            # Explicit versions stay as long as they are allowed and their engine is loaded.
            allowed = labels.variant == PINNED and explicit.digest not in entry.denied
            if allowed and key in self.engines:
                served[labels, key] = explicit
        self._limit(entry, served)
        return LiveRoute(entry, arms, self.engines.keys(), self._observations)

    def _limit(self, entry: RouteEntry, served: _Served) -> None:
        quotas = self._quotas.of(entry)
        for (labels, _), arm in served.items():
            # The fallback answers for all others, also with an earlier version that a limit is on.
            own = labels.variant != entry.route.fallback
            arm.quota = quotas.get(arm.digest) if quotas and own else None

    def _served_arm(
        self, labels: Labels, pin: Pin, loaded: LoadedVersion, before: _Served, served: _Served
    ) -> ServedArm:
        key = (labels, loaded.key)
        arm = served.get(key) or before.get(key)
        if arm is None or arm.loaded is not loaded:
            arm = ServedArm(labels, pin, loaded, self._observations)
        self._observations.revive(labels)
        served[key] = arm
        return arm

    def _count_needs(
        self, before: Mapping[str, LiveRoute], after: Mapping[str, LiveRoute], names: Iterable[str]
    ) -> None:
        for name in names:
            self._needed.update(after[name].keys if name in after else ())
            self._needed.subtract(before[name].keys if name in before else ())
        self._needed = +self._needed  # those at zero go
        self._made_with = dict(self.engines)

    def _retire_arms(self, before: Mapping[str, _Served]) -> list[ServedArm]:
        gone = []
        for name, arms in before.items():
            served = self._served.get(name, {})
            still = {labels for labels, _ in served}
            for key, arm in arms.items():
                if key not in served:
                    gone.append(arm)
                    if arm.labels not in still:
                        self._observations.retire(arm.labels)
        return gone

    def _has_explicit(self, name: str) -> bool:
        return any(labels.variant == PINNED for labels, _ in self._served.get(name, {}))


def _still_good(known: LiveRoute | None, entry: RouteEntry) -> bool:
    return known is not None and known.entry is entry and known.complete
