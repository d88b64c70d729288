"""What a run of one version takes, by its size."""

from __future__ import annotations

_SIZES = 64
_GROWTH = 1.5
"""What twice the size is guessed to take before it was ever measured; a measured run replaces the guess."""
_RISE = 2.0


class RunTimes:
    """A moving low for each power of two of a run's size: it falls at once, and no run more than doubles it.

    What disturbs a measurement only ever makes it longer: another process on the core, or in a thread the
    wait for the interpreter's lock. By a mean a tiny model that was disturbed on a busy machine was sent to a
    thread, waited there behind long runs, and looked slow for as long as the loop was busy.
    """

    __slots__ = ("_ns",)

    def __init__(self, size: int, run_ns: int) -> None:
        """`run_ns` is what a run of `size` elements took."""
        self._ns = [0.0] * _SIZES
        """By the power of two; 0 where nothing was measured."""
        self.measured(size, run_ns)

    def expected_ns(self, size: int) -> float:
        """What a run of that many elements is going to take."""
        index = _index(size)
        return self._ns[index] or self._guess(index)

    def measured(self, size: int, took_ns: int) -> None:
        """A run of that many elements took this long."""
        index = _index(size)
        known = self._ns[index]
        if not known or took_ns < known:
            self._ns[index] = float(max(took_ns, 1))
        else:
            self._ns[index] = min(float(took_ns), known * _RISE)

    def _guess(self, index: int) -> float:
        """From the nearest size that was measured, the smaller one first."""
        for smaller in range(index - 1, -1, -1):
            if self._ns[smaller]:
                return self._ns[smaller] * _GROWTH ** (index - smaller)
        return next(known for known in self._ns[index:] if known)


def _index(size: int) -> int:
    return (size - 1).bit_length() if size > 1 else 0
