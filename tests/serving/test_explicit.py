from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from gateway.routing.state import EngineOptions
from gateway.serving import explicit as explicit_module
from gateway.serving.engine import EngineError
from gateway.serving.explicit import ExplicitVersions, Located
from gateway.serving.live import PINNED, EngineKey, LoadedVersion
from gateway.serving.loading import Loader
from gateway.serving.tensors import InferenceError
from gateway.telemetry.observations import Labels
from tests.serving.fake_engine import FakeEngine, batcher, load
from tests.serving.world import World, live_series
from tests.states import in_force, pin, route

SPLIT = route({"stable 1": 90, "canary 2": 10})
SOON_S = 5.0


class Registry:
    """Locates any version; a load makes a fake engine. Both may be held or fail."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.located: list[str] = []
        self.loaded: list[str] = []
        self.made: dict[str, FakeEngine] = {}
        self.error: Exception | None = None
        self.before: Callable[[], Awaitable[None]] | None = None

    async def locate(self, route_name: str, version: str) -> Located:
        self.located.append(version)
        if isinstance(self.error, InferenceError):
            raise self.error
        return Located(pin(version), f"/cache/{version}")

    async def load(self, key: EngineKey, path: str) -> LoadedVersion:
        self.loaded.append(path)
        if self.before is not None:
            await self.before()
        if self.error is not None:
            raise self.error
        engine = self.made[path[-1]] = FakeEngine()
        return LoadedVersion(key, engine, batcher(engine, None), lambda closing: closing.close())


def versions_of(world: World) -> tuple[Registry, ExplicitVersions]:
    registry = Registry(world)
    return registry, ExplicitVersions(world.live, cast(Loader, registry), registry.locate)


def found(world: World, explicit: ExplicitVersions, version: str, name: str = "digits") -> Any:
    return explicit.find(world.live.snapshot.routes[name], version)


async def soon(task: asyncio.Task[Any]) -> Any:
    async with asyncio.timeout(SOON_S):
        return await task


class TestExplicitVersions:
    async def test_what_the_route_has_loaded_is_at_hand(self) -> None:
        world = World()
        world.swap(SPLIT)
        registry, explicit = versions_of(world)
        served = found(world, explicit, "2")
        assert served.labels == ("digits", PINNED, "2")
        assert served.loaded is world.arm("canary").loaded
        assert found(world, explicit, "2") is served
        assert registry.located == []

    async def test_another_one_is_loaded_once(self) -> None:
        world = World()
        world.swap(SPLIT)
        registry, explicit = versions_of(world)
        assert found(world, explicit, "7") is None
        tasks = {explicit.load("digits", "7") for _ in range(8)}
        assert len(tasks) == 1
        served = await soon(tasks.pop())
        assert served.labels == ("digits", PINNED, "7")
        assert (registry.located, registry.loaded) == (["7"], ["/cache/7"])
        assert found(world, explicit, "7") is served
        world.swap(route({"stable 1": 100}))
        world.live.retire_unneeded(explicit.needed)

    async def test_it_stays_through_a_swap(self) -> None:
        world = World()
        world.swap(SPLIT)
        registry, explicit = versions_of(world)
        served = await soon(explicit.load("digits", "7"))
        served.observations.answered(200, 1000)
        world.live.swap(in_force(route({"stable 1": 100})))
        world.live.retire_unneeded(explicit.needed)
        assert found(world, explicit, "7") is served
        assert registry.made["7"].closed == 0
        assert Labels("digits", PINNED, "7") in live_series(world.writer)

    async def test_the_one_unused_longest_goes(self) -> None:
        world = World("1")
        world.swap(route({"stable 1": 100}))
        # An engine that a change has prepared, and that no snapshot needs yet.
        prepared = FakeEngine()
        load(world.live, "z", prepared, batcher(prepared, None))
        registry, explicit = versions_of(world)
        names = "abcdefgh"
        assert len(names) == explicit_module.KEPT
        arms = {version: await soon(explicit.load("digits", version)) for version in names}
        found(world, explicit, "a")
        busy = arms["b"]
        busy.enter()
        await soon(explicit.load("digits", "i"))
        assert [engine.closed for engine in registry.made.values()] == [0] * 9
        assert found(world, explicit, "b") is None
        busy.leave()
        assert registry.made["b"].closed == 1
        assert found(world, explicit, "a") is not None
        assert Labels("digits", PINNED, "b") not in live_series(world.writer)
        assert prepared.closed == 0, "a prepared change is not undone by who looks at versions"
        assert EngineKey("1" * 64, EngineOptions()) in world.live.engines

    async def test_unloading(self) -> None:
        world = World()
        world.swap(SPLIT, route({"stable 1": 100}))
        registry, explicit = versions_of(world)
        for version in "78":
            await soon(explicit.load("digits", version))
        served = await soon(explicit.load("digits2", "7"))
        served.observations.answered(200, 1000)
        explicit.unload("digits", "7")
        assert registry.made["7"].closed == 0, "the other route has it still"
        assert Labels("digits", PINNED, "7") not in live_series(world.writer)
        assert Labels("digits2", PINNED, "7") in live_series(world.writer)
        explicit.unload("digits2")
        assert registry.made["7"].closed == 1
        assert registry.made["8"].closed == 0
        explicit.unload("digits")
        explicit.unload("nobody")
        assert registry.made["8"].closed == 1
        assert world.closed == "3"

    async def test_a_version_that_came_into_force_meanwhile_is_not_unloaded(self) -> None:
        world = World("1")
        world.swap(route({"stable 1": 100}))
        registry, explicit = versions_of(world)
        await soon(explicit.load("digits", "7"))
        world.live.swap(in_force(route({"stable 1": 90, "canary 7": 10})))
        explicit.unload("digits", "7")
        assert registry.made["7"].closed == 0
        assert world.served()["canary"] == "canary 7"

    @pytest.mark.parametrize(("policy", "known", "other"), [("off", 404, 404), ("known", None, 404)])
    async def test_what_the_route_allows(self, policy: str, known: int | None, other: int) -> None:
        world = World()
        world.swap(route({"stable 1": 100}, previous=["2"], explicit_versions=policy))
        _, explicit = versions_of(world)
        for version, status in (("2", known), ("7", other)):
            if status is None:
                assert found(world, explicit, version).pin.version == version
            else:
                with pytest.raises(InferenceError) as refused:
                    found(world, explicit, version)
                assert refused.value.status == status

    async def test_a_denied_version_is_refused(self) -> None:
        world = World()
        world.swap(SPLIT)
        registry, explicit = versions_of(world)
        pinned = found(world, explicit, "2")
        pinned.enter()
        arms = world.live.swap(in_force(SPLIT, denied=["2"]))
        assert [arm.labels for arm in arms] == [("digits", PINNED, "2")], "its answers are waited for as well"
        with pytest.raises(InferenceError) as refused:
            found(world, explicit, "2")
        assert refused.value.status == 403
        # A version that nobody knew here before, denied while it was loading.
        world.live.swap(in_force(SPLIT, denied=["7"]))
        with pytest.raises(InferenceError) as late:
            await soon(explicit.load("digits", "7"))
        assert (late.value.status, registry.loaded) == (403, [])

    async def test_a_deny_while_it_loads(self) -> None:
        world = World()
        world.swap(SPLIT)
        registry, explicit = versions_of(world)

        async def denied_meanwhile() -> None:
            world.live.swap(in_force(SPLIT, denied=["7"]))

        registry.before = denied_meanwhile
        with pytest.raises(InferenceError) as refused:
            await soon(explicit.load("digits", "7"))
        assert refused.value.status == 403

    async def test_a_route_that_goes_while_it_loads(self) -> None:
        world = World()
        world.swap(SPLIT)
        registry, explicit = versions_of(world)

        async def gone_meanwhile() -> None:
            world.live.swap(in_force())

        registry.before = gone_meanwhile
        with pytest.raises(InferenceError) as refused:
            await soon(explicit.load("digits", "7"))
        assert refused.value.status == 404
        assert registry.made["7"].closed == 1

    async def test_a_change_that_loads_it_first_wins(self) -> None:
        world = World()
        world.swap(SPLIT)
        registry, explicit = versions_of(world)
        theirs = FakeEngine()

        async def loaded_meanwhile() -> None:
            load(world.live, "7", theirs, batcher(theirs, None))

        registry.before = loaded_meanwhile
        served = await soon(explicit.load("digits", "7"))
        assert served.loaded.engine is theirs
        assert (registry.made["7"].closed, theirs.closed) == (1, 0), "nobody else would ever close ours"

    async def test_a_load_that_fails_is_everybodys_and_may_be_tried_again(self) -> None:
        world = World()
        world.swap(SPLIT)
        registry, explicit = versions_of(world)
        registry.error = EngineError("opset 99")
        for _ in range(2):
            with pytest.raises(InferenceError, match="cannot be loaded: opset 99") as failed:
                await soon(explicit.load("digits", "7"))
            assert failed.value.status == 500
        registry.error = InferenceError(404, "no such version")
        with pytest.raises(InferenceError, match="no such version"):
            await soon(explicit.load("digits", "7"))
        registry.error = None
        assert (await soon(explicit.load("digits", "7"))).pin == pin("7")
        with pytest.raises(InferenceError, match="unknown model"):
            await soon(explicit.load("nobody", "7"))
