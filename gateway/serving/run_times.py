"""What a run of one version takes, by its size."""

from __future__ import annotations

_SIZES = 64
_GROWTH = 1.5
"""What twice the size is guessed to take before it was ever measured; a measured run replaces the guess."""
_UP, _DOWN = 0.1, 0.5


class RunTimes:
    """Moving averages, one for each power of two of a run's size.

    What disturbs a measurement only ever makes it longer: another process on the core, or in a thread the
    wait for the interpreter's lock. So of two runs in a row the shorter one counts, and an average falls faster
    than it rises: a tiny model that was once disturbed would otherwise be sent to a thread, and look slow there
    for as long as the loop is busy.
    """

    __slots__ = ("_last", "_ns")

    def __init__(self, size: int, run_ns: int) -> None:
        """`run_ns` is what a run of `size` elements took."""
        self._ns = [0.0] * _SIZES
        """By the power of two; 0 where nothing was measured."""
        self._last = [0] * _SIZES
        self._ns[_index(size)] = float(max(run_ns, 1))

    def expected_ns(self, size: int) -> float:
        """What a run of that many elements is going to take."""
        index = _index(size)
        return self._ns[index] or self._guess(index)

    def measured(self, size: int, took_ns: int) -> None:
        """A run of that many elements took this long."""
        index = _index(size)
        average = self._ns[index]
        shorter = min(took_ns, self._last[index])
        self._last[index] = took_ns
        if not average:
            self._ns[index] = float(max(took_ns, 1))
        elif shorter > average:
            self._ns[index] = average + (shorter - average) * _UP
        elif took_ns < average:
            self._ns[index] = average + (took_ns - average) * _DOWN

    def _guess(self, index: int) -> float:
        """From the nearest size that was measured, the smaller one first."""
        for smaller in range(index - 1, -1, -1):
            if self._ns[smaller]:
                return self._ns[smaller] * _GROWTH ** (index - smaller)
        return next(known for known in self._ns[index:] if known)


def _index(size: int) -> int:
    return (size - 1).bit_length() if size > 1 else 0
