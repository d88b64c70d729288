"""When a refusal leaves a line."""

from __future__ import annotations

import pytest

from gateway.control.refusals import LINES, Refusals


@pytest.mark.parametrize(
    ("times", "lines", "told"),
    [
        # (times of refusals), lines that were left, and how many they say were left out
        ([0.0], 1, 0),
        ([0.0] * LINES, LINES, 0),
        ([0.0] * (LINES + 1), LINES, 0),
        ([0.0] * 11_000, LINES, 0),
        ([0.0] * 11_000 + [59.99], LINES, 0),
        ([0.0] * 11_000 + [60.0], LINES + 1, 11_000 - LINES),
        ([0.0] * 100 + [60.0] * 100, 2 * LINES, 100 - LINES),
        # Any minute, not each: none at the end of one and at the beginning of the next.
        ([50.0] * LINES + [61.0] * LINES, LINES, 0),
        ([50.0] * LINES + [61.0] * LINES + [110.0], LINES + 1, LINES),
        # One a second goes on for ever.
        ([float(second) for second in range(600)], 600, 0),
        ([second / 2 for second in range(241)], 121, 120),
    ],
)
def test_how_many_leave_a_line(times: list[float], lines: int, told: int) -> None:
    refusals = Refusals()
    answers = [answer for time in times if (answer := refusals.admit(time)) is not None]
    assert (len(answers), sum(answers)) == (lines, told)
