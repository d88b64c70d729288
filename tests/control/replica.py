"""One replica's control plane over fake workers: real store, real cache, a real directory registry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gateway.control.deliver import Deliverer, LoadFailed, WorkersApplied
from gateway.control.events import Events
from gateway.control.operations import Operations
from gateway.control.reader import Reader
from gateway.control.registries import Registries
from gateway.control.store import Author, Store
from gateway.control.versions import Versions
from gateway.control.weights import WeightsCache
from gateway.routing.manifest import Manifest, parse_manifest
from gateway.routing.state import EngineOptions, InForce, Pin
from registry_client.adapters.directory import publish
from tests import models

SOON_S = 10.0
T = TypeVar("T")


async def soon(what: Awaitable[T]) -> T:
    async with asyncio.timeout(SOON_S):
        return await what


def author(op_id: str = "op", reason: str = "because") -> Author:
    return Author(actor="ann", reason=reason, op_id=op_id)


class FakeWorkers:
    """Two workers that note what they are asked; told to, they wait, fail and refuse to load."""

    def __init__(self) -> None:
        self.rung: list[InForce] = []
        self.paths: list[dict[str, str]] = []
        self.loaded: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        """While it is not set, a ring is heard and not acknowledged."""
        self.errors: list[str] = []
        self.refuses: set[str] = set()
        """Versions whose load fails."""

    async def load(self, pin: Pin, options: EngineOptions, path: str) -> None:
        assert Path(path).is_file()
        self.loaded.append(pin.version)
        if pin.version in self.refuses:
            raise LoadFailed(f"opset of {pin.version}")

    async def apply(self, held: InForce, paths: Mapping[str, str]) -> WorkersApplied:
        self.rung.append(held)
        self.paths.append(dict(paths))
        await self.answers.wait()
        return WorkersApplied(ok=0 if self.errors else 2, total=2, errors=list(self.errors))

    @property
    def denied(self) -> set[str]:
        """Versions that are denied by the last ring."""
        return {deny.version for deny in self.rung[-1].denies.values()} if self.rung else set()


class ControlPlane:
    """Everything of a supervisor but the processes. `directory` has its disk, `models` its registry."""

    def __init__(self, directory: Path, store: Store) -> None:
        self.store = store
        self.models = directory / "models"
        self.mirror = directory / "state" / "state.json"
        self.mirror.parent.mkdir(parents=True, exist_ok=True)
        self.registries = Registries()
        self.weights = WeightsCache(directory / "cache")
        self.versions = Versions(self.registries, self.weights)
        self.workers = FakeWorkers()
        self.events = Events()
        self.deliverer = Deliverer(self.mirror, self.versions, self.workers, self.events)
        self.operations = Operations(store, self.deliverer, self.versions)
        self.reader = Reader(store, self.deliverer, self.operations, self.events)
        self._tasks: list[asyncio.Task[Any]] = []

    def publish(self, version: str, *aliases: str) -> None:
        source = models.save(models.constant(float(version)), self.models.parent / f"source{version}")
        publish(self.models, "number", source, version=version, aliases=list(aliases))

    def hide(self, version: str) -> Callable[[], None]:
        """The registry has lost a version; what is returned brings it back."""
        (found,) = self.models.glob(f"number/**/{version}")
        hidden = self.models.parent / f"hidden{version}"
        found.rename(hidden)

        def bring_back() -> None:
            hidden.rename(found)

        return bring_back

    def manifest(self, weights: Mapping[str, float] | None = None, **route: Any) -> Manifest:
        """`{"stable@1": 90, "canary@2": 10}`, of a route `number`."""
        variants = {
            text.split("@")[0]: {"model": f"local/number@{text.split('@')[1]}", "weight": percent}
            for text, percent in (weights or {"stable@1": 90, "canary@2": 10}).items()
        }
        return parse_manifest(
            yaml.safe_dump(
                {
                    "registries": {"local": {"type": "directory", "path": str(self.models)}},
                    "routes": {"number": {"variants": variants, **route}},
                },
                sort_keys=False,
            )
        )

    async def apply(self, weights: Mapping[str, float] | None = None, **route: Any) -> str:
        """Through the store, and until it is in force here."""
        _, outcome = await soon(
            self.operations.apply(self.manifest(weights, **route), author(f"apply{weights}"))
        )
        return outcome.revision

    def run(self, *, reader: bool = False) -> None:
        self._tasks.append(asyncio.create_task(self.deliverer.run()))
        if reader:
            self._tasks.append(asyncio.create_task(self.reader.run()))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Looks after every event of the replica."""
        with self.events.subscribe() as events:
            async with asyncio.timeout(SOON_S):
                while not condition():
                    await events.get()

    async def hears_of_denies(self, *versions: str) -> None:
        """Returns when the workers were rung with exactly these denies."""
        async with asyncio.timeout(SOON_S):
            while self.workers.denied != set(versions):
                await asyncio.sleep(0)

    async def aclose(self) -> None:
        self.workers.answers.set()
        pending = set(self._tasks)
        while pending:
            # As the supervisor does: one cancellation may be lost inside of redis-py.
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.2)
        await self.weights.aclose()
        await self.registries.aclose()

    def failed(self) -> list[BaseException]:
        """What ended a part of it: in a supervisor it would end the process."""
        return [
            error
            for task in self._tasks
            if task.done() and not task.cancelled() and (error := task.exception()) is not None
        ]
