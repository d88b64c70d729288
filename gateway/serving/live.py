"""What is live in this worker: the snapshot that requests read, and the engines that stand behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from gateway.routing.state import EMPTY, EngineOptions, InForce, Pin
from gateway.routing.table import Arm, RouteEntry, compile_table
from gateway.serving.batching import Batcher
from gateway.serving.engine import Engine
from gateway.serving.validation import Checker
from gateway.telemetry.observations import Labels, ObservationWriter, VersionObservations

PINNED = "pinned"
"""The variant label of requests that name their version themselves."""


class EngineKey(NamedTuple):
    """One version loaded in one way: two routes with the same options share it."""

    digest: str
    options: EngineOptions


class LoadedVersion:
    """An engine with all that a request needs of it. It is closed when nobody needs it any more."""

    __slots__ = ("_close", "_leases", "_retired", "batcher", "checker", "engine", "key")

    def __init__(
        self, key: EngineKey, engine: Engine, batcher: Batcher, close: Callable[[Engine], None]
    ) -> None:
        self.key = key
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

    __slots__ = ("_idle", "_in_flight", "digest", "labels", "loaded", "observations", "pin")

    def __init__(
        self, labels: Labels, pin: Pin, loaded: LoadedVersion, observations: VersionObservations
    ) -> None:
        self.labels = labels
        self.pin = pin
        self.digest = pin.digest
        self.loaded = loaded
        self.observations = observations
        self._in_flight = 0
        self._idle: list[Callable[[], None]] = []

    def enter(self) -> None:
        """From here to `leave`, the answer of one request counts as this arm's."""
        self._in_flight += 1
        self.observations.in_flight(self._in_flight)
        self.loaded.lease()

    def leave(self) -> None:
        self._in_flight -= 1
        self.observations.in_flight(self._in_flight)
        self.loaded.release()
        if self._in_flight == 0:
            for callback in self._idle:
                callback()
            self._idle.clear()

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

    __slots__ = ("_answering", "arms", "entry", "refused", "sticky_kind", "sticky_name", "timeout_ns")

    def __init__(
        self, entry: RouteEntry, arms: Mapping[str, ServedArm], refused: VersionObservations
    ) -> None:
        self.entry = entry
        self.arms = arms
        """By variant name; a variant whose version is not loaded here is missing."""
        # By the name that an arm has itself, which for a denied variant's is the fallback's: an arm is one variant's
        # only, and the hash of a name costs nothing.
        self._answering = {arm.variant: arms[name] for name, arm in entry.arms.items() if name in arms}
        self.refused = refused
        """Where requests are counted that reach no version."""
        self.timeout_ns = entry.timeout_ms * 1_000_000
        kind, _, name = entry.sticky.partition(":")
        self.sticky_kind = kind
        self.sticky_name = name.lower().encode() if kind == "header" else name.encode()

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
        return [name for name, route in self.routes.items() if not route.ready]


class Live:
    """Holds the one reference that requests read; `swap` replaces it. Used on the event loop only."""

    def __init__(self, observations: ObservationWriter) -> None:
        self._observations = observations
        self._served: dict[tuple[Labels, EngineKey], ServedArm] = {}
        self._leaving: list[ServedArm] = []
        self.engines: dict[EngineKey, LoadedVersion] = {}
        self.snapshot = Snapshot(EMPTY, {})

    def swap(self, held: InForce) -> list[ServedArm]:
        """Makes `held` the truth for every request from now on, with the engines that are loaded.

        Returns the arms that may answer no more because they are denied, and those of earlier swaps that are
        not idle yet: the swap is complete for an operator when they all are.
        """
        before = self._served
        routes_before = self.snapshot.routes.keys()
        self._served = {}
        routes = {name: self._live_route(entry, before) for name, entry in compile_table(held).items()}
        self.snapshot = Snapshot(held, routes)
        gone = [arm for key, arm in before.items() if key not in self._served]
        for labels in {arm.labels for arm in gone} - {labels for labels, _ in self._served}:
            self._observations.retire(labels)
        for name in routes_before - routes.keys():
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
        return {
            EngineKey(pin.digest, route.entry.engine)
            for route in self.snapshot.routes.values()
            for pin in route.entry.required
        }

    def explicit(self, route: LiveRoute, pin: Pin, loaded: LoadedVersion) -> ServedArm:
        """The arm for requests that name this version themselves."""
        labels = Labels(route.entry.name, PINNED, pin.version)
        return self._served_arm(labels, pin, loaded, self._served)

    def forget_explicit(self, route: str, pin: Pin) -> None:
        """The version was only loaded because somebody named it, and it is not wanted any more."""
        for served_key, arm in list(self._served.items()):
            if arm.labels == (route, PINNED, pin.version) and arm.digest == pin.digest:
                del self._served[served_key]
                self._observations.retire(arm.labels)

    def refused(self, route: str) -> VersionObservations:
        """Where requests are counted that reach no version of `route`."""
        return self._observations.block(Labels(route, "", ""))

    def _live_route(
        self, entry: RouteEntry, before: Mapping[tuple[Labels, EngineKey], ServedArm]
    ) -> LiveRoute:
        arms = {}
        for name, arm in entry.arms.items():
            loaded = self.engines.get(EngineKey(arm.pin.digest, entry.engine))
            if loaded is not None:
                labels = Labels(entry.name, arm.variant, arm.pin.version)
                arms[name] = self._served_arm(labels, arm.pin, loaded, before)
        for (labels, key), served in before.items():
            # Explicit versions stay as long as they are allowed and their engine is loaded.
            explicit = labels.route == entry.name and labels.variant == PINNED
            if explicit and served.digest not in entry.denied and key in self.engines:
                self._served[labels, key] = served
        return LiveRoute(entry, arms, self.refused(entry.name))

    def _served_arm(
        self,
        labels: Labels,
        pin: Pin,
        loaded: LoadedVersion,
        before: Mapping[tuple[Labels, EngineKey], ServedArm],
    ) -> ServedArm:
        key = (labels, loaded.key)
        served = self._served.get(key) or before.get(key)
        if served is None or served.loaded is not loaded:
            served = ServedArm(labels, pin, loaded, self._observations.block(labels))
        else:
            self._observations.block(labels)
        self._served[key] = served
        return served
