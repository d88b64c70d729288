"""Which is right, where the store and a replica hold different things: somebody says so, and a new epoch begins."""

from __future__ import annotations

import msgspec

from gateway.control.committing import Committing, Outcome, expect_revision
from gateway.control.deliver import Deliverer
from gateway.control.divergence import Verdict
from gateway.control.member import is_live
from gateway.control.store import Author, Member, Store
from gateway.routing import change
from gateway.routing.state import EMPTY, DamagedState, InForce, Revision, State, StateError


class Settlement:
    """`turnout restore` and `turnout adopt`."""

    def __init__(self, store: Store, deliverer: Deliverer) -> None:
        self._store = store
        self._deliverer = deliverer
        self._committing = Committing(store, deliverer)

    async def restore(
        self, author: Author, expect: Revision | None = None, *, force: bool = False
    ) -> Outcome:
        """Gives the store what this replica holds, as the beginning of an epoch that every replica takes.

        `force`: also where another replica holds a later revision, which is undone by it. Raises `ChangeRefused`,
        `Conflict` where `expect` is not the store's revision, `StoreUnavailable`.
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
            await self._see_that_they_differ(stored, author, expect)
        if not force:
            _see_that_nobody_is_ahead(held, await self._store.members())
        return await self._begin_epoch(held, stored, author, expect)

    async def adopt(self, author: Author, expect: Revision | None = None) -> Outcome:
        """The store's own document is right: the same new epoch, begun with that. Its weights are fetched and
        loaded here first. Raises as `restore`, and `PrepareFailed`, `StateError`."""
        stored = await self._store.read()
        if stored is None:
            raise change.ChangeRefused(
                "the store is empty: there is nothing to adopt. turnout restore gives it what this replica holds"
            )
        await self._see_that_they_differ(stored, author, expect)
        denies = {**self._deliverer.newest.denies, **stored.denies}
        await self._deliverer.prepare(stored.state, denies)
        held = msgspec.structs.replace(stored, denies=denies)
        return await self._begin_epoch(held, stored, author, expect)

    async def _see_that_they_differ(
        self, stored: InForce | None, author: Author, expect: Revision | None
    ) -> None:
        """Raises `ChangeRefused` where nobody keeps anything else: an epoch more would only be one to explain."""
        expect_revision(stored or EMPTY, expect)
        if (
            stored is None
            or self._deliverer.divergence.judge(self._deliverer.newest, stored) != Verdict.NOTHING
        ):
            return
        live = [member for member in await self._store.members() if is_live(member)]
        # Who asks again, because the answer was lost, is told the revision of the first time.
        if all(member.status == "ACK" for member in live) and not await self._store.known(author.op_id):
            raise change.ChangeRefused(
                f"the store and every live replica agree on revision {stored.revision}: there is nothing to settle"
            )

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
        if not before.state.routes:
            author = msgspec.structs.replace(author, reason=_continuing(author.reason, held.revision))
        revision = await self._store.restore(held, before.revision, author, changes, known_epoch=max(epochs))
        await self._committing.deliver(revision)
        return Outcome(
            revision=str(revision),
            message=f"the store continues revision {held.revision} of {len(held.state.routes)} routes",
            durable=revision.durable,
        )


def _see_that_nobody_is_ahead(held: InForce, members: list[Member]) -> None:
    """Raises `ChangeRefused`, also for one that is LOST: it may be all that has the latest changes."""
    for member in members:
        revision = Revision(member.epoch, member.rev)
        if revision > held.revision:
            silent = "" if is_live(member) else f" ({member.error})"
            raise change.ChangeRefused(
                f"replica {member.replica} is at revision {revision}{silent}, ahead of {held.revision} here: to "
                "restore that would undo changes. Run turnout restore there, or undo them with --force"
            )


def _continuing(reason: str, revision: Revision) -> str:
    """The history begins anew beside it, so the line itself says from where."""
    return f"{reason} (continues {revision})" if reason else f"continues {revision}"


def _beside(error: StateError) -> InForce:
    """What is sound of a store whose document is not."""
    if isinstance(error, DamagedState):
        return InForce(revision=error.revision, state=State(), denies=error.denies)
    return EMPTY
