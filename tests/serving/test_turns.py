from __future__ import annotations

import pytest

from gateway.serving.turns import TICK_BUDGET_NS, Turns
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
