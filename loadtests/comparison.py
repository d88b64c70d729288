"""What a load test learns about each version: pure counts that add up, and the table made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

NOBODY = "-"
_LATENCY_DIGITS = 3


class Outcome(StrEnum):
    """What came of one request."""

    RIGHT = "right"
    """The answer is the label."""
    WRONG = "wrong"
    """An answer, and another one than the label: the model's failure, not the gateway's."""
    ERROR = "error"
    """No answer: an error status, a time-out, a lost connection, a body without a label."""


class Served(NamedTuple):
    """Who answered, from the response's `turnout-…` headers; `-` where nobody said."""

    variant: str = NOBODY
    version: str = NOBODY
    revision: str = NOBODY

    @classmethod
    def from_headers(cls, headers: Mapping[str, str] | None) -> Served:
        if headers is None:
            return cls()
        return cls(*(headers.get(f"turnout-{part}") or NOBODY for part in cls._fields))

    def name(self, route: str) -> str:
        """The name in locust's own statistics: `digits stable (v1)`."""
        if self.version == NOBODY:
            return f"{route} (no version)"
        return f"{route} {self.variant} (v{self.version})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One version of one variant. Latencies and accuracy are over answers; None where there were none."""

    version: str
    variant: str
    requests: int
    share_percent: float
    errors: int
    accuracy_percent: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    revisions: tuple[str, ...]


@dataclass(slots=True)
class _Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    # Latency in µs, of three significant digits → how often: at most 900 keys for a factor of ten.
    latencies_us: Counter[int] = field(default_factory=Counter)
    revisions: set[str] = field(default_factory=set)


class Comparison:
    """Counts by (variant, version).

    >>> comparison = Comparison()
    >>> comparison.record(Served("stable", "1", "1.7"), Outcome.RIGHT, latency_ms=2.0)
    >>> [(row.version, row.share_percent, row.p50_ms) for row in comparison.rows()]
    [('1', 100.0, 2.0)]
    """

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def record(self, served: Served, outcome: Outcome, *, latency_ms: float) -> None:
        tally = self._tally(served.variant, served.version)
        tally.outcomes[outcome] += 1
        if served.revision != NOBODY:
            tally.revisions.add(served.revision)
        # An error may be instant or a time-out; either would say nothing about the version's speed.
        if outcome is not Outcome.ERROR:
            tally.latencies_us[_rounded(latency_ms * 1000)] += 1

    def drain(self) -> list[list[Any]]:
        """What was counted since the last time, as plain lists: a worker's report to its master."""
        taken, self._tallies = self._tallies, {}
        return [
            [*key, list(t.outcomes.items()), list(t.latencies_us.items()), sorted(t.revisions)]
            for key, t in taken.items()
        ]

    def merge(self, drained: Iterable[Iterable[Any]]) -> None:
        """Adds what another comparison drained."""
        for variant, version, outcomes, latencies_us, revisions in drained:
            tally = self._tally(variant, version)
            tally.outcomes.update(dict(outcomes))
            tally.latencies_us.update(dict(latencies_us))
            tally.revisions.update(revisions)

    def clear(self) -> None:
        self._tallies = {}

    def rows(self) -> list[Row]:
        """The busiest first."""
        total = sum(tally.outcomes.total() for tally in self._tallies.values())
        rows = [_row(*key, tally, total) for key, tally in self._tallies.items()]
        return sorted(rows, key=lambda row: (-row.requests, row.variant, row.version))

    def _tally(self, variant: str, version: str) -> _Tally:
        return self._tallies.setdefault((variant, version), _Tally())


def _row(variant: str, version: str, tally: _Tally, total: int) -> Row:
    requests = tally.outcomes.total()
    answers = requests - tally.outcomes[Outcome.ERROR]
    p50, p95, p99 = (_percentile_ms(tally.latencies_us, part) for part in (50, 95, 99))
    return Row(
        version=version,
        variant=variant,
        requests=requests,
        share_percent=100 * requests / total,
        errors=tally.outcomes[Outcome.ERROR],
        accuracy_percent=100 * tally.outcomes[Outcome.RIGHT] / answers if answers else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        revisions=tuple(sorted(tally.revisions)),
    )


def _rounded(value: float) -> int:
    whole = max(1, round(value))
    return round(whole, _LATENCY_DIGITS - len(str(whole)))


def _percentile_ms(latencies_us: Counter[int], percent: int) -> float | None:
    """Nearest rank: the least latency that at least so many per cent of the answers kept to."""
    rank = math.ceil(latencies_us.total() * percent / 100)
    for latency_us, count in sorted(latencies_us.items()):
        rank -= count
        if rank <= 0:
            return latency_us / 1000
    return None
