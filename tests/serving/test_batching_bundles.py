"""Works that stand for several requests, and runs that stay on the loop among kin."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gateway.serving.batching import AMONG_KIN, Work
from gateway.serving.run_outputs import RunOutputs
from gateway.serving.tensors import InferenceError
from gateway.serving.turns import MIXED_NS, Turns
from gateway.telemetry import observations as obs
from gateway.telemetry.observations import Labels
from tests.serving.fake_engine import FakeEngine, batcher, observing
from tests.serving.manual_loop import ManualLoop

FAR_NS = 3_600 * 10**9


class Several(Work):
    """So many rows, each of them a request."""

    __slots__ = ("outcomes",)

    def __init__(self, count: int, observations: obs.VersionObservations, late: bool = False) -> None:
        self.outcomes: list[tuple[RunOutputs | InferenceError, int]] = []
        array = np.arange(count, dtype=np.float32).reshape(count, 1)
        deadline_ns = time.perf_counter_ns() + (-1 if late else FAR_NS)
        super().__init__({"x": array}, ("sum",), True, deadline_ns, observations, lambda _: None)
        self.requests = count

    def deliver(self, outcome: RunOutputs | InferenceError, start: int = 0) -> None:
        if self.done is not None:
            self.done = None
            self.outcomes.append((outcome, start))


@pytest.fixture
def observations() -> obs.VersionObservations:
    return observing().block(Labels("digits", "stable", "1"))


@pytest.mark.parametrize("limits", [{"max_queue": 5}, {"concurrency": 5}])
def test_the_room_is_for_requests(limits: dict[str, int], observations: obs.VersionObservations) -> None:
    loop = ManualLoop()
    made = batcher(FakeEngine(), loop, **limits)
    three, two = Several(3, observations), Several(2, observations)
    made.submit(three)
    with pytest.raises(InferenceError) as refused:
        made.submit(Several(3, observations))
    assert refused.value.status == 503
    made.submit(two)
    with pytest.raises(InferenceError):
        made.submit(Several(1, observations))
    loop.run()
    assert len(three.outcomes) == len(two.outcomes) == 1
    made.submit(Several(5, observations))


def test_those_that_are_late_or_gone_leave_their_room(observations: obs.VersionObservations) -> None:
    loop = ManualLoop()
    engine = FakeEngine()
    made = batcher(engine, loop, max_queue=4)
    late, gone = Several(2, observations, late=True), Several(2, observations)
    made.submit(late)
    made.submit(gone)
    gone.cancel()
    loop.run()
    ((outcome, _),) = late.outcomes
    assert isinstance(outcome, InferenceError) and outcome.status == 504
    assert (engine.runs, gone.outcomes) == ([], [])
    made.submit(Several(4, observations))


def test_they_share_a_run_up_to_the_batch_size(observations: obs.VersionObservations) -> None:
    loop = ManualLoop()
    engine = FakeEngine()
    made = batcher(engine, loop, max_batch_size=4)
    works = [Several(count, observations) for count in (2, 3, 2)]
    for work in works:
        made.submit(work)
    loop.run()
    assert engine.runs == [(4, 1), (3, 1)]
    assert [work.outcomes[0][1] for work in works] == [0, 0, 2]
    outcome = works[2].outcomes[0][0]
    assert isinstance(outcome, RunOutputs) and outcome.shared
    assert outcome.first_lists() is outcome.first_lists()
    assert outcome.first_lists()[2:] == outcome.rows(2, 2)[0].tolist() == [[0.0], [1.0]]


def test_each_of_them_has_waited(observations: obs.VersionObservations) -> None:
    loop = ManualLoop()
    made = batcher(FakeEngine(), loop)
    work = Several(50, observations)
    made.submit(work)
    queued_ns = work.queued_ns
    loop.run()
    counts = observations.read()
    assert counts[obs.QUEUE_NS] % 50 == 0
    assert 0 < counts[obs.QUEUE_NS] // 50 < time.perf_counter_ns() - queued_ns
    assert counts[obs.ROWS] == 50


class TestAmongKin:
    @pytest.fixture
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(1) as pool:
            yield pool

    @pytest.mark.parametrize(
        ("run_ns", "after_ns", "on_loop"),
        [
            (100, 0, True),  # within the budget nobody asks who else is there
            (999, MIXED_NS + 1, True),
            (999, MIXED_NS, False),  # another model was here of late
            (AMONG_KIN * 100 + 1, MIXED_NS + 1, False),
        ],
    )
    def test_where_a_run_is_made(
        self,
        run_ns: int,
        after_ns: int,
        on_loop: bool,
        threads: ThreadPoolExecutor,
        observations: obs.VersionObservations,
    ) -> None:
        now_ns = [0]
        loop = Threadsafe()
        turns = Turns(loop, lambda: now_ns[0])  # type: ignore[arg-type]
        engine = FakeEngine()
        made = batcher(engine, loop, threads, run_ns=run_ns, loop_budget_ns=100, turns=turns)
        turns.add(lambda: None, engine.signature)
        loop.run()
        now_ns[0] = after_ns
        made.submit(Several(1, observations))
        loop.run()
        assert engine.entered.wait(10)
        assert (engine.threads == [threading.get_ident()]) == on_loop


class Threadsafe(ManualLoop):
    """Nobody turns it for what a thread brings."""

    def call_soon_threadsafe(self, *_: object) -> None:
        pass

    def call_later(self, *_: object) -> None:
        pass
