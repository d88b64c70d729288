from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from gateway.routing.state import EngineOptions, Route
from gateway.serving import explicit as explicit_module
from gateway.serving.engine import EngineError
from gateway.serving.explicit import ExplicitVersions, Located
from gateway.serving.live import PINNED, EngineKey, Live, LoadedVersion
from gateway.serving.loading import Loader
from gateway.serving.tensors import InferenceError
from gateway.telemetry.observations import Labels, ObservationWriter, read_blocks
from tests.serving.fake_engine import FakeEngine, batcher, load, observing
from tests.states import in_force, pin, route

SPLIT = route({"stable 1": 90, "canary 2": 10})
SOON_S = 5.0


class World:
    """A `Live` with engines that are loaded by their version's digit."""

    def __init__(self, versions: str = "123") -> None:
        self.writer = observing()
        self.live = Live(self.writer)
        self.engines = {version: FakeEngine() for version in versions}
        for version, engine in self.engines.items():
            load(self.live, version, engine, batcher(engine, None))

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


class TestLeases:
    def test_an_engine_is_closed_after_its_last_lease(self) -> None:
        engine = FakeEngine()
        loaded = LoadedVersion(
            EngineKey("1", EngineOptions()), engine, batcher(engine, None), lambda closing: closing.close()
        )
        loaded.lease()
        loaded.lease()
        loaded.retire()
        loaded.release()
        assert engine.closed == 0
        loaded.retire()
        loaded.release()
        assert engine.closed == 1

    def test_an_engine_that_nobody_leases_is_closed_at_once_and_once(self) -> None:
        engine = FakeEngine()
        loaded = LoadedVersion(
            EngineKey("1", EngineOptions()), engine, batcher(engine, None), lambda closing: closing.close()
        )
        loaded.lease()
        loaded.release()
        assert engine.closed == 0, "it is not retired"
        loaded.retire()
        loaded.retire()
        assert engine.closed == 1

    def test_the_old_engine_outlives_the_swap_until_its_last_answer(self) -> None:
        world = World()
        world.swap(SPLIT)
        canary = world.arm("canary")
        canary.enter()
        canary.enter()
        world.swap(route({"stable 1": 100}))
        assert world.closed == "3", "that one nobody ever needed"
        canary.leave()
        assert world.closed == "3"
        canary.leave()
        assert world.closed == "23"


class TestSwap:
    def test_a_snapshot_is_one_revision_and_never_changes(self) -> None:
        world = World()
        world.swap(SPLIT)
        before = world.live.snapshot
        world.swap(SPLIT, denied="2")
        after = world.live.snapshot
        assert before is not after
        assert before.held.denies == {}
        assert {name: arm.pin.version for name, arm in before.routes["digits"].arms.items()} == {
            "stable": "1",
            "canary": "2",
        }
        assert world.served() == {"stable": "stable 1", "canary": "stable 1"}

    def test_the_same_arm_lives_across_snapshots(self) -> None:
        world = World()
        world.swap(SPLIT)
        stable = world.arm("stable")
        world.swap(route({"stable 1": 50, "canary 2": 50}))
        assert world.arm("stable") is stable
        # The canary's keys are the fallback's now, and count as its.
        world.swap(SPLIT, denied="2")
        assert world.arm("stable") is stable is world.arm("canary")

    def test_an_engine_that_was_loaded_again_gets_a_new_arm(self) -> None:
        world = World()
        world.swap(SPLIT)
        stable = world.arm("stable")
        engine = FakeEngine()
        load(world.live, "1", engine, batcher(engine, None))
        world.swap(SPLIT)
        assert world.arm("stable") is not stable
        assert world.arm("stable").loaded.engine is engine

    def test_denied_arms_with_answers_under_way_are_returned(self) -> None:
        world = World()
        three = route({"stable 1": 80, "canary 2": 10, "other 3": 10})
        world.swap(three)
        canary, other = world.arm("canary"), world.arm("other")
        for arm in (world.arm("stable"), canary, other):
            arm.enter()
        # 3 leaves by a change of the document: nobody waits for that. 2 is denied.
        assert world.swap(SPLIT, denied="2") == [canary.labels]
        other.leave()
        # Whoever asks before it is idle hears of it again: its own deny may have been rung just before.
        assert world.swap(SPLIT, denied="2") == [canary.labels]
        canary.leave()
        assert world.swap(SPLIT, denied="2") == []

    def test_idle_denied_arms_need_no_waiting(self) -> None:
        world = World()
        world.swap(SPLIT)
        assert world.swap(SPLIT, denied="2") == []

    def test_when_idle(self) -> None:
        world = World()
        world.swap(SPLIT)
        arm = world.arm("stable")
        called: list[str] = []
        arm.when_idle(lambda: called.append("at once"))
        assert called == ["at once"]
        arm.enter()
        arm.enter()
        arm.when_idle(lambda: called.append("later"))
        arm.leave()
        assert called == ["at once"] and arm.busy
        arm.leave()
        assert called == ["at once", "later"] and not arm.busy
        arm.enter()
        arm.leave()
        assert called == ["at once", "later"], "once"

    def test_a_version_that_is_not_loaded_is_answered_for_by_the_fallback(self) -> None:
        world = World("13")
        world.swap(SPLIT)
        live_route = world.live.snapshot.routes["digits"]
        assert world.served() == {"stable": "stable 1"}
        assert not live_route.ready
        assert world.live.snapshot.missing() == ["digits"]
        canary = live_route.entry.arms["canary"]
        served = live_route.served(canary)
        assert served is not None and served.labels == ("digits", "stable", "1")

    def test_a_missing_version_without_a_weight_keeps_nothing_from_being_ready(self) -> None:
        world = World("1")
        world.swap(route({"stable 1": 100, "canary 2": 0}))
        assert world.live.snapshot.missing() == []

    def test_without_a_fallback_nobody_answers(self) -> None:
        world = World("2")
        world.swap(SPLIT)
        live_route = world.live.snapshot.routes["digits"]
        assert live_route.served(live_route.entry.arms["stable"]) is None

    def test_what_a_rollback_leads_to_stays_loaded(self) -> None:
        world = World()
        world.swap(route({"stable 3": 100}, previous=["2", "1"]))
        assert world.closed == "1"

    def test_prepared_engines_stay(self) -> None:
        world = World()
        world.live.swap(in_force(route({"stable 1": 100})))
        world.live.retire_unneeded({EngineKey("2" * 64, EngineOptions())})
        assert world.closed == "3"

    def test_options_make_another_engine(self) -> None:
        world = World("1")
        world.swap(route({"stable 1": 100}, engine=EngineOptions(threads=2)))
        assert world.served() == {}
        assert world.closed == "1"


class TestSeries:
    def test_series_live_as_long_as_their_version_is_served(self) -> None:
        world = World()
        world.swap(SPLIT)
        refused = Labels("digits", "", "")
        stable, canary = Labels("digits", "stable", "1"), Labels("digits", "canary", "2")
        assert live_series(world.writer) == {refused, stable, canary}
        world.swap(SPLIT, denied="2")
        assert live_series(world.writer) == {refused, stable}
        world.swap(route({"stable 1": 100}), route({"x 1": 100}))
        assert Labels("digits2", "", "") in live_series(world.writer)
        world.swap()
        assert live_series(world.writer) == set(), "those of requests that reached no version go as well"


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
        await soon(explicit.load("digits2", "7"))
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
