"""How many refusals leave a line: whoever may only ask must not be able to push all else out of the history."""

from __future__ import annotations

from collections import deque

LINES = 60
"""Of refusals, by one replica in `WINDOW_S`: a history of 10,000 lines lasts for hours of them."""
WINDOW_S = 60.0


class Refusals:
    """At most `LINES` in any `WINDOW_S`; those beyond are counted.

    >>> refusals = Refusals()
    >>> {refusals.admit(0.0) for _ in range(60)}
    {0}
    >>> refusals.admit(59.9), refusals.admit(60.0), refusals.admit(60.0)
    (None, 1, 0)
    """

    def __init__(self) -> None:
        self._lines: deque[float] = deque(maxlen=LINES)
        self._left_out = 0

    def admit(self, now_s: float) -> int | None:
        """How many were left out since the last line; None where this one is, too. `now_s` never goes back."""
        if len(self._lines) == LINES and now_s - self._lines[0] < WINDOW_S:
            self._left_out += 1
            return None
        self._lines.append(now_s)
        left_out, self._left_out = self._left_out, 0
        return left_out
