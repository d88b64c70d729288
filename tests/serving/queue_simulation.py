"""A version behind its queue in virtual time: who is let in, and how long the others wait."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gateway.serving.concurrency import Limit

MS = 1_000_000
S = 1_000 * MS
MAX_QUEUE = 1024


@dataclass(kw_only=True)
class Queue:
    """Asks the limit and tells it of the runs as `Batcher` does; one run at a time, batches when busy."""

    limit: Limit
    run_ns: Callable[[int, int], int]
    """(now, requests) → what a run of them takes."""
    batch: int = 1
    now_ns: int = 0
    accepted: list[tuple[int, int]] = field(default_factory=list)
    """(arrival, latency)"""
    rejected: list[int] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._queue: deque[tuple[int, Callable[[bool], None]]] = deque()
        self._running = 0
        self._scheduled = False

    def open(self, rate: Callable[[int], float], until_ns: int, seed: int = 1) -> Queue:
        """Requests at random (Poisson), `rate(now)` a second; 0 for a pause of 10 ms."""
        for at in _poisson(rate, until_ns, random.Random(seed)):
            self.at(at, self._arrive)
        return self

    def closed(self, clients: int, until_ns: int) -> Queue:
        """Clients that ask again 100 µs after their answer, whatever it was."""

        def ask() -> None:
            self._arrive(lambda _: self.at(self.now_ns + 100_000, ask) if self.now_ns < until_ns else None)

        for _ in range(clients):
            self.at(0, ask)
        return self

    def at(self, when_ns: int, call: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when_ns, self._number, call))

    def burst(self, when_ns: int, requests: int) -> Queue:
        for _ in range(requests):
            self.at(when_ns, self._arrive)
        return self

    def run(self) -> Queue:
        while self._events:
            self.now_ns, _, call = heapq.heappop(self._events)
            call()
        return self

    def latencies_ms(self, after_ns: int = 0) -> list[float]:
        return sorted(latency / MS for arrival, latency in self.accepted if arrival >= after_ns)

    def _arrive(self, answered: Callable[[bool], Any] = lambda _: None) -> None:
        room = min(MAX_QUEUE, self.limit.in_flight - self._running)
        if len(self._queue) >= room:
            self.rejected.append(self.now_ns)
            answered(False)
            return
        self._queue.append((self.now_ns, answered))
        self._schedule()

    def _schedule(self) -> None:
        # After all that happens at this moment: the end of the tick.
        if self._queue and not self._running and not self._scheduled:
            self._scheduled = True
            self.at(self.now_ns, self._start)

    def _start(self) -> None:
        self._scheduled = False
        taken = [self._queue.popleft() for _ in range(min(self.batch, len(self._queue)))]
        self._running = len(taken)
        started = self.now_ns
        self.limit.took(started, len(taken), len(self._queue), started - taken[0][0])
        self.limits.append(self.limit.in_flight)

        def finish() -> None:
            self._running = 0
            self.limit.ran(self.now_ns - started)
            for arrival, answered in taken:
                self.accepted.append((arrival, self.now_ns - arrival))
                answered(True)
            self._schedule()

        self.at(started + self.run_ns(started, len(taken)), finish)


def _poisson(rate: Callable[[int], float], until_ns: int, draw: random.Random) -> Iterator[int]:
    now = 0
    while now < until_ns:
        per_second = rate(now)
        if per_second:
            now += max(1, int(draw.expovariate(per_second) * S))
            yield now
        else:
            now += 10 * MS
