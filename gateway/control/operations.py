"""What people and signals do to the state: each a pure change, a compare-and-set, a delivery."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from gateway.control import signals
from gateway.control.authors import shown
from gateway.control.deliver import Deliverer
from gateway.control.divergence import DIVERGED, Verdict, explain
from gateway.control.store import (
    Author,
    Committed,
    Conflict,
    Signal,
    Store,
    StoreDiverged,
    StoreError,
    StoreUnavailable,
)
from gateway.control.versions import Versions
from gateway.control.weights_errors import WeightsRefused
from gateway.routing import change
from gateway.routing.change import ChangeRefused
from gateway.routing.manifest import Manifest
from gateway.routing.plan import Plan, make_plan
from gateway.routing.state import (
    EMPTY,
    DamagedState,
    Deny,
    DenyKey,
    InForce,
    Pin,
    Revision,
    State,
    StateError,
)

log = logging.getLogger(__name__)

RING_GRACE_S = 2.0
"""How long a change waits for this replica's workers before it is reported; a worker that hangs, or a long
answer of a denied version, holds up nobody any longer. Who wants them all polls the acknowledgements."""
KNOWN_GRACE_S = 0.25
"""How long a signal waits for the store to say whether it was obeyed before; past it, it is obeyed."""
REFUSAL_LENGTH = 1000
STORE_GRACE_S = 0.5
"""How long a rollback waits for the store after it is in force here; past it, the reader publishes it."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a change. `published` is false while only this replica knows of it."""

    revision: str
    published: bool = True
    changed: bool = True
    message: str = ""
    durable: bool | None = None
    """False: in force, but a loss of the store's primary may undo it. None: not known, or nothing was written."""


class Operations:
    """Every way to change the state goes through here, so each leaves one line in the history."""

    def __init__(self, store: Store, deliverer: Deliverer, versions: Versions) -> None:
        self._store = store
        self._deliverer = deliverer
        self._versions = versions
        self._tasks: set[asyncio.Task[Any]] = set()

    async def plan(self, manifest: Manifest) -> Plan:
        """What applying a manifest would change now. Raises `RegistryError`, `ChangeRefused`."""
        return make_plan(manifest, await self._versions.look_up_all(manifest), await self._current())

    async def apply(
        self, manifest: Manifest, author: Author, expect: Revision | None = None
    ) -> tuple[Plan, Outcome]:
        """Fetches and loads what the manifest names, then puts it in force, whole or not at all.

        Raises `RegistryError`, `ChangeRefused`, `PrepareFailed`, `Conflict`, `StoreUnavailable`.
        """
        held = await self._current()
        _expect(held, expect)
        pins = await self._versions.look_up_all(manifest)
        fetched = [self._fetch(reference, pin, manifest) for reference, pin in pins.items()]
        # Only now are all digests known, and with them what is denied.
        resolved = dict(zip(pins, await asyncio.gather(*fetched), strict=True))
        plan = make_plan(manifest, resolved, held)
        if not plan.changes and plan.state.manifest_sha256 == held.state.manifest_sha256:
            return plan, Outcome(revision=held.label, changed=False, message="nothing changes")
        await self._deliverer.prepare(plan.state, held.denies)
        return plan, await self._put(held, plan.state, author)

    async def _fetch(self, reference: str, pin: Pin, manifest: Manifest) -> Pin:
        try:
            return (await self._versions.fetch(pin, manifest.registries))[0]
        except WeightsRefused as error:
            raise WeightsRefused(f"{reference} (version {pin.version}): {error}") from error

    async def weights(
        self, route: str, percents: Mapping[str, float], author: Author, expect: Revision | None = None
    ) -> Outcome:
        """Raises `ChangeRefused`, `Conflict`, `StoreUnavailable`."""
        return await self.weights_of({route: percents}, author, expect)

    async def weights_of(
        self, routes: Mapping[str, Mapping[str, float]], author: Author, expect: Revision | None = None
    ) -> Outcome:
        """Several routes in one revision, all of them or none. Raises as `weights` does."""
        held = await self._current()
        _expect(held, expect)
        state = change.set_weights_of(held, routes)
        if state == held.state:
            return Outcome(revision=held.label, changed=False, message="the weights are that already")
        return await self._put(held, state, author)

    async def rollback(self, route: str, version: str | None, author: Author) -> Outcome:
        """In force on this replica when it returns, and on the others as soon as the store hears of it.

        Needs no store: what cannot be published now is published when the store is back.
        Raises `ChangeRefused`.
        """
        return await self.rollback_of({route: version}, author)

    async def rollback_of(self, routes: Mapping[str, str | None], author: Author) -> Outcome:
        """Several routes, each with its version or None, in one step: all of them or none. As `rollback`."""
        held = self._deliverer.newest
        denies = change.rollback_of(held, routes)
        denies = {key: denied for key, denied in denies.items() if key not in held.denies}
        if not denies:
            message = f"{', '.join(routes)} {'is' if len(routes) == 1 else 'are'} rolled back already"
            waiting = any(key.route in routes and deny.rev == 0 for key, deny in held.denies.items())
            return Outcome(revision=held.label, published=not waiting, changed=False, message=message)
        # The store hears of it while the workers swap: neither waits for the other.
        committing = self._start(self._commit_rollback(denies, author, held))
        ringing = self._deliverer.deny_now(denies, author, time.time_ns() // 1000)
        _, behind = await asyncio.wait([ringing], timeout=RING_GRACE_S)
        await asyncio.wait([committing], timeout=STORE_GRACE_S)
        message = _denied(denies)
        if behind:
            message += ", and not every worker has answered yet"
        if committing.done() and (committed := committing.result()) is not None:
            return Outcome(revision=str(committed), message=message, durable=committed.durable)
        return Outcome(
            revision=self._deliverer.held.label,
            published=False,
            message=f"{message} on this replica; {self._why_unpublished()}",
        )

    async def allow(self, route: str, version: str, author: Author) -> Outcome:
        """Lifts a deny: the version takes its declared share again. Raises as `weights` does."""
        held = await self._current()
        keys = change.allow(held, route, version)
        denies = {key: deny for key, deny in held.denies.items() if key not in keys}
        after = msgspec.structs.replace(held, denies=denies)
        await self._deliverer.prepare(held.state, denies)
        revision = await self._store.undeny(keys, author, change.summary(held, after))
        await self._deliver(revision)
        return Outcome(
            revision=str(revision),
            message=f"{route}: version {version} is allowed again",
            durable=revision.durable,
        )

    async def obey(self, asked: Callable[[], Mapping[str, str | None]], author: Author) -> Outcome:
        """A rollback that a signal asks for: done once, whatever was changed since, and one line of the history.

        `asked` reads out of the signal which routes, each with its version or None; it may raise `ChangeRefused`.
        The line says that it is done, that there was nothing to do, or why it is refused. Raises `ChangeRefused`
        when that is written, and `StoreUnavailable` where it cannot be; a rollback is in force here by then.
        """
        if await self._obeyed(author.op_id):
            message = "this signal has had its answer before, and is in the history"
            return Outcome(revision=self._deliverer.held.label, changed=False, message=message)
        try:
            outcome = await self.rollback_of(asked(), author)
        except ChangeRefused as error:
            await self.refuse(author, str(error))
            raise
        if not outcome.changed and not self._is_its_own(author.op_id):
            await self._reject(author, f"nothing to do, {outcome.message}")
        return outcome

    async def refuse(self, author: Author, error: str) -> None:
        """A line in the log and one in the history for a signal that cannot be obeyed."""
        error = shown(error, REFUSAL_LENGTH)  # it may quote what was sent
        log.warning("%s by %s is refused: %s", author.op_id, author.actor, error)
        await self._reject(author, error)

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
        _expect(stored, expect)
        denies = {**self._deliverer.newest.denies, **stored.denies}
        await self._deliverer.prepare(stored.state, denies)
        held = msgspec.structs.replace(stored, denies=denies)
        return await self._begin_epoch(held, stored, author, expect)

    async def _begin_epoch(
        self, held: InForce, stored: InForce | None, author: Author, expect: Revision | None
    ) -> Outcome:
        before = stored or EMPTY
        _expect(before, expect)
        members = await self._store.members()
        epochs = [self._deliverer.newest.revision.epoch, *(member.epoch for member in members)]
        after = msgspec.structs.replace(held, denies={**before.denies, **held.denies})
        # Beside nothing, every route would be a change; and nothing changes of what serves.
        changes = change.summary(before, after) if before.state.routes else []
        revision = await self._store.restore(held, before.revision, author, changes, known_epoch=max(epochs))
        await self._deliver(revision)
        return Outcome(
            revision=str(revision),
            message=f"the store continues revision {held.revision} of {len(held.state.routes)} routes",
        )

    async def signal(self, signal: Signal) -> None:
        """A request out of the `:signals` stream. What cannot be done leaves a line in the history, no more.

        One whose denies are not published yet stays: replicas that are away now would never hear of it.
        """
        author = signals.author_of(signal)
        try:
            outcome = await self.obey(lambda: signals.routes_of(signal), author)
            if not outcome.published:
                return
        except ChangeRefused:
            pass  # it has its line by then
        except (StoreError, StateError):
            raise
        except Exception as error:
            # It would come again after every restart, and end the process every time.
            log.exception("signal %s failed", signal.id)
            await self._reject(author, f"signal {signal.id} failed: {type(error).__name__}")
        await self._store.seen(signal.id)

    async def _obeyed(self, op_id: str) -> bool:
        """Whether the store has an answer to this signal; also False where it does not say so in time."""
        asking = self._start(self._known(op_id))
        # Not cancelled: the answer to a call that was given up would be taken for that of the next one.
        await asyncio.wait([asking], timeout=KNOWN_GRACE_S)
        return asking.done() and bool(asking.result())

    async def _known(self, op_id: str) -> bool:
        try:
            return await self._store.known(op_id)
        except (StoreError, StateError):
            return False

    def _is_its_own(self, op_id: str) -> bool:
        """Whether this signal rolled back here already, and its line comes, or came, with its publication."""
        denies = self._deliverer.newest.denies.values()
        return any(deny.op_id.partition("|")[0] == op_id for deny in denies)

    async def _reject(self, author: Author, error: str) -> None:
        # An empty store has no history to write to.
        with contextlib.suppress(Conflict):
            await self._store.reject(author, error)

    async def commit_deny(
        self, denies: Mapping[DenyKey, str], author: Author, before: InForce, after: InForce
    ) -> Committed:
        return await self._store.deny(denies, author, change.summary(before, after))

    async def _commit_rollback(
        self, denies: Mapping[DenyKey, str], author: Author, held: InForce
    ) -> Committed | None:
        """None where the store cannot take them now: the denies stay marked as unpublished here.

        Also where it is empty or damaged: they are in force here, and that is what was asked for.
        """
        if self._deliverer.divergence.verdict is Verdict.FORK:
            # The store would have it as the higher revision, and replicas that have not looked would take that.
            log.warning("the denies of %s are not published yet: the store has forked", author.op_id)
            return None
        tombs = {key: Deny(version=version) for key, version in denies.items()}
        after = msgspec.structs.replace(held, denies={**held.denies, **tombs})
        try:
            revision = await self.commit_deny(denies, author, held, after)
        except StoreError as error:
            log.warning("the denies of %s are not published yet: %s", author.op_id, error)
            return None
        await self._offer_stored(revision)
        return revision

    async def _put(self, held: InForce, state: State, author: Author) -> Outcome:
        after = msgspec.structs.replace(held, state=state)
        revision = await self._store.put(state, held.revision, author, change.summary(held, after))
        await self._deliver(revision)
        return Outcome(revision=str(revision), durable=revision.durable)

    async def _deliver(self, revision: Revision) -> None:
        """Returns when the revision is in force here, or was refused, or takes longer than anybody waits."""
        await self._offer_stored(revision)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RING_GRACE_S):
                await self._deliverer.wait_for(revision)

    async def _offer_stored(self, revision: Revision) -> None:
        # It is committed: where it cannot be read back now, the reader will.
        with contextlib.suppress(StoreUnavailable, StateError):
            held = self._deliverer.newest
            stored = await self._store.read()
            # Where something newer came to be held meanwhile, this would look like a loss.
            newer = stored is not None and stored.revision >= max(revision, held.revision)
            if newer and self._deliverer.newest.revision <= held.revision:
                self._deliverer.offer(stored)

    def _why_unpublished(self) -> str:
        if self._deliverer.divergence.verdict in DIVERGED:
            return "the store is not what this replica holds (turnout status), and hears of it when that is settled"
        return "the store cannot be reached and hears of it when it is back"

    def _start(self, what: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Goes on when nobody waits for it any more; the loop alone would not keep it alive."""
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _current(self) -> InForce:
        """What a change begins with. Raises `StoreDiverged`: a change must not decide by the way who is right."""
        held = self._deliverer.newest
        stored = await self._store.read()
        verdict = self._deliverer.divergence.judge(held, stored)
        if verdict in DIVERGED:
            raise StoreDiverged(explain(verdict, held, stored))
        if stored is not None:
            return stored
        others = [member for member in await self._store.members() if member.epoch]
        if others:
            raise StoreDiverged(
                f"the store is empty, and {others[0].replica} holds revision {others[0].epoch}.{others[0].rev}: "
                "give it to the store with turnout restore there"
            )
        return EMPTY


def _beside(error: StateError) -> InForce:
    """What is sound of a store whose document is not."""
    if isinstance(error, DamagedState):
        return InForce(revision=error.revision, state=State(), denies=error.denies)
    return EMPTY


def _denied(denies: Mapping[DenyKey, str]) -> str:
    by_route: dict[str, set[str]] = {}
    for key, version in denies.items():
        by_route.setdefault(key.route, set()).add(version)
    return "; ".join(
        f"{route}: version {', '.join(sorted(versions))} is denied" for route, versions in by_route.items()
    )


def _expect(held: InForce, expect: Revision | None) -> None:
    if expect is not None and expect != held.revision:
        raise Conflict(held.revision)
