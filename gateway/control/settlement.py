"""Which is right, where the store and a replica hold different things: somebody says so, and a new epoch begins."""

from __future__ import annotations

import msgspec

from gateway.control.committing import Committing, Outcome, expect_revision
from gateway.control.deliver import Deliverer
from gateway.control.divergence import Verdict
from gateway.control.store import Author, Store
from gateway.routing import change
from gateway.routing.state import EMPTY, DamagedState, InForce, Revision, State, StateError


class Settlement:
    """`turnout restore` and `turnout adopt`."""

    def __init__(self, store: Store, deliverer: Deliverer) -> None:
        self._store = store
        self._deliverer = deliverer
        self._committing = Committing(store, deliverer)

    async def restore(self, author: Author, expect: Revision | None = None) -> Outcome:
        """Gives the store what this replica holds, as the beginning of an epoch that every replica takes.

        Raises `ChangeRefused`, `Conflict` where `expect` is not the store's revision, `StoreUnavailable`.
        """
        held = self._deliverer.newest
        if held is EMPTY:
            raise change.ChangeRefused("this replica holds no state that it could give to the store")
        try:
            stored = await self._store.read()
        except StateError as error:
            stored = _beside(error)
        else:
            verdict = self._deliverer.divergence.judge(held, stored)
            if verdict is Verdict.TAKE and stored is not None and stored.revision > held.revision:
                raise change.ChangeRefused(
                    f"the store is at revision {stored.revision}, ahead of {held.revision} here: to restore that "
                    "would undo what others changed. This replica is about to take it"
                )
        return await self._begin_epoch(held, stored, author, expect)

    async def adopt(self, author: Author, expect: Revision | None = None) -> Outcome:
        """The store's own document is right: the same new epoch, begun with that. Its weights are fetched and
        loaded here first. Raises as `restore`, and `PrepareFailed`, `StateError`."""
        stored = await self._store.read()
        if stored is None:
            raise change.ChangeRefused(
                "the store is empty: there is nothing to adopt. turnout restore gives it what this replica holds"
            )
        expect_revision(stored, expect)
        denies = {**self._deliverer.newest.denies, **stored.denies}
        await self._deliverer.prepare(stored.state, denies)
        held = msgspec.structs.replace(stored, denies=denies)
        return await self._begin_epoch(held, stored, author, expect)

    async def _begin_epoch(
        self, held: InForce, stored: InForce | None, author: Author, expect: Revision | None
    ) -> Outcome:
        before = stored or EMPTY
        expect_revision(before, expect)
        members = await self._store.members()
        epochs = [self._deliverer.newest.revision.epoch, *(member.epoch for member in members)]
        after = msgspec.structs.replace(held, denies={**before.denies, **held.denies})
        # Beside nothing, every route would be a change; and nothing changes of what serves.
        changes = change.summary(before, after) if before.state.routes else []
        revision = await self._store.restore(held, before.revision, author, changes, known_epoch=max(epochs))
        await self._committing.deliver(revision)
        return Outcome(
            revision=str(revision),
            message=f"the store continues revision {held.revision} of {len(held.state.routes)} routes",
            durable=revision.durable,
        )


def _beside(error: StateError) -> InForce:
    """What is sound of a store whose document is not."""
    if isinstance(error, DamagedState):
        return InForce(revision=error.revision, state=State(), denies=error.denies)
    return EMPTY
