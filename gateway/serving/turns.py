"""Whose run is next on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

TICK_BUDGET_NS = 1_000_000
"""Runs of one tick of the loop. What is ready beyond it waits for the next tick: sockets are read and written
between, so that many versions together hold up a health check no longer than this and one run."""
MIXED_NS = 100_000_000
"""How long it is remembered that versions of more than one kin had turns."""


class Turns:
    """The versions of one worker that are ready to run, first come, first served, within a budget a tick."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._loop = loop
        self._clock_ns = clock_ns
        self._ready: deque[Callable[[], None]] = deque()
        self._before: list[Callable[[], None]] = []
        self._kin: object = None
        self._mixed_until_ns = 0
        self._scheduled = False

    def add(self, run: Callable[[], None], kin: object = None) -> None:
        """Calls `run` once, at the end of this tick or a later one. It may add itself again.

        `kin` is equal for those that need not be protected from one another: see `is_among_kin`.
        """
        if kin != self._kin:
            self._kin = kin
            self._mixed_until_ns = self._clock_ns() + MIXED_NS
        self._ready.append(run)
        self._schedule()

    def is_among_kin(self) -> bool:
        """Whether only the kin of the latest have been here of late: what one does holds up no others."""
        return self._clock_ns() > self._mixed_until_ns

    @property
    def busy(self) -> bool:
        """Whether runs wait for their turn."""
        return bool(self._ready)

    def before(self, prepare: Callable[[], None]) -> None:
        """Calls `prepare` once, at the end of this tick and ahead of all runs: it may add some."""
        self._before.append(prepare)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        ready = self._ready
        if self._before:
            before, self._before = self._before, []
            for prepare in before:
                try:
                    prepare()
                except Exception:
                    log.exception("requests could not be queued")
        try:
            if len(ready) == 1:
                ready.popleft()()  # the common case asks no clock
            elif ready:
                until_ns = self._clock_ns() + TICK_BUDGET_NS
                while ready:
                    ready.popleft()()
                    if self._clock_ns() >= until_ns:
                        break
        finally:
            self._scheduled = bool(ready or self._before)
            if self._scheduled:
                self._loop.call_soon(self._tick)
