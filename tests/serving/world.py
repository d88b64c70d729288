"""The live engines of one worker, all fake."""

from __future__ import annotations

from typing import Any

from gateway.routing.state import Route
from gateway.serving.live import Live
from gateway.telemetry.observations import Labels, ObservationWriter, read_blocks
from tests.serving.fake_engine import FakeEngine, batcher, load, observing
from tests.states import in_force


class World:
    """A `Live` with engines that are loaded by their version's digit."""

    def __init__(self, versions: str = "123") -> None:
        self.writer = observing()
        self.live = Live(self.writer)
        self.engines = {version: FakeEngine() for version in versions}
        for version, engine in self.engines.items():
            load(self.live, version, engine, batcher(engine, None))

    def ask_all(self) -> None:
        """One answer of every arm, and one request that reached none, of every route."""
        for route in self.live.snapshot.routes.values():
            route.refused.answered(404, 1000)
            for arm in route.arms.values():
                arm.observations.answered(200, 1000)

    def swap(self, *routes: Route, denied: str = "") -> list[Labels]:
        arms = self.live.swap(in_force(*routes, denied=list(denied)))
        self.live.retire_unneeded()
        return [arm.labels for arm in arms]

    def served(self, name: str = "digits") -> dict[str, str]:
        return {
            variant: f"{arm.labels.variant} {arm.pin.version}"
            for variant, arm in self.live.snapshot.routes[name].arms.items()
        }

    def arm(self, variant: str, name: str = "digits") -> Any:
        return self.live.snapshot.routes[name].arms[variant]

    @property
    def closed(self) -> str:
        return "".join(version for version, engine in self.engines.items() if engine.closed)


def live_series(writer: ObservationWriter) -> set[Labels]:
    memory = writer._slots.obj
    return {labels for labels, is_live, _ in read_blocks(memoryview(memory)) if is_live}
