"""Follows the store: what it says is compared with what is held here, never with what was written."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from enum import StrEnum

import msgspec

from gateway.control.deliver import Deliverer
from gateway.control.events import Events
from gateway.control.operations import Operations
from gateway.control.store import Author, Store, StoreError
from gateway.routing.state import EMPTY, Deny, InForce, StateError, encode_state

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class Verdict(StrEnum):
    """What a state of the store means to a replica that holds another."""

    TAKE = "take"
    """It is newer, or the same with other denies."""
    NOTHING = "nothing"
    FORK = "fork"
    """The same revision with another document: somebody wrote past the compare-and-set."""
    REGRESSED = "regressed"
    """The store lost writes that were in force here."""
    EMPTIED = "emptied"
    """The store has nothing; never "no routes"."""


def judge(held: InForce, stored: InForce | None) -> Verdict:
    """Pure: the table of the control plane's protocol."""
    if stored is None:
        return Verdict.NOTHING if held is EMPTY or not held.state.routes else Verdict.EMPTIED
    if stored.revision < held.revision:
        return Verdict.REGRESSED
    if stored.revision > held.revision:
        return Verdict.TAKE
    if encode_state(stored.state) != encode_state(held.state):
        return Verdict.FORK
    return Verdict.NOTHING if stored.denies.keys() == held.denies.keys() else Verdict.TAKE


_TROUBLE = {
    Verdict.FORK: "the store has another document under revision {held}: the local one is kept",
    Verdict.REGRESSED: "the store went back to revision {stored}: the local revision {held} is kept",
    Verdict.EMPTIED: "the store is empty: the local revision {held} is kept and goes on being served",
}


class Reader:
    """Keeps this replica at the store's state for as long as it runs."""

    def __init__(self, store: Store, deliverer: Deliverer, operations: Operations, events: Events) -> None:
        self._store = store
        self._deliverer = deliverer
        self._operations = operations
        self._events = events
        self.trouble = "the store was not reached yet"
        """Why this replica may be behind, "" where all is well."""
        self.reached = asyncio.Event()
        """Set once the store was read for the first time."""

    @property
    def age_s(self) -> float:
        """Seconds since the store's last sign of life."""
        return time.monotonic() - self._store.heard

    async def run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            try:
                async for signals in self._store.watch():
                    await self.synchronise()
                    pause = FIRST_PAUSE_S
                    for signal in signals:
                        await self._operations.signal(signal)
            except (StoreError, StateError) as error:
                self._note(str(error))
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not a secret
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def synchronise(self) -> None:
        """One comparison with the store, and what follows from it."""
        stored = await self._store.read()
        newest = self._deliverer.newest
        verdict = judge(newest, stored)
        if verdict in _TROUBLE:
            was = stored.revision if stored is not None else None
            self._note(_TROUBLE[verdict].format(held=newest.revision, stored=was))
        else:
            self._note("")
        if stored is not None and verdict is not Verdict.FORK:
            # Not into a fork: it would become the higher revision by that, and be taken.
            stored = await self._publish_denies(stored)
            if verdict is Verdict.TAKE or stored.denies.keys() != newest.denies.keys():
                self._deliverer.offer(stored)
        self.reached.set()

    async def _publish_denies(self, stored: InForce) -> InForce:
        """What was denied here while the store was away, and what the store lost in a fail-over."""
        pending = {
            key: deny
            for key, deny in self._deliverer.newest.denies.items()
            if key not in stored.denies and self._is_missing(deny, stored)
        }
        for key, deny in pending.items():
            author = Author(actor=deny.actor, reason=deny.reason, op_id=f"{deny.op_id}|{key}")
            after = msgspec.structs.replace(stored, denies={**stored.denies, key: deny})
            await self._operations.commit_deny({key: deny.version}, author, stored, after)
        if not pending:
            return stored
        log.info("published %d denies that the store did not have", len(pending))
        return await self._store.read() or stored

    def _is_missing(self, deny: Deny, stored: InForce) -> bool:
        """Whether the store never had this deny, or lost it; else somebody has lifted it there."""
        same_life = self._deliverer.newest.revision.epoch == stored.revision.epoch
        return deny.rev == 0 or (same_life and deny.rev > stored.revision.rev)

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.warning("%s", trouble)
            self._events.publish("control-plane", trouble=trouble)
