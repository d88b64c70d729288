"""Tells the store, again and again, that this replica lives and what it has applied."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from gateway.control.events import Events
from gateway.control.store import Member, Store, StoreUnavailable
from gateway.control.weights import WeightsCache
from gateway.node.fetched import Fetched
from gateway.node.flip_times import FlipTimes
from gateway.routing.state import InForce

REPORT_PERIOD_S = 2.0
"""How often a replica says in the store that it lives and what it has applied."""


class Reports:
    """An acknowledgement as soon as something was applied, and a sign of life in between."""

    def __init__(
        self,
        store: Store,
        held: Callable[[], InForce],
        member: Callable[[], Member],
        flips: FlipTimes,
        events: Events,
        weights: WeightsCache,
        fetched: Fetched,
    ) -> None:
        self._store = store
        self._held = held
        self._member = member
        self._flips = flips
        self._events = events
        self._weights = weights
        self._fetched = fetched
        self._due = asyncio.Event()

    def due(self) -> None:
        """Something has changed that the others should hear of at once."""
        self._due.set()

    async def run(self) -> None:
        watcher = asyncio.create_task(self._watch_applied())
        try:
            while True:
                self._due.clear()
                with contextlib.suppress(StoreUnavailable):
                    held, member = self._held(), self._member()
                    self._flips.note(held, member, await self._store.report(member))
                self._fetched.cache_bytes = sum(entry.size_bytes for entry in await self._weights.list())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REPORT_PERIOD_S):
                        await self._due.wait()
        finally:
            watcher.cancel()

    async def _watch_applied(self) -> None:
        with self._events.subscribe() as events:
            while True:
                event = await events.get()
                if event["kind"] in ("applied", "refused"):
                    self.due()
