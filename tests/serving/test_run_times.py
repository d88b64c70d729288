from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.run_times import RunTimes

SIZES = st.integers(0, 2**40)
TIMES = st.integers(0, 10**12)


def test_each_size_has_its_own() -> None:
    times = RunTimes(256, 74_000)
    times.measured(256 * 64, 1_700_000)
    assert times.expected_ns(256) == 74_000
    assert times.expected_ns(256 * 64) == times.expected_ns(256 * 40) == 1_700_000


def test_a_size_that_was_never_run_is_guessed_between_its_neighbours() -> None:
    times = RunTimes(16, 7_000)
    assert 7_000 < times.expected_ns(64) < 4 * 7_000, "a row of a batch is cheaper than a row alone"
    assert times.expected_ns(1) == 7_000
    times.measured(64, 9_000)
    assert times.expected_ns(64) == 9_000


def test_one_disturbed_run_does_not_make_a_version_slow() -> None:
    times = RunTimes(16, 7_000)
    times.measured(16, 50_000_000)
    assert times.expected_ns(16) == 14_000
    times.measured(16, 7_100)
    assert times.expected_ns(16) == 7_100


def test_a_version_that_became_slow_is_known_after_a_few_runs() -> None:
    times = RunTimes(16, 7_000)
    for _ in range(5):
        times.measured(16, 8_000_000)
    assert times.expected_ns(16) > 200_000


@given(st.lists(st.tuples(SIZES, TIMES), max_size=20), SIZES)
def test_there_is_always_an_answer(measured: list[tuple[int, int]], size: int) -> None:
    times = RunTimes(1, 0)
    for of_size, took_ns in measured:
        times.measured(of_size, took_ns)
    assert times.expected_ns(size) > 0
