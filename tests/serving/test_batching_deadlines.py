"""Deadlines in the queue of an engine whose runs go to a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gateway.routing.state import EngineOptions
from gateway.serving.batching import LOOP_BUDGET_NS, Batcher, Work
from gateway.serving.engine import Array, Signature, TensorSpec
from gateway.serving.tensors import InferenceError
from gateway.telemetry.observations import (
    BLOCK_BYTES,
    CAPACITY,
    Labels,
    ObservationWriter,
    VersionObservations,
)

_SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 1), dimensions=("batch", ""))


class _Doubler:
    """Takes its time, as a model of some size does."""

    platform = "test"
    signature = Signature(inputs=(_SPEC,), outputs=(_SPEC,))

    def __init__(self, run_s: float) -> None:
        self._run_s = run_s
        self.runs = 0

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        self.runs += 1
        time.sleep(self._run_s)
        return [inputs["x"] * 2]

    def warm(self) -> None:
        return

    def close(self) -> None:
        return


class _CountingLoop:
    """The running loop, and how many of its timers have not fired."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.timers = 0
        self.most_timers = 0

    def call_later(self, delay_s: float, callback: object) -> None:
        self.timers += 1
        self.most_timers = max(self.timers, self.most_timers)

        def fire() -> None:
            self.timers -= 1
            callback()  # type: ignore[operator]

        self._loop.call_later(delay_s, fire)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def observations() -> VersionObservations:
    memory = memoryview(bytearray(BLOCK_BYTES * CAPACITY))
    return ObservationWriter(memory).block(Labels("route", "stable", "1"))


def work(
    observations: VersionObservations, value: float, timeout_s: float = 60.0
) -> tuple[Work, asyncio.Future]:
    outcome: asyncio.Future[list[Array] | InferenceError] = asyncio.get_running_loop().create_future()
    made = Work(
        {"x": np.array([[value]], np.float32)},
        ("x",),
        batchable=True,
        deadline_ns=time.perf_counter_ns() + int(timeout_s * 1e9),
        observations=observations,
        done=outcome.set_result,
    )
    return made, outcome


def batcher(engine: _Doubler, loop: object, threads: ThreadPoolExecutor) -> Batcher:
    return Batcher(engine, EngineOptions(), loop, threads, run_ns=LOOP_BUDGET_NS * 10)  # type: ignore[arg-type]


async def test_a_load_of_runs_keeps_one_timer(
    threads: ThreadPoolExecutor, observations: VersionObservations
) -> None:
    """For the deadlines: one that each run started and that outlived it would add up for ever."""
    loop = _CountingLoop()
    engine = _Doubler(0.001)
    queue = batcher(engine, loop, threads)

    async def ask(value: float) -> None:
        for _ in range(30):
            made, outcome = work(observations, value)
            queue.submit(made)
            (answer,) = await outcome
            assert answer.tolist() == [[2 * value]]

    # Two that take turns: whenever a timer fires, a run is going on.
    await asyncio.gather(ask(1.0), ask(2.0))
    assert engine.runs >= 30
    assert loop.most_timers == 1


async def test_a_run_that_hangs_keeps_nobody_past_the_deadline(
    threads: ThreadPoolExecutor, observations: VersionObservations
) -> None:
    queue = batcher(_Doubler(0.5), asyncio.get_running_loop(), threads)
    first, one = work(observations, 1.0, timeout_s=0.05)
    queue.submit(first)
    await asyncio.sleep(0)
    second, other = work(observations, 2.0, timeout_s=0.1)
    queue.submit(second)
    started = time.monotonic()
    for outcome in (await one, await other):
        assert isinstance(outcome, InferenceError) and outcome.status == 504
    assert time.monotonic() - started < 0.4


async def test_what_is_cancelled_does_not_run(
    threads: ThreadPoolExecutor, observations: VersionObservations
) -> None:
    engine = _Doubler(0.05)
    queue = batcher(engine, asyncio.get_running_loop(), threads)
    first, one = work(observations, 1.0)
    queue.submit(first)
    await asyncio.sleep(0)
    second, other = work(observations, 2.0)
    queue.submit(second)
    second.cancel()
    third, last = work(observations, 3.0)
    await one
    queue.submit(third)
    (answer,) = await last
    assert answer.tolist() == [[6.0]]
    assert engine.runs == 2
    assert not other.done()
