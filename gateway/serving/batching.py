"""Runs of one loaded version: all requests of one tick of the event loop in one run, without any timer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from gateway.routing.state import EngineOptions
from gateway.serving.engine import Array, Engine, EngineError
from gateway.serving.tensors import InferenceError
from gateway.telemetry.observations import VersionObservations

log = logging.getLogger(__name__)

LOOP_BUDGET_NS = 200_000
"""A run measured to take longer goes to a thread, which itself costs about 120 µs a request."""
_SMOOTHING = 0.1
_SWEEP_S = 0.02
"""How often deadlines are looked at while a run is in a thread."""

Done = Callable[["list[Array] | InferenceError"], None]


class Work:
    """One request for one version, checked and ready to run."""

    __slots__ = ("deadline_ns", "done", "group", "inputs", "observations", "outputs", "queued_ns", "rows")

    def __init__(
        self,
        inputs: dict[str, Array],
        outputs: tuple[str, ...],
        *,
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
        first = next(iter(inputs.values())) if batchable and inputs else None
        self.rows = first.shape[0] if first is not None else 1
        # Only requests whose rows look alike can share a run, and a run is counted for one variant.
        shapes = tuple(array.shape[1:] for array in inputs.values())
        self.group = (observations, outputs, shapes) if batchable else None

    def finish(self, outcome: list[Array] | InferenceError) -> None:
        done, self.done = self.done, None
        if done is not None:
            done(outcome)

    def cancel(self) -> None:
        """Nobody waits for it any more: if it did not run yet, it will not."""
        self.done = None


class Batcher:
    """The queue in front of one engine. Used on the event loop only.

    An idle engine runs at the end of the tick with all that arrived in it; a busy one runs next with all that
    has queued meanwhile, up to the batch size.
    """

    def __init__(
        self,
        engine: Engine,
        options: EngineOptions,
        loop: asyncio.AbstractEventLoop,
        threads: Executor,
        *,
        run_ns: int,
        loop_budget_ns: int = LOOP_BUDGET_NS,
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._threads = threads
        self._queue: deque[Work] = deque()
        self._scheduled = False
        self._running: list[Work] = []
        self._sweeping = False
        self._run_ns = float(run_ns)
        self._loop_budget_ns = loop_budget_ns
        self._max_queue = options.max_queue
        wanted = engine.signature.batchable if options.batching is None else options.batching
        self.batchable = wanted and engine.signature.batchable
        self.max_batch_size = options.max_batch_size if self.batchable else 1

    def submit(self, work: Work) -> None:
        """Queues the work; its `done` is called from the event loop. Raises `InferenceError` when full."""
        if len(self._queue) >= self._max_queue:
            raise InferenceError(
                503,
                f"the queue of this version is full ({self._max_queue} requests): try again",
                retry_after_s=1,
            )
        work.queued_ns = time.perf_counter_ns()
        self._queue.append(work)
        self._schedule()

    def _schedule(self) -> None:
        if self._queue and not self._scheduled and not self._running:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        batch = self._take()
        if not batch:
            return
        if self._run_ns <= self._loop_budget_ns:
            started = time.perf_counter_ns()
            outcomes = _run_batch(self._engine, batch)
            self._finish(batch, outcomes, started, time.perf_counter_ns() - started)
        else:
            self._running = batch
            if not self._sweeping:
                # One timer, not one a run: under load the next run has always begun when a timer fires.
                self._sweeping = True
                self._loop.call_later(_SWEEP_S, self._sweep)
            started = time.perf_counter_ns()
            future = self._threads.submit(_timed_run, self._engine, batch)
            future.add_done_callback(
                lambda ran: self._loop.call_soon_threadsafe(
                    self._finish, batch, ran.result()[0], started, ran.result()[1]
                )
            )

    def _take(self) -> list[Work]:
        """The next run: the oldest work, and all that may share a run with it up to the batch size."""
        now = time.perf_counter_ns()
        batch: list[Work] = []
        rows = 0
        others: deque[Work] = deque()
        queue = self._queue
        while queue:
            work = queue.popleft()
            if work.done is None:
                continue
            if work.deadline_ns < now:
                work.finish(_too_late())
            elif not batch or (
                work.group is not None
                and work.group == batch[0].group
                and rows + work.rows <= self.max_batch_size
            ):
                batch.append(work)
                rows += work.rows
                if rows >= self.max_batch_size:
                    break
            else:
                others.append(work)
        others.extend(queue)
        self._queue = others
        return batch

    def _finish(
        self, batch: list[Work], outcomes: Sequence[list[Array] | InferenceError], started: int, took_ns: int
    ) -> None:
        self._running = []
        self._run_ns += (took_ns - self._run_ns) * _SMOOTHING
        queued = sum(started - work.queued_ns for work in batch)
        batch[0].observations.ran(sum(work.rows for work in batch), queued, took_ns, int(time.time() * 1000))
        for work, outcome in zip(batch, outcomes, strict=True):
            try:
                work.finish(outcome)
            except Exception:
                # The others of the batch, and those that wait behind it, must have their answers all the same.
                log.exception("an answer could not be delivered")
        self._schedule()

    def _sweep(self) -> None:
        """While a run is in its thread: a model that hangs does not keep its clients past their deadline."""
        if not self._running:
            self._sweeping = False
            return
        now = time.perf_counter_ns()
        for work in (*self._running, *self._queue):
            if work.deadline_ns < now:
                work.finish(_too_late())
        # Nobody waits for them: they take no place of those who do, and their inputs go.
        self._queue = deque(work for work in self._queue if work.done is not None)
        self._loop.call_later(_SWEEP_S, self._sweep)


def _too_late() -> InferenceError:
    return InferenceError(504, "the request's deadline has passed before its result was there")


def _timed_run(engine: Engine, batch: list[Work]) -> tuple[list[list[Array] | InferenceError], int]:
    started = time.perf_counter_ns()
    outcomes = _run_batch(engine, batch)
    return outcomes, time.perf_counter_ns() - started


def _run_batch(engine: Engine, batch: list[Work]) -> list[list[Array] | InferenceError]:
    """One outcome for each work, in order. After a failure each runs alone, so that only the bad one fails."""
    if len(batch) == 1:
        return [_run_one(engine, batch[0])]
    first = batch[0]
    try:
        inputs = {name: np.concatenate([work.inputs[name] for work in batch]) for name in first.inputs}
        results = engine.run(inputs, first.outputs)
        return _split(results, batch)
    except Exception:
        return [_run_one(engine, work) for work in batch]


def _split(results: list[Array], batch: list[Work]) -> list[list[Array] | InferenceError]:
    total = sum(work.rows for work in batch)
    if any(result.shape[0] != total for result in results):
        raise EngineError("an output does not have one row for each row of input")
    outcomes: list[list[Array] | InferenceError] = []
    start = 0
    for work in batch:
        end = start + work.rows
        outcomes.append([result[start:end] for result in results])
        start = end
    return outcomes


def _run_one(engine: Engine, work: Work) -> list[Array] | InferenceError:
    try:
        return engine.run(work.inputs, work.outputs)
    except InferenceError as error:
        return error
    except EngineError as error:
        return InferenceError(500, f"the model failed: {error}")
    except Exception as error:
        # Whatever an engine throws ends one request, never the worker; its text may tell of internals.
        return InferenceError(500, f"the model failed: {type(error).__name__}")
