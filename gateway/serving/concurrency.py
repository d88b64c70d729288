"""How many requests of one version may be in flight. Pure: times come in, a limit comes out.

A batch takes as long as it takes, and a tick's requests wait for one another by design. So a longer latency
than the lowest ever seen, by which Netflix's Vegas and Envoy's gradient controller judge, is no overload here.
Two other things are, and both are known on this side of the queue: that the queue never empties, and how long
its oldest request has waited (as in CoDel, RFC 8289). Only then is the limit set, to what the version works
off in a few runs: Little's law with measured runs, the place where Vegas and the gradient arrive by steps.
See docs/decisions/009.
"""

from __future__ import annotations

from typing import Protocol

HELD_NS, HELD_RUNS = 50_000_000, 4
"""What an overloaded version's queue is held to, whichever is longer."""
OVERLOAD_NS, OVERLOAD_RUNS = 250_000_000, 8
"""A wait beyond both is overload, when the queue has stood for longer than a burst may."""
BURST_NS, BURST_RUNS = 500_000_000, 16
"""What may arrive at once is what is worked off in this time: its clients wait for less than `Retry-After`."""
_SMOOTHING = 0.2


class Limit(Protocol):
    """What a batcher asks before it queues a request, and tells of its runs."""

    in_flight: int
    """Requests that may be queued and running, now."""

    def took(self, now_ns: int, requests: int, left: int, waited_ns: int) -> None:
        """A run begins with this many requests, of which the oldest waited so long; so many are left."""

    def ran(self, took_ns: int) -> None:
        """It is over, this long after it began, its wait for a thread included."""


class FixedLimit:
    """As many as the manifest says."""

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight

    def took(self, now_ns: int, requests: int, left: int, waited_ns: int) -> None:
        """What happens does not move it."""

    def ran(self, took_ns: int) -> None:
        """What happens does not move it."""


class AdaptiveLimit:
    """A burst's worth while the version keeps up, a few runs' worth while it does not.

    >>> limit = AdaptiveLimit(batch=1, ceiling=1025, run_ns=8_000_000)
    >>> limit.in_flight
    63
    """

    __slots__ = ("_batch", "_calm_ns", "_ceiling", "_period_ns", "_since_ns", "in_flight", "overloaded")

    def __init__(self, *, batch: int, ceiling: int, run_ns: int) -> None:
        """`batch`: requests that fit into a run. `ceiling`: what the limit never exceeds. `run_ns`: one run."""
        self._batch = float(batch)
        self._ceiling = ceiling
        self._period_ns = float(max(run_ns, 1))
        self._calm_ns = BURST_NS * batch / ceiling
        """With shorter runs a burst is as large as the ceiling: the common case has nothing to compute."""
        self._since_ns: int | None = None
        """Since when the queue has not been empty."""
        self.overloaded = False
        self._set()

    def took(self, now_ns: int, requests: int, left: int, waited_ns: int) -> None:
        """See `Limit.took`. `now_ns` is any monotonic clock's."""
        if left == 0:
            self._since_ns = None
            if self.overloaded:
                self.overloaded = False
                self._set()
            return
        # A run that leaves some behind was as large as it can be with these requests.
        self._batch = max(float(requests), self._batch + (requests - self._batch) * _SMOOTHING)
        if self._since_ns is None:
            self._since_ns = now_ns
        period = self._period_ns
        self.overloaded = self.overloaded or (
            waited_ns > max(OVERLOAD_NS, OVERLOAD_RUNS * period)
            and now_ns - self._since_ns > max(BURST_NS, BURST_RUNS * period)
        )

    def ran(self, took_ns: int) -> None:
        """See `Limit.ran`."""
        period = self._period_ns + (took_ns - self._period_ns) * _SMOOTHING
        self._period_ns = period if period > 1.0 else 1.0
        if self.overloaded or self.in_flight != self._ceiling or period > self._calm_ns:
            self._set()

    def _set(self) -> None:
        period = self._period_ns
        time_ns, least = (HELD_NS, HELD_RUNS) if self.overloaded else (BURST_NS, BURST_RUNS)
        # The run under way, and those that the queue may hold.
        self.in_flight = min(int(self._batch * (1 + max(time_ns / period, least))), self._ceiling)
