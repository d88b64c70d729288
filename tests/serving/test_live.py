from __future__ import annotations

from gateway.routing.state import EngineOptions
from gateway.serving.live import EngineKey, LoadedVersion
from gateway.telemetry.observations import Labels
from tests.serving.fake_engine import FakeEngine, batcher, load
from tests.serving.world import World, live_series
from tests.states import in_force, route

SPLIT = route({"stable 1": 90, "canary 2": 10})


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
        assert live_series(world.writer) == set(), "nobody has asked yet"
        world.ask_all()
        assert live_series(world.writer) == {refused, stable, canary}
        world.swap(SPLIT, denied="2")
        assert live_series(world.writer) == {refused, stable}
        engine = FakeEngine()
        load(world.live, "2", engine, batcher(engine, None))
        world.swap(SPLIT)
        assert live_series(world.writer) == {refused, stable, canary}, "it counts on where it was"
        world.swap(route({"stable 1": 100}), route({"x 1": 100}))
        world.ask_all()
        assert Labels("digits2", "", "") in live_series(world.writer)
        world.swap()
        assert live_series(world.writer) == set(), "those of requests that reached no version go as well"
