from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from gateway.serving.run_threads import QUICK_NS, Lane, RunThreads

SOON_S = 20.0
LONG_NS = QUICK_NS * 10


class Pool:
    """One thread for long runs, on a clock that only the runs move."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.threads = RunThreads(1, lambda: self.now_ns)
        self.gate = threading.Event()
        self.order: list[str] = []

    def hold(self, lane: Lane) -> Future[Any]:
        """A run that begins at once, and ends when the gate opens; returns when it has begun."""
        begun = threading.Event()

        def run() -> None:
            begun.set()
            assert self.gate.wait(SOON_S)

        future = lane.submit(run)
        assert begun.wait(SOON_S)
        return future

    def run(self, lane: Lane, name: str, took_ns: int = LONG_NS) -> Future[Any]:
        def run() -> None:
            self.now_ns += took_ns
            self.order.append(name)

        return lane.submit(run)


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.gate.set()
    made.threads.shutdown()


def test_who_used_the_threads_least_goes_next(pool: Pool) -> None:
    holder, greedy, modest = (pool.threads.lane(LONG_NS) for _ in range(3))
    pool.run(greedy, "warm", 10 * LONG_NS).result(SOON_S)
    pool.hold(holder)
    runs = [pool.run(greedy, "greedy"), *(pool.run(modest, "modest") for _ in range(3))]
    pool.gate.set()
    for run in runs:
        run.result(SOON_S)
    assert pool.order == ["warm", "modest", "modest", "modest", "greedy"]


def test_a_version_that_was_idle_has_saved_up_nothing(pool: Pool) -> None:
    holder, busy, idle = (pool.threads.lane(LONG_NS) for _ in range(3))
    for _ in range(50):
        pool.run(busy, "warm").result(SOON_S)
    pool.order.clear()
    pool.hold(holder)
    runs = [pool.run(lane, name) for _ in range(4) for lane, name in ((busy, "busy"), (idle, "idle"))]
    pool.gate.set()
    for run in runs:
        run.result(SOON_S)
    assert pool.order[:4].count("busy") >= 1, "fifty runs of another would have to come first"


def test_a_long_run_cannot_hold_up_the_quick_versions(pool: Pool) -> None:
    long, quick = pool.threads.lane(LONG_NS), pool.threads.lane(QUICK_NS // 2)
    held = pool.hold(long)
    pool.run(quick, "quick", QUICK_NS // 2).result(SOON_S)
    assert not held.done()


def test_the_thread_of_quick_versions_takes_no_long_run(pool: Pool) -> None:
    one, other, quick = pool.threads.lane(LONG_NS), pool.threads.lane(LONG_NS), pool.threads.lane(0)
    pool.hold(one)
    waits = pool.run(other, "long")
    pool.run(quick, "became long").result(SOON_S)
    waits_too = pool.run(quick, "long again")
    assert not waits.done() and not waits_too.done()
    pool.gate.set()
    waits.result(SOON_S)
    waits_too.result(SOON_S)


def test_what_a_run_raises_is_its_callers(pool: Pool) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    lane = pool.threads.lane(0)
    with pytest.raises(ZeroDivisionError):
        lane.submit(broken).result(SOON_S)
    pool.run(lane, "next").result(SOON_S)


def test_every_run_of_many_versions_is_run_once() -> None:
    threads = RunThreads(2)
    lanes = [threads.lane(run_ns) for run_ns in (0, LONG_NS, 0, LONG_NS)]
    ran: list[int] = []
    futures = [lanes[number % 4].submit(ran.append, number) for number in range(2000)]
    for future in futures:
        future.result(SOON_S)
    threads.shutdown()
    assert sorted(ran) == list(range(2000))
