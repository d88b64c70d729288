"""The counts of all workers, dead and alive, by label."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.telemetry.observations import LIMIT, Counts, Labels, ObservedVersion, at_rest, merge


class Ledger:
    """Adds up what the workers counted. A dead worker's counts are kept as long as its versions are served."""

    def __init__(self, living: Callable[[], Iterable[ObservedVersion]]) -> None:
        self._living = living
        self._buried: dict[Labels, Counts] = {}

    def bury(self, observed: Iterable[ObservedVersion]) -> None:
        """A worker is gone; this is all that it counted."""
        for labels, _, counts in observed:
            self._buried[labels] = merge(self._buried.get(labels), at_rest(counts))

    def totals(self, served: Callable[[Labels], bool]) -> dict[Labels, Counts]:
        """The sums of every series that a worker has live, or that `served` says is still declared."""
        totals = dict(self._buried)
        live: set[Labels] = set()
        for labels, is_live, counts in self._living():
            if not is_live:
                # What is still in flight there ends; no limit holds for what is let in no more.
                counts[LIMIT] = 0
            totals[labels] = merge(totals.get(labels), counts)
            if is_live:
                live.add(labels)
        gone = [labels for labels in totals if labels not in live and not served(labels)]
        for labels in gone:
            # A version that comes back starts a new series; Prometheus takes it for a reset counter.
            self._buried.pop(labels, None)
            del totals[labels]
        return totals
