"""Alternating slices, and what they say: medians, the noise around them, and ratios within a round.

The machine's speed drifts, and other work comes and goes. So nobody's slices stand together, and a ratio is
taken between neighbours in time: of one round, then the median over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One server under load for a second or so."""

    per_s: float
    """Requests a second."""
    p50_us: float
    p99_us: float
    cpu_us: float
    """CPU time of the server's processes for one request."""
    busy: float
    """The same over the time that passed: 1.0 is a whole core."""
    others: float = 0.0
    """The share of the server's core that went to processes that are not of this bench, or to other machines."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median and the median distance from it, as a share of it: half of all slices lie within."""

    value: float
    noise: float


def alternate(subjects: Sequence[T], rounds: int, measure: Callable[[T], Slice]) -> dict[T, list[Slice]]:
    """Each subject once a round; each round begins with another, so that nobody always follows the same."""
    taken: dict[T, list[Slice]] = {subject: [] for subject in subjects}
    for number in range(rounds):
        first = number % len(subjects)
        for subject in (*subjects[first:], *subjects[:first]):
            taken[subject].append(measure(subject))
    return taken


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    middle = median(values)
    distance = median(abs(value - middle) for value in values)
    return Spread(value=middle, noise=distance / middle if middle else 0.0)


def ratio(
    ours: Sequence[Slice], theirs: Sequence[Slice], of: Callable[[Slice], float] = lambda s: s.per_s
) -> Spread:
    """Ours over theirs, round by round."""
    return spread([of(our) / of(their) for our, their in zip(ours, theirs, strict=True)])
