"""Runs of one loaded version: all requests of one tick of the event loop in one run, without any timer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor

import numpy as np

from gateway.routing.state import EngineOptions
from gateway.serving.concurrency import AdaptiveLimit, FixedLimit, Limit
from gateway.serving.engine import Array, Engine, EngineError, Signature
from gateway.serving.run_outputs import RunOutputs
from gateway.serving.run_times import RunTimes
from gateway.serving.tensors import InferenceError
from gateway.serving.turns import Turns
from gateway.telemetry.observations import VersionObservations

log = logging.getLogger(__name__)

LOOP_BUDGET_NS = 200_000
"""A run expected to take longer goes to a thread, which itself costs about 120 µs a run."""
AMONG_KIN = 10
"""So many times that, where no other model's requests are held up by it: see docs/decisions/013."""
LOOK_AHEAD = 1024
"""How many waiting requests are looked at for those that may share a run."""
OVERDUE_RUNS = 10
"""A run that takes so many times what was expected of it is overdue."""
_SWEEP_S = 0.02
"""How often deadlines are looked at while a run is in a thread."""

Done = Callable[["list[Array] | InferenceError"], None]


class Work:
    """One request for one version, checked and ready to run."""

    __slots__ = (
        "deadline_ns",
        "done",
        "group",
        "inputs",
        "observations",
        "outputs",
        "queued_ns",
        "requests",
        "rows",
    )

    def __init__(
        self,
        inputs: dict[str, Array],
        outputs: tuple[str, ...],
        batchable: bool,
        deadline_ns: int,
        observations: VersionObservations,
        done: Done,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.deadline_ns = deadline_ns
        self.observations = observations
        self.done: Done | None = done
        """Called once, with the outputs in order or the reason; None when that has happened."""
        self.queued_ns = 0
        self.requests = 1
        """How many the limit counts it for."""
        self.rows = 1
        # Only requests whose rows look alike can share a run, and a run is counted for one variant.
        self.group: tuple[object, ...] | None = None
        if batchable and inputs:
            if len(inputs) == 1:
                # The common case, without an iterator.
                (array,) = inputs.values()
                shape = array.shape
                self.group = (observations, outputs, shape[1:])
            else:
                shapes = [array.shape for array in inputs.values()]
                shape = shapes[0]
                self.group = (observations, outputs, *[each[1:] for each in shapes])
            self.rows = shape[0]

    def deliver(self, outcome: RunOutputs | InferenceError, start: int = 0) -> None:
        """The run is over, and the outputs' rows from `start` are this request's; or there is none."""
        done, self.done = self.done, None
        if done is not None:
            done(outcome.rows(start, self.rows) if isinstance(outcome, RunOutputs) else outcome)

    def rejected(self) -> None:
        """The queue or the limit did not take it."""
        self.observations.rejected()

    def begins(self) -> None:
        """A run begins of which this is the oldest request."""

    def cancel(self) -> None:
        """Nobody waits for it any more: if it did not run yet, it will not."""
        self.done = None


_Outcome = RunOutputs | list[RunOutputs | InferenceError]
"""Of a run: what all of its requests have in common, or one for each."""


class _Run:
    """Works that share one run, the oldest first."""

    __slots__ = ("rows", "size", "started_ns", "waited_ns", "works")

    def __init__(self, works: list[Work], rows: int, waited_ns: int, started_ns: int) -> None:
        self.works = works
        self.rows = rows
        self.waited_ns = waited_ns
        """Of all works, in sum."""
        self.started_ns = started_ns
        # In elements of all inputs: a long sequence is a long run, however few its rows.
        oldest = works[0]
        size = 0
        for array in oldest.inputs.values():
            size += array.size
        self.size = size * rows // oldest.rows if oldest.rows else size


class Batcher:
    """The queue in front of one engine. Used on the event loop only.

    An idle engine runs at the end of the tick with all that arrived in it; a busy one runs next with all that
    has queued meanwhile, up to the batch size. The oldest request decides which group runs next.
    """

    def __init__(
        self,
        engine: Engine,
        options: EngineOptions,
        loop: asyncio.AbstractEventLoop,
        threads: Executor,
        *,
        run_ns: int,
        turns: Turns | None = None,
        loop_budget_ns: int = LOOP_BUDGET_NS,
    ) -> None:
        """`run_ns`: one run with every dynamic dimension at 1. `turns`: of all versions on this loop."""
        self._engine = engine
        self._loop = loop
        self._threads = threads
        self.turns = turns or Turns(loop)
        self._queue: deque[Work] = deque()
        self._waiting = 0
        """Requests in the queue."""
        self._scheduled = False
        self._running: list[Work] = []
        self._overdue_ns = self._began_ns = 0
        """Of the run in a thread: when it is overdue, and when it began."""
        self.answered_ns = 0
        """When a run last gave outputs, on the clock of `time.perf_counter_ns`."""
        self._sweeping = False
        self.warm_ns = run_ns
        """What a run of the warm-up took."""
        self._run_times = RunTimes(_least_size(engine.signature), run_ns)
        self._kin = engine.signature
        """Versions with the same inputs and outputs are one model's, whose runs are alike."""
        self._loop_budget_ns = loop_budget_ns
        # In a thread a run waits for the interpreter's lock as long as the loop is busy, and by the wall it would
        # look too slow for the loop for ever. On another device than the CPU its own time says nothing.
        on_cpu = tuple(options.providers) == ("CPUExecutionProvider",)
        self._clock_ns = time.thread_time_ns if on_cpu else time.perf_counter_ns
        wanted = engine.signature.batchable if options.batching is None else options.batching
        self.batchable = wanted and engine.signature.batchable
        self.max_batch_size = options.max_batch_size if self.batchable else 1
        self._max_queue = options.max_queue
        self._limit = _limit(options, self.max_batch_size, run_ns)
        self._room = min(self._max_queue, self._limit.in_flight)
        """Requests that the queue may hold, now."""

    @property
    def busy(self) -> bool:
        """Whether requests wait or run."""
        return bool(self._running or self._queue)

    def overdue_ns(self, now_ns: int) -> int:
        """How long the run under way has taken, where that is far longer than was expected of it; else 0."""
        return now_ns - self._began_ns if self._running and now_ns > self._overdue_ns else 0

    def submit(self, work: Work) -> None:
        """Queues the work; its `done` is called from the event loop. Raises `InferenceError` when full."""
        if self._waiting + work.requests > self._room:
            work.rejected()
            raise self._full()
        work.queued_ns = time.perf_counter_ns()
        self._queue.append(work)
        self._waiting += work.requests
        if not self._scheduled and not self._running:
            self._scheduled = True
            self.turns.add(self._turn, self._kin)

    def _full(self) -> InferenceError:
        waiting = self._waiting
        if waiting >= self._max_queue:
            reason = f"the queue of this version is full ({self._max_queue} requests)"
        else:
            reason = (
                f"this version has {waiting + _requests(self._running)} requests in flight, "
                f"and its limit is {self._limit.in_flight} now"
            )
        return InferenceError(503, f"{reason}: try again", retry_after_s=1)

    def _turn(self) -> None:
        """One run. What it leaves in the queue waits for the next turn, after the other versions'."""
        run = self._take()
        # Not before: an answer that `_take` gave may have brought in the next request of its connection.
        self._scheduled = False
        if run is None:
            return
        budget_ns, expected_ns = self._loop_budget_ns, self._run_times.expected_ns(run.size)
        if expected_ns <= budget_ns or (expected_ns <= AMONG_KIN * budget_ns and self.turns.is_among_kin()):
            outcome = _run_works(self._engine, run)
            took_ns = time.perf_counter_ns() - run.started_ns
            self._finish(run, outcome, took_ns, took_ns)
        else:
            self._began_ns = run.started_ns
            self._overdue_ns = run.started_ns + int(OVERDUE_RUNS * expected_ns)
            self._run_in_thread(run)

    def _take(self) -> _Run | None:
        """The next run: the oldest work, and all that may share a run with it up to the batch size."""
        now = time.perf_counter_ns()
        works: list[Work] = []
        others: list[Work] = []
        group: tuple[object, ...] | None = None
        rows = waited_ns = 0
        queue = self._queue
        most = self.max_batch_size
        while queue and len(others) < LOOK_AHEAD:
            work = queue.popleft()
            self._waiting -= work.requests
            if work.done is None:
                continue
            if work.deadline_ns < now:
                work.deliver(_too_late())
            elif not works or (group is not None and work.group == group and rows + work.rows <= most):
                group = work.group
                works.append(work)
                rows += work.rows
                waited_ns += (now - work.queued_ns) * work.requests
                if rows >= most or group is None:
                    break
            else:
                others.append(work)
        if others:
            queue.extendleft(reversed(others))
            self._waiting += _requests(others)
        oldest_ns = now - works[0].queued_ns if works else 0
        self._limit.took(now, _requests(works), self._waiting, oldest_ns)
        return _Run(works, rows, waited_ns, now) if works else None

    def _run_in_thread(self, run: _Run) -> None:
        self._running = run.works
        self._room = min(self._max_queue, self._limit.in_flight - _requests(run.works))
        if not self._sweeping:
            # One timer, not one a run: under load the next run has always begun when a timer fires.
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        future = self._threads.submit(_timed_run, self._engine, run, self._clock_ns)
        future.add_done_callback(
            lambda ran: self._loop.call_soon_threadsafe(self._finish, run, *ran.result())
        )

    def _finish(self, run: _Run, outcome: _Outcome, took_ns: int, own_ns: int) -> None:
        self._running = []
        self._run_times.measured(run.size, own_ns)
        now = time.perf_counter_ns()
        self._limit.ran(now - run.started_ns)
        if isinstance(outcome, RunOutputs) or any(isinstance(one, RunOutputs) for one in outcome):
            self.answered_ns = now
        self._room = self._limit.in_flight
        if self._room > self._max_queue:
            self._room = self._max_queue
        observations = run.works[0].observations
        observations.limited(self._limit.in_flight)
        observations.ran(run.rows, run.waited_ns, took_ns, int(time.time() * 1000))
        run.works[0].begins()
        end = 0
        for index, work in enumerate(run.works):
            start, end = end, end + work.rows
            try:
                work.deliver(outcome if isinstance(outcome, RunOutputs) else outcome[index], start)
            except Exception:
                # The others of the batch, and those that wait behind it, must have their answers all the same.
                log.exception("an answer could not be delivered")
        if self._queue and not self._scheduled:
            self._scheduled = True
            self.turns.add(self._turn, self._kin)

    def _sweep(self) -> None:
        """While a run is in its thread: a model that hangs does not keep its clients past their deadline."""
        if not self._running:
            self._sweeping = False
            return
        now = time.perf_counter_ns()
        for work in (*self._running, *self._queue):
            if work.deadline_ns < now:
                work.deliver(_too_late())
        # Nobody waits for them: they take no place of those who do, and their inputs go.
        self._queue = deque(work for work in self._queue if work.done is not None)
        self._waiting = _requests(self._queue)
        self._loop.call_later(_SWEEP_S, self._sweep)


def _limit(options: EngineOptions, batch: int, run_ns: int) -> Limit:
    ceiling = options.max_queue + batch
    if options.concurrency == "auto":
        return AdaptiveLimit(batch=batch, ceiling=ceiling, run_ns=run_ns)
    return FixedLimit(ceiling if options.concurrency == "off" else options.concurrency)


def _least_size(signature: Signature) -> int:
    """Elements of all inputs, with every dynamic dimension at 1: what a warm-up run has."""
    size = 0
    for spec in signature.inputs:
        elements = 1
        for length in spec.shape:
            elements *= max(length, 1)
        size += elements
    return size


def _requests(works: Iterable[Work]) -> int:
    return sum([work.requests for work in works])


def _too_late() -> InferenceError:
    return InferenceError(504, "the request's deadline has passed before its result was there")


def _timed_run(engine: Engine, run: _Run, clock_ns: Callable[[], int]) -> tuple[_Outcome, int, int]:
    started, started_own = time.perf_counter_ns(), clock_ns()
    outcome = _run_works(engine, run)
    return outcome, time.perf_counter_ns() - started, clock_ns() - started_own


def _run_works(engine: Engine, run: _Run) -> _Outcome:
    """After a failure each request runs alone, so that only the bad one fails: one outcome for each, in order."""
    works = run.works
    if len(works) == 1:
        return [_run_one(engine, works[0])]
    oldest = works[0]
    try:
        inputs = {name: np.concatenate([work.inputs[name] for work in works]) for name in oldest.inputs}
        arrays = engine.run(inputs, oldest.outputs)
        for array in arrays:
            if array.shape[0] != run.rows:
                raise EngineError("an output does not have one row for each row of input")
        return RunOutputs(arrays, shared=True)
    except Exception:
        return [_run_one(engine, work) for work in works]


def _run_one(engine: Engine, work: Work) -> RunOutputs | InferenceError:
    try:
        return RunOutputs(engine.run(work.inputs, work.outputs), shared=False)
    except InferenceError as error:
        return error
    except EngineError as error:
        return InferenceError(500, f"the model failed: {error}")
    except Exception as error:
        # Whatever an engine throws ends one request, never the worker; its text may tell of internals.
        return InferenceError(500, f"the model failed: {type(error).__name__}")
