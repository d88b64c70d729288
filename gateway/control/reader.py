"""Follows the store: what it says is compared with what is held here, never with what was written."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress

import msgspec

from gateway.control.carry_over import CarryOver
from gateway.control.comparison import Comparison
from gateway.control.deliver import Deliverer
from gateway.control.divergence import Finding, Verdict, explain
from gateway.control.events import Events
from gateway.control.operations import Operations
from gateway.control.store import Author, Signal, Store, StoreError, StoreRefused
from gateway.control.troubles import REFUSALS, Trouble, Troubles
from gateway.routing.state import DamagedState, Deny, DenyKey, InForce, Revision, StateError

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

_KINDS = {
    Verdict.FORK: Trouble.FORK,
    Verdict.REGRESSED: Trouble.REGRESSED,
    Verdict.EMPTIED: Trouble.EMPTIED,
}


class Reader:
    """Keeps this replica at the store's state for as long as it runs."""

    def __init__(self, store: Store, deliverer: Deliverer, operations: Operations, events: Events) -> None:
        self._store = store
        self._deliverer = deliverer
        self._comparison = Comparison(store, deliverer)
        self._carry_over = CarryOver(store, deliverer)
        self._operations = operations
        self._events = events
        self.troubles = Troubles(self._tell)
        self.troubles.expect(Trouble.UNREACHABLE, "the store was not reached yet")
        self._reconnected = True
        self.reached = asyncio.Event()
        """Set once the store was read for the first time."""

    @property
    def trouble(self) -> str:
        """Why this replica may be behind, "" where all is well."""
        return "; ".join(self.troubles.texts)

    @property
    def refusal(self) -> str:
        """Why a state of the store is not taken here, "" where it is."""
        return self.troubles.first(REFUSALS)

    @property
    def age_s(self) -> float:
        """Seconds since the store's last sign of life."""
        return time.monotonic() - self._store.heard

    async def run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            self._reconnected = True
            try:
                # Closed here and now: left to the collector, its connection would stay open for a while.
                async with aclosing(self._store.watch()) as watch:
                    async for signals in watch:
                        await self.synchronise()
                        self.troubles.end(Trouble.UNWATCHED)
                        pause = FIRST_PAUSE_S
                        await self._obey(signals)
            except StoreError as error:
                await self._unwatched(error)
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not a secret
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def synchronise(self) -> None:
        """One comparison with the store, and what follows from it. Raises `StoreUnavailable`."""
        try:
            stored, lifted = await self._comparison.read(thorough=self._reconnected)
            if await self._carry_over.give_back(stored):
                stored, lifted = await self._comparison.read(thorough=True)
        except StateError as error:
            self._heard()
            await self._keep_out(error)
            return
        self._reconnected = False
        self._heard()
        self.troubles.end(Trouble.DAMAGED)
        held = self._deliverer.newest
        finding = self._deliverer.offer(stored, lifted)
        await self._note(finding, held, stored)
        if stored is not None and finding.verdict is not Verdict.FORK:
            # Not into a fork: it would become the higher revision by that, and be taken elsewhere.
            await self._publish(finding.lost, stored)
        self.reached.set()

    async def _unwatched(self, error: StoreError) -> None:
        """The watch ended. Where only the streams are at fault, the state is looked at all the same."""
        unreachable = error
        if isinstance(error, StoreRefused):
            try:
                await self.synchronise()
            except StoreError as unreadable:
                unreachable = unreadable
            else:
                self.troubles.begin(Trouble.UNWATCHED, f"{error}; the store is read every second instead")
                return
        self.troubles.end(Trouble.UNWATCHED)
        self.troubles.begin(Trouble.UNREACHABLE, str(unreachable))

    async def _obey(self, signals: Sequence[Signal]) -> None:
        for signal in signals:
            try:
                await self._operations.signal(signal)
            except (StoreError, StateError) as error:
                # Done here, and not known to be: it comes again, and the next one does not wait for it.
                self.troubles.begin(Trouble.UNWRITABLE, f"signal {signal.id} is not answered: {error}")

    async def _keep_out(self, error: StateError) -> None:
        """A document that cannot be used here. What is denied beside it is denied here as well."""
        news = Trouble.DAMAGED not in self.troubles
        self.troubles.begin(Trouble.DAMAGED, f"{error}. The local revision is kept")
        if not isinstance(error, DamagedState):
            return
        self._deliverer.also_deny(error.denies)
        if news:
            await self._write_down(str(error), error.revision)
        newest = self._deliverer.newest
        only_here = {
            key: deny for key, deny in newest.denies.items() if deny.rev == 0 and key not in error.denies
        }
        await self._publish(
            only_here, InForce(revision=error.revision, state=newest.state, denies=error.denies)
        )

    async def _note(self, finding: Finding, held: InForce, stored: InForce | None) -> None:
        kind = _KINDS.get(finding.verdict)
        self.troubles.end(*(other for other in _KINDS.values() if other is not kind))
        if kind is not None:
            text = explain(finding.verdict, held, stored)
            news = kind not in self.troubles
            self.troubles.begin(kind, text)
            if news and kind is Trouble.FORK and stored is not None:
                await self._write_down(text, stored.revision)

    async def _write_down(self, refusal: str, revision: Revision) -> None:
        """One line in the history, whichever of the replicas is the first to write it."""
        mark = hashlib.sha256(f"{revision} {refusal}".encode()).hexdigest()[:16]
        author = Author(actor="turnout", reason=f"revision {revision}", op_id=f"refused-{mark}")
        with suppress(StoreError, StateError):
            await self._store.reject(author, refusal)

    async def _publish(self, lost: Mapping[DenyKey, Deny], stored: InForce) -> None:
        """What was denied here while the store was away, and what the store lost in a fail-over."""
        try:
            for op_id, denies in _together(lost).items():
                # What one change denied on several routes comes in one revision here as well.
                first, deny = next(iter(denies.items()))
                # Where its line is there and its denies are not, it would be answered and not done.
                new_id = f"{op_id}|{first}" if await self._store.known(op_id) else op_id
                author = Author(actor=deny.actor, reason=deny.reason, op_id=new_id)
                after = msgspec.structs.replace(stored, denies={**stored.denies, **denies})
                versions = {key: deny.version for key, deny in denies.items()}
                await self._operations.commit_deny(versions, author, stored, after)
        except (StoreError, StateError) as error:
            self.troubles.begin(Trouble.UNPUBLISHED, f"denies wait to be published: {error}")
            return
        self.troubles.end(Trouble.UNPUBLISHED)
        if lost:
            log.info("published %d denies that the store did not have", len(lost))
            with suppress(StateError):
                self._deliverer.offer(*await self._comparison.read(thorough=False))

    def _heard(self) -> None:
        self.troubles.end(Trouble.UNREACHABLE)

    def _tell(self) -> None:
        self._events.publish("control-plane", trouble=self.trouble)


def _together(denies: Mapping[DenyKey, Deny]) -> dict[str, dict[DenyKey, Deny]]:
    """By the change that they came with."""
    together: dict[str, dict[DenyKey, Deny]] = {}
    for key, deny in denies.items():
        together.setdefault(deny.op_id, {})[key] = deny
    return together
