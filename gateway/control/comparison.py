"""The store read beside what is held here, with the lines of its history that tell one life of it from another."""

from __future__ import annotations

from gateway.control.deliver import Deliverer
from gateway.control.divergence import left_the_line, lifted_since, other_changes
from gateway.control.store import HistoryRecord, Store
from gateway.routing.state import EMPTY, InForce

LINES_COMPARED = 1000
SPARE_LINES = 100
"""Beside those of the revisions between: a minute's refusals at one replica are sixty."""


class Comparison:
    """Whatever comes from the store to the workers comes by this: revisions alone do not tell a deny that was
    lifted from one that was lost in a fail-over, with as many others made since."""

    def __init__(self, store: Store, deliverer: Deliverer) -> None:
        self._store = store
        self._deliverer = deliverer

    async def read(self, *, thorough: bool) -> tuple[InForce | None, set[str] | None]:
        """As `Store.read`, at a time when nothing newer came to be held here: that would look like a loss. And
        which denies were lifted since what is held; None where the history does not say, or nobody asks.

        `thorough`: the store may have lost writes, and gone on past them, since it was looked at last.
        """
        while True:
            held = self._deliverer.newest
            stored = await self._store.read()
            fewer = stored is not None and not held.denies.keys() <= stored.denies.keys()
            lines = await self._lines_since(held, stored) if thorough or fewer else None
            if self._deliverer.newest is held:
                if lines is None:
                    return stored, None
                if left_the_line(held, lines):
                    self._deliverer.divergence.part()
                if other_changes(held, lines):
                    self._deliverer.divergence.part_denies()
                return stored, lifted_since(held, lines)

    async def _lines_since(self, held: InForce, stored: InForce | None) -> list[HistoryRecord] | None:
        if stored is None or held is EMPTY or stored.revision < held.revision:
            return None
        if stored.revision.epoch != held.revision.epoch:
            return await self._store.history(LINES_COMPARED)
        behind = stored.revision.rev - held.revision.rev
        # Refused signals are lines, too, and have no revision of their own.
        return await self._store.history(min(2 * behind + SPARE_LINES, LINES_COMPARED))
