from __future__ import annotations

import pytest

from gateway.serving.turns import MIXED_NS, TICK_BUDGET_NS, Turns
from tests.serving.manual_loop import ManualLoop


class Worker:
    """Versions with runs of a third of a tick's budget, on a clock that only they move."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.now_ns = 5
        self.ran: list[int] = []
        self.turns = Turns(self.loop, lambda: self.now_ns)  # type: ignore[arg-type]

    def ready(self, *versions: int, more: int = 0) -> None:
        for version in versions:
            self.turns.add(lambda version=version: self._run(version, more))  # type: ignore[misc]

    def _run(self, version: int, more: int) -> None:
        self.now_ns += TICK_BUDGET_NS // 3
        self.ran.append(version)
        if more:
            self.ready(version, more=more - 1)


def test_a_tick_runs_no_more_than_its_budget_and_the_rest_in_the_next_ones() -> None:
    worker = Worker()
    worker.ready(*range(9))
    ticks = []
    while worker.loop.tick():
        ticks.append(len(worker.ran))
    assert ticks == [4, 8, 9]
    assert worker.ran == list(range(9))


def test_versions_that_have_more_to_do_take_turns() -> None:
    worker = Worker()
    worker.ready(1, 2, 3, more=2)
    worker.loop.run()
    assert worker.ran == [1, 2, 3] * 3


def test_between_two_runs_of_a_version_that_is_alone_the_loop_turns() -> None:
    worker = Worker()
    worker.ready(1, more=1)
    worker.loop.tick()
    assert worker.ran == [1]
    worker.loop.tick()
    assert worker.ran == [1, 1]


def test_a_run_that_breaks_takes_no_turn_away() -> None:
    worker = Worker()

    def broken() -> None:
        raise ZeroDivisionError

    worker.turns.add(broken)
    worker.ready(1)
    with pytest.raises(ZeroDivisionError):
        worker.loop.tick()
    worker.loop.run()
    assert worker.ran == [1]


class TestBefore:
    def test_it_comes_ahead_of_all_runs_and_may_add_some(self) -> None:
        worker = Worker()
        worker.ready(1)
        worker.turns.before(lambda: worker.ready(2))
        worker.loop.tick()
        assert worker.ran == [1, 2]
        assert not worker.loop.tick(), "nothing is left"

    def test_it_is_called_once_and_alone(self) -> None:
        worker, called = Worker(), []
        worker.turns.before(lambda: called.append(1))
        worker.loop.run()
        worker.ready(3)
        worker.turns.before(lambda: called.append(2))
        worker.loop.run()
        assert (called, worker.ran) == ([1, 2], [3])

    def test_one_that_breaks_keeps_nobody_else(self, caplog: pytest.LogCaptureFixture) -> None:
        worker, called = Worker(), []
        worker.turns.before(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        worker.turns.before(lambda: called.append(1))
        worker.ready(1)
        worker.loop.run()
        assert (called, worker.ran) == ([1], [1])
        assert "could not be queued" in caplog.text

    @pytest.mark.parametrize("runs", [0, 1, 2])
    def test_what_is_added_on_the_way_has_the_next_tick(self, runs: int) -> None:
        """By another one, and by a run, whether or not any are left."""
        worker, called = Worker(), []
        worker.turns.before(lambda: worker.turns.before(lambda: called.append("by another")))
        for _ in range(runs):
            worker.turns.add(lambda: worker.turns.before(lambda: called.append("by a run")))
        worker.loop.run()
        assert called == ["by another"] + ["by a run"] * runs

    def test_runs_beyond_the_budget_wait_for_those_of_the_next_tick(self) -> None:
        worker, called = Worker(), []
        worker.ready(*range(6))
        worker.loop.tick()
        worker.turns.before(lambda: called.append(len(worker.ran)))
        worker.loop.run()
        assert called == [4]
        assert worker.ran == list(range(6))


class TestKin:
    def test_only_after_a_while_without_others(self) -> None:
        worker = Worker()
        worker.turns.add(lambda: None, "a")
        assert not worker.turns.is_among_kin()
        worker.now_ns += MIXED_NS
        worker.turns.add(lambda: None, "a")
        assert not worker.turns.is_among_kin()
        worker.now_ns += 1
        assert worker.turns.is_among_kin()

    def test_the_first_of_another_kin_ends_it(self) -> None:
        worker = Worker()
        for kin in ("a", "b", "a"):
            worker.turns.add(lambda: None, kin)
            assert not worker.turns.is_among_kin()
            worker.now_ns += MIXED_NS + 1
            assert worker.turns.is_among_kin()
