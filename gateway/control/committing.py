"""What every change has in common: what it begins with, and how it comes into force here once it is committed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import msgspec

from gateway.control.carry_over import CarryOver
from gateway.control.comparison import Comparison
from gateway.control.deliver import Deliverer
from gateway.control.divergence import DIVERGED, explain
from gateway.control.member import is_live
from gateway.control.store import (
    Author,
    Changes,
    Committed,
    Conflict,
    Store,
    StoreBehind,
    StoreDiverged,
    StoreUnavailable,
)
from gateway.routing.state import EMPTY, DenyKey, InForce, Revision, StateError

RING_GRACE_S = 2.0
"""How long a change waits for this replica's workers before it is reported; a worker that hangs, or a long
answer of a denied version, holds up nobody any longer. Who wants them all polls the acknowledgements."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a change. `published` is false while only this replica knows of it."""

    revision: str
    published: bool = True
    changed: bool = True
    message: str = ""
    durable: bool | None = None
    """False: in force, but a loss of the store's primary may undo it. None: not known, or nothing was written."""


class Committing:
    """Between the store and this replica's workers."""

    def __init__(self, store: Store, deliverer: Deliverer) -> None:
        self._store = store
        self._deliverer = deliverer
        self._comparison = Comparison(store, deliverer)
        self._carry_over = CarryOver(store, deliverer)

    async def current(self) -> InForce:
        """What a change begins with. Raises `StoreDiverged`: a change must not decide by the way who is right."""
        stored = await self._store.read()
        if await self._carry_over.give_back(stored):
            stored = await self._store.read()
        held = self._deliverer.newest
        verdict = self._deliverer.divergence.judge(held, stored)
        if verdict in DIVERGED:
            raise StoreDiverged(explain(verdict, held, stored))
        if stored is not None:
            return stored
        others = [member for member in await self._store.members() if member.epoch and is_live(member)]
        if others:
            raise StoreDiverged(
                f"the store is empty, and {others[0].replica} holds revision {others[0].epoch}.{others[0].rev}: "
                "give it to the store with turnout restore there"
            )
        return EMPTY

    async def deny(self, denies: Mapping[DenyKey, str], author: Author, changes: Changes) -> Committed:
        """As `Store.deny`, also where it is the first change after a fail-over that lost others."""
        try:
            return await self._store.deny(denies, author, changes)
        except StoreBehind:
            if not await self._carry_over.give_back(await self._store.read()):
                raise
        return await self._store.deny(denies, author, changes)

    async def deliver(self, revision: Revision) -> None:
        """Returns when the revision is in force here, or was refused, or takes longer than anybody waits."""
        await self.offer(revision)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RING_GRACE_S):
                await self._deliverer.wait_for(revision)

    async def offer(self, revision: Revision) -> None:
        """What the store has with this revision, to this replica's workers."""
        # It is committed: where it cannot be read back now, the reader will.
        with contextlib.suppress(StoreUnavailable, StateError):
            held = self._deliverer.newest
            stored, lifted = await self._comparison.read(thorough=True)
            # Where something newer came to be held meanwhile, this would look like a loss.
            newer = stored is not None and stored.revision >= max(revision, held.revision)
            if newer and self._deliverer.newest.revision <= held.revision:
                self._deliverer.offer(stored, lifted)


def expect_revision(held: InForce, expect: Revision | None) -> None:
    """Raises `Conflict` where something else is in force than what was looked at."""
    if expect is not None and expect != held.revision:
        raise Conflict(held.revision)
