"""What alternating slices say."""

from __future__ import annotations

from itertools import pairwise

import pytest

from loadtests.bench.slices import Slice, alternate, ratio, spread


def slice_of(per_s: float, p50_us: float = 1.0) -> Slice:
    return Slice(per_s=per_s, p50_us=p50_us, p99_us=2.0, cpu_us=3.0, busy=1.0)


def test_servers_take_turns_and_nobody_always_follows_the_same() -> None:
    order: list[str] = []

    def measure(name: str) -> Slice:
        order.append(name)
        return slice_of(len(order))

    taken = alternate(["a", "b", "c"], 3, measure)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {name: len(slices) for name, slices in taken.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(one != other for one, other in pairwise(order[:3]))


@pytest.mark.parametrize(
    "values, value, noise",
    [
        ([10.0], 10.0, 0.0),
        ([9.0, 10.0, 11.0], 10.0, 0.1),
        ([10.0, 10.0, 10.0, 1000.0], 10.0, 0.0),  # one slice that somebody disturbed is no noise
        ([8.0, 10.0, 12.0, 14.0], 11.0, 2 / 11),
        ([0.0, 0.0], 0.0, 0.0),
    ],
)
def test_the_median_and_the_median_distance_from_it(values: list[float], value: float, noise: float) -> None:
    measured = spread(values)
    assert (measured.value, measured.noise) == (value, pytest.approx(noise))


def test_a_ratio_is_taken_within_a_round() -> None:
    # The machine halves its speed in the second round; the ratio does not notice, one of medians would.
    ours = [slice_of(100), slice_of(50), slice_of(100)]
    theirs = [slice_of(10), slice_of(5), slice_of(5)]
    assert ratio(ours, theirs).value == 10
    assert ratio([slice_of(1, 30)], [slice_of(1, 20)], lambda one: one.p50_us).value == 1.5


def test_rounds_must_belong_together() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio([slice_of(1), slice_of(1)], [slice_of(1)])
