"""The threads of long runs: few, and shared fairly by the versions of a worker."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

QUICK_NS = 2_000_000
"""A version whose last run was shorter has a thread more, which no longer run can hold."""
NICENESS = 5
"""Of the threads, where the system knows threads' own: the loop, which answers everybody, goes first."""


class RunThreads:
    """A few threads, in which the version that has used them least goes next (start-time fair queueing).

    There are few, because each that computes takes its share of the cores from the event loop. So a version
    with long runs, or many versions, would keep the others waiting if runs went in order of arrival.
    """

    def __init__(self, count: int, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.clock_ns = clock_ns
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="run", initializer=yield_to_the_loop)
        self._quick_thread = ThreadPoolExecutor(
            1, thread_name_prefix="run-quick", initializer=yield_to_the_loop
        )
        self._arrived: deque[_Task] = deque()
        """Between the loop, which never waits for the lock, and the threads."""
        self._waiting: list[_Task] = []
        self._choosing = threading.Lock()
        self._reached_ns = 0
        """What the version had used that ran last: one that comes back starts from here, not from its past."""

    def lane(self, run_ns: int) -> Lane:
        """An executor for one version, of which a run took so long."""
        return Lane(self, run_ns)

    @property
    def busy(self) -> bool:
        """Whether a run waits for a thread."""
        return bool(self._arrived or self._waiting)

    def probe(self) -> Future[None]:
        """Ends when a thread that long runs have is free for a moment, behind all runs that wait now."""
        return self._threads.submit(_nothing)

    def shutdown(self) -> None:
        """Waits for the runs under way."""
        self._threads.shutdown()
        self._quick_thread.shutdown()

    def add(self, task: _Task) -> None:
        """Has the task run when its lane's turn comes."""
        self._arrived.append(task)
        self._threads.submit(self._run_next)
        if task.lane.run_ns < QUICK_NS:
            self._quick_thread.submit(self._run_next, QUICK_NS)

    def _run_next(self, shorter_than_ns: float = float("inf")) -> None:
        task = self._next(shorter_than_ns)
        if task is not None:
            task.run()

    def _next(self, shorter_than_ns: float) -> _Task | None:
        """The task whose turn it is; None where the other pool was quicker."""
        with self._choosing:
            while self._arrived:
                task = self._arrived.popleft()
                task.lane.used_ns = max(task.lane.used_ns, self._reached_ns)
                self._waiting.append(task)
            fitting = [task for task in self._waiting if task.lane.run_ns < shorter_than_ns]
            if not fitting:
                return None
            chosen = min(fitting, key=lambda task: task.lane.used_ns)
            self._waiting.remove(chosen)
            self._reached_ns = chosen.lane.used_ns
            return chosen


class Lane(Executor):
    """One version's way into the threads."""

    def __init__(self, threads: RunThreads, run_ns: int) -> None:
        self._shared = threads
        self.used_ns = 0
        self.run_ns = run_ns
        """Of its last run."""
        self.clock_ns = threads.clock_ns

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor.submit`."""
        task = _Task(self, lambda: call(*args, **kwargs))
        self._shared.add(task)
        return task.future


class _Task:
    def __init__(self, lane: Lane, call: Callable[[], Any]) -> None:
        self.lane = lane
        self.future: Future[Any] = Future()
        self._call = call

    def run(self) -> None:
        started = self.lane.clock_ns()
        try:
            result = self._call()
        except BaseException as error:
            self._used(started)
            self.future.set_exception(error)
        else:
            self._used(started)
            self.future.set_result(result)

    def _used(self, started: int) -> None:
        self.lane.run_ns = self.lane.clock_ns() - started
        self.lane.used_ns += self.lane.run_ns


def yield_to_the_loop() -> None:
    """Gives the calling thread the lower priority of those that run models."""
    if sys.platform == "linux":
        # Elsewhere the niceness is the whole process'.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _nothing() -> None:
    pass
