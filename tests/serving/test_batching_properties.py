"""What holds for the batcher whatever arrives, on an event loop that is turned by hand."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.batching import LOOK_AHEAD, Batcher, Work
from gateway.serving.engine import Array
from gateway.serving.tensors import InferenceError
from gateway.telemetry import observations as obs
from gateway.telemetry.observations import Labels
from tests.serving.fake_engine import FakeEngine, batcher, observing
from tests.serving.manual_loop import ManualLoop

MAX_BATCH = 4
OBSERVATIONS = observing().block(Labels("digits", "stable", "1"))
FAR_NS = 3_600 * 10**9


class Noting(FakeEngine):
    """Keeps the inputs of each run; a row holds its request's number, in every place."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Array, tuple[str, ...]]] = []

    def run(self, inputs, outputs):  # type: ignore[no-untyped-def]
        self.noted.append((inputs["x"].copy(), tuple(outputs)))
        return super().run(inputs, outputs)


class Asked(NamedTuple):
    rows: int
    width: int
    outputs: tuple[str, ...]
    late: bool
    leaves: bool
    """The client goes before the run."""
    tick: bool
    """The loop turns after it."""


ASKED = st.builds(
    Asked,
    rows=st.integers(0, MAX_BATCH + 2),
    width=st.integers(1, 3),
    outputs=st.sampled_from([("sum",), ("count", "sum")]),
    late=st.sampled_from([False, False, False, True]),
    leaves=st.sampled_from([False, False, False, True]),
    tick=st.sampled_from([False, False, False, True]),
)


class Client:
    """Submits numbered requests, and keeps every outcome of each."""

    def __init__(self, loop: ManualLoop, made: Batcher) -> None:
        self.loop = loop
        self.batcher = made
        self.outcomes: list[list[list[Array] | InferenceError]] = []

    def ask(self, asked: Asked) -> Work:
        number = len(self.outcomes)
        outcomes: list[list[Array] | InferenceError] = []
        self.outcomes.append(outcomes)
        work = Work(
            {"x": np.full((asked.rows, asked.width), number, np.float32)},
            asked.outputs,
            batchable=self.batcher.batchable,
            deadline_ns=time.perf_counter_ns() + (-1 if asked.late else FAR_NS),
            observations=OBSERVATIONS,
            done=outcomes.append,
        )
        self.batcher.submit(work)
        return work


@pytest.fixture
def loop() -> ManualLoop:
    return ManualLoop()


@given(st.lists(ASKED, max_size=40), st.booleans())
def test_every_request_has_its_own_outcome_once(requests: list[Asked], batching: bool) -> None:
    loop, engine = ManualLoop(), Noting()
    client = Client(loop, batcher(engine, loop, max_batch_size=MAX_BATCH, batching=batching))
    for asked in requests:
        work = client.ask(asked)
        if asked.leaves:
            work.cancel()
        if asked.tick:
            loop.tick()
    loop.run()
    for number, (asked, outcomes) in enumerate(zip(requests, client.outcomes, strict=True)):
        if asked.leaves:
            assert outcomes == []
            continue
        (outcome,) = outcomes
        if asked.late:
            assert isinstance(outcome, InferenceError) and outcome.status == 504
        else:
            assert not isinstance(outcome, InferenceError)
            expected = {"sum": number * asked.width, "count": asked.width}
            for name, array in zip(asked.outputs, outcome, strict=True):
                assert array.tolist() == [[expected[name]]] * asked.rows
    check_runs(engine, requests, batching=batching)


def check_runs(engine: Noting, requests: list[Asked], *, batching: bool) -> None:
    oldest = []
    for rows, outputs in engine.noted:
        numbers = list(dict.fromkeys(rows[:, 0].astype(int).tolist()))
        assert numbers == sorted(numbers), "within a run the older ones come first"
        assert len(rows) <= MAX_BATCH or len(numbers) == 1, "only one request alone may be more than a batch"
        if not batching:
            assert len(numbers) <= 1
        for number in numbers:
            asked = requests[number]
            assert (asked.width, asked.outputs) == (rows.shape[1], outputs)
            assert not asked.late and not asked.leaves
        # A run of requests without rows says nothing about whose it was.
        oldest += numbers[:1]
    assert oldest == sorted(oldest), "the oldest request that waits decides which group runs next"


def test_a_stream_of_one_group_starves_no_other(loop: ManualLoop) -> None:
    engine = Noting()
    client = Client(loop, batcher(engine, loop, max_batch_size=MAX_BATCH))
    plain = Asked(1, 1, ("sum",), late=False, leaves=False, tick=False)
    for _ in range(3 * MAX_BATCH):
        client.ask(plain)
    other = client.ask(plain._replace(width=2))
    behind = len(client.outcomes) - 1
    for _ in range(4):
        for _ in range(MAX_BATCH):
            client.ask(plain)
        loop.tick()
    assert other.done is None and client.outcomes[behind], "it waited for those before it, and for no other"


def test_a_request_that_fits_no_run_is_not_overtaken_for_ever(loop: ManualLoop) -> None:
    engine = Noting()
    client = Client(loop, batcher(engine, loop, max_batch_size=MAX_BATCH))
    small = Asked(1, 1, ("sum",), late=False, leaves=False, tick=False)
    client.ask(small)
    client.ask(small._replace(rows=MAX_BATCH))
    for _ in range(3):
        for _ in range(MAX_BATCH):
            client.ask(small)
        loop.tick()
    assert client.outcomes[1]


def test_no_more_are_looked_at_than_the_look_ahead(loop: ManualLoop) -> None:
    """A queue of many shapes would otherwise be read from end to end for each run."""
    engine = Noting()
    client = Client(loop, batcher(engine, loop, max_batch_size=64, max_queue=10 * LOOK_AHEAD))
    one = Asked(1, 1, ("sum",), late=False, leaves=False, tick=False)
    client.ask(one)
    for _ in range(LOOK_AHEAD):
        client.ask(one._replace(width=2))
    client.ask(one)
    loop.tick()
    assert [rows.shape for rows, _ in engine.noted] == [(1, 1)]
    loop.run()
    assert all(len(outcomes) == 1 for outcomes in client.outcomes)
    assert sum(rows.shape[0] for rows, _ in engine.noted) == LOOK_AHEAD + 2


def test_the_limit_of_a_manifest_counts_those_that_wait(loop: ManualLoop) -> None:
    client = Client(loop, batcher(FakeEngine(), loop, concurrency=2))
    one = Asked(1, 1, ("sum",), late=False, leaves=False, tick=False)
    before = OBSERVATIONS.read()[obs.REJECTED]
    client.ask(one)
    client.ask(one)
    with pytest.raises(InferenceError, match="2 requests in flight, and its limit is 2 now") as refused:
        client.ask(one)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
    loop.run()
    client.ask(one)
    assert OBSERVATIONS.read()[obs.REJECTED] - before == 1
