"""Whether a worker is ready: one truth for the health calls of all protocols."""

from __future__ import annotations

import asyncio

from gateway.serving.live import Live


class Readiness:
    """Whether this worker wants new connections."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.draining = False
        self.changed = asyncio.Event()
        """Set at the next announcement, and another one is made then: take it before you look."""

    @property
    def ready(self) -> bool:
        return not self.draining and self._live.snapshot.held.revision.rev > 0

    def drain(self) -> None:
        """Unready from now on."""
        self.draining = True
        self.announce()

    def announce(self) -> None:
        """Wakes those who wait for a change."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
