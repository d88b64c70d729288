"""What a fail-over lost of a line of revisions, and a replica still has, goes back to the store by itself."""

from __future__ import annotations

import logging
import secrets

import msgspec

from gateway.control.deliver import Deliverer
from gateway.control.divergence import Verdict
from gateway.control.store import Author, Conflict, Store
from gateway.routing import change
from gateway.routing.state import InForce

log = logging.getLogger(__name__)


class CarryOver:
    """The first change of a new primary, where it went back: what is in force here.

    What every replica had acknowledged this one has, so none of it is lost. Which of the replicas is first is
    decided by compare-and-set; what one that was further has beyond it, no other is known to have.
    """

    def __init__(self, store: Store, deliverer: Deliverer) -> None:
        self._store = store
        self._deliverer = deliverer

    async def give_back(self, stored: InForce | None) -> bool:
        """Whether the store has moved on from `stored`, by this replica or by another, and is to be read again.

        False where it has not gone back, or not by a fail-over. Raises `StoreUnavailable`.
        """
        held = self._deliverer.newest
        if stored is None or self._deliverer.divergence.judge(held, stored) is not Verdict.REGRESSED:
            return False
        # The others are published with the line of the change that made them.
        ours = {key: deny for key, deny in held.denies.items() if deny.rev}
        # Of another line it may have denies that nobody here has ever seen, and has lifted none of ours.
        extends = held.revision.epoch == stored.revision.epoch and not self._deliverer.divergence.apart
        held = msgspec.structs.replace(held, denies=ours if extends else {**stored.denies, **ours})
        epochs = [held.revision.epoch, *(member.epoch for member in await self._store.members())]
        author = Author(
            actor="turnout",
            reason=f"a fail-over lost what came after {stored.revision} (continues {held.revision})",
            op_id=f"carry-over-{secrets.token_hex(8)}",
        )
        changes = change.summary(stored, held)
        try:
            made = await self._store.carry_over(
                held, stored.revision, author, changes, known_epoch=max(epochs)
            )
        except Conflict:
            return True
        if made is not None:
            log.warning(
                "after a fail-over the store was at %s: it was given back %s, as revision %s",
                stored.revision,
                held.revision,
                made,
            )
        return made is not None
