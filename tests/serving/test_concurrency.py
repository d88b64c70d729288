"""The laws of the limiter, on a simulated version in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.concurrency import BURST_RUNS, HELD_RUNS, AdaptiveLimit, FixedLimit
from tests.serving.queue_simulation import MAX_QUEUE, MS, Queue, S

SLOW_NS = 8 * MS
CAPACITY = S / SLOW_NS


def unbatched(run_ns: int = SLOW_NS) -> Queue:
    limit = AdaptiveLimit(batch=1, ceiling=MAX_QUEUE + 1, run_ns=run_ns)
    return Queue(limit=limit, run_ns=lambda now, requests: run_ns)


def batched(run_ns: Callable[[int, int], int]) -> Queue:
    limit = AdaptiveLimit(batch=64, ceiling=MAX_QUEUE + 64, run_ns=run_ns(0, 1))
    return Queue(limit=limit, run_ns=run_ns, batch=64)


def tiny(_: int, rows: int) -> int:
    return 7_000 + 100 * rows


def medium(_: int, rows: int) -> int:
    return 50_000 + 25_000 * rows


@pytest.mark.parametrize("times", [1.3, 3, 10, 100])
def test_an_overloaded_version_answers_within_a_few_runs_and_loses_no_throughput(times: float) -> None:
    queue = unbatched().open(lambda _: CAPACITY * times, 20 * S).run()
    assert len(queue.accepted) >= 0.95 * 20 * CAPACITY
    settled = queue.latencies_ms(after_ns=5 * S)
    if times >= 3:
        assert settled[-1] <= 9 * SLOW_NS / MS
    # A slight overload comes and goes: the queue empties by chance, and is a burst's again.
    assert settled[len(settled) // 2] <= 16 * SLOW_NS / MS
    # Before it is known as an overload, it is a burst: what that may take bounds it.
    assert queue.latencies_ms()[-1] <= 520


def test_overload_of_a_version_that_batches() -> None:
    def run_ns(_: int, rows: int) -> int:
        return 8 * MS + rows * MS // 4

    full = 64 * S / run_ns(0, 64)
    queue = batched(run_ns).open(lambda _: 3 * full, 10 * S).run()
    assert len(queue.accepted) >= 0.95 * 10 * full
    assert queue.latencies_ms(after_ns=5 * S)[-1] <= 7 * run_ns(0, 64) / MS


@pytest.mark.parametrize("clients", [1, 64, 256, 1000])
@pytest.mark.parametrize("run_ns", [tiny, medium])
def test_a_fast_version_that_keeps_up_refuses_nobody(clients: int, run_ns: Callable[[int, int], int]) -> None:
    queue = batched(run_ns).closed(clients, S // 10).run()
    assert queue.accepted and not queue.rejected


def test_a_few_clients_of_a_slow_version_are_no_overload() -> None:
    queue = unbatched().closed(16, 10 * S).run()
    assert len(queue.accepted) >= 9.9 * CAPACITY and not queue.rejected


@pytest.mark.parametrize("seed", range(5))
def test_random_arrivals_below_the_capacity_are_no_overload(seed: int) -> None:
    queue = unbatched().open(lambda _: 0.85 * CAPACITY, 30 * S, seed).run()
    assert not queue.rejected


def test_bursts_after_idleness_are_taken_whole() -> None:
    queue = unbatched()
    for second in range(0, 20, 2):
        queue.burst(second * S, 60)
    queue.run()
    assert len(queue.accepted) == 600


def test_a_flood_fills_the_queue_no_further_than_a_burst() -> None:
    queue = unbatched().burst(S, 5000).run()
    assert 60 <= len(queue.accepted) <= 64


def test_a_version_that_becomes_fast_again_is_open_again_within_a_second() -> None:
    def run_ns(now_ns: int, _: int) -> int:
        return 80 * MS if now_ns < 10 * S else MS

    queue = unbatched()
    queue.run_ns = run_ns
    queue.open(lambda _: 3 * CAPACITY, 20 * S).run()
    assert any(when < 10 * S for when in queue.rejected)
    assert max(queue.rejected) <= 11 * S


def test_a_version_that_becomes_slow_is_limited_within_two_seconds_of_its_runs() -> None:
    queue = unbatched(MS)
    queue.run_ns = lambda now_ns, _: MS if now_ns < 10 * S else SLOW_NS
    queue.open(lambda _: 3 * CAPACITY, 20 * S).run()
    assert min(queue.rejected) > 10 * S
    settled = queue.latencies_ms(after_ns=13 * S)
    assert settled[-1] <= 9 * SLOW_NS / MS


def test_after_an_overload_is_over_a_burst_is_welcome_again() -> None:
    queue = unbatched().open(lambda now: 3 * CAPACITY if now < 5 * S else 0, 5 * S)
    queue.burst(7 * S, 60)
    queue.run()
    assert queue.rejected and max(queue.rejected) < 6 * S


@given(
    batch=st.integers(1, 64),
    max_queue=st.integers(1, 5000),
    first_ns=st.integers(0, 10**12),
    runs=st.lists(
        st.tuples(st.integers(1, 64), st.integers(0, 5000), st.integers(0, 10**12), st.integers(0, 10**12)),
        max_size=50,
    ),
)
def test_whatever_happens_a_few_runs_may_be_in_flight(
    batch: int, max_queue: int, first_ns: int, runs: list[tuple[int, int, int, int]]
) -> None:
    ceiling = max_queue + batch
    limit = AdaptiveLimit(batch=batch, ceiling=ceiling, run_ns=first_ns)
    now = 0
    for requests, left, waited_ns, took_ns in runs:
        limit.took(now, min(requests, batch), left, waited_ns)
        now += took_ns
        limit.ran(took_ns)
        assert min(1 + HELD_RUNS, ceiling) <= limit.in_flight <= ceiling
        if left == 0:
            assert not limit.overloaded


def test_a_limit_of_the_manifest_stays_as_it_is() -> None:
    limit = FixedLimit(3)
    limit.took(0, 1, 1000, 10**12)
    limit.ran(10**12)
    assert limit.in_flight == 3


def test_a_slow_version_starts_with_a_bursts_worth() -> None:
    limit = AdaptiveLimit(batch=1, ceiling=1025, run_ns=S)
    assert limit.in_flight == 1 + BURST_RUNS
