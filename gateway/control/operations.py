"""What people and signals do to the state: each a pure change, a compare-and-set, a delivery."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import msgspec

from gateway.control.deliver import Deliverer
from gateway.control.store import Author, Committed, Conflict, Signal, Store, StoreError, StoreUnavailable
from gateway.control.versions import Versions
from gateway.control.weights_errors import WeightsRefused
from gateway.routing import change
from gateway.routing.change import ChangeRefused
from gateway.routing.manifest import Manifest
from gateway.routing.plan import Plan, make_plan
from gateway.routing.state import EMPTY, Deny, DenyKey, InForce, Pin, Revision, State, StateError

log = logging.getLogger(__name__)

RING_GRACE_S = 2.0
"""How long a change waits for this replica's workers before it is reported; a worker that hangs, or a long
answer of a denied version, holds up nobody any longer. Who wants them all polls the acknowledgements."""
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
        held = await self._current()
        _expect(held, expect)
        state = change.set_weights(held, route, percents)
        if state == held.state:
            return Outcome(revision=held.label, changed=False, message="the weights are that already")
        return await self._put(held, state, author)

    async def rollback(self, route: str, version: str | None, author: Author) -> Outcome:
        """In force on this replica when it returns, and on the others as soon as the store hears of it.

        Needs no store: what cannot be published now is published when the store is back.
        Raises `ChangeRefused`.
        """
        held = self._deliverer.newest
        denies = change.rollback(held, route, version)
        denies = {key: denied for key, denied in denies.items() if key not in held.denies}
        if not denies:
            return _already(held, route)
        # The store hears of it while the workers swap: neither waits for the other.
        committing = self._start(self._commit_rollback(denies, author, held))
        ringing = self._deliverer.deny_now(denies, author, time.time_ns() // 1000)
        _, behind = await asyncio.wait([ringing], timeout=RING_GRACE_S)
        await asyncio.wait([committing], timeout=STORE_GRACE_S)
        message = f"{route}: version {', '.join(sorted(set(denies.values())))} is denied"
        if behind:
            message += ", and not every worker has answered yet"
        if committing.done() and (committed := committing.result()) is not None:
            return Outcome(revision=str(committed), message=message, durable=committed.durable)
        return Outcome(
            revision=self._deliverer.held.label,
            published=False,
            message=f"{message} on this replica; the store cannot be reached and hears of it when it is back",
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

    async def signal(self, signal: Signal) -> None:
        """A request out of the `:signals` stream. What cannot be done leaves a line in the history, no more."""
        author = Author(
            actor=f"signal:{signal.fields.get('actor', 'redis')[:80]}",
            reason=signal.fields.get("reason", "")[:500],
            op_id=f"signal-{signal.id}",
        )
        action, route = signal.fields.get("action", ""), signal.fields.get("route", "")
        try:
            if action != "rollback":
                raise ChangeRefused(
                    f"signal {signal.id}: action {action[:40]!r} is not known; known: rollback"
                )
            await self.rollback(route, signal.fields.get("version") or None, author)
        except ChangeRefused as error:
            await self._reject(author, str(error))
        except (StoreError, StateError):
            raise
        except Exception as error:
            # It would come again after every restart, and end the process every time.
            log.exception("signal %s failed", signal.id)
            await self._reject(author, f"signal {signal.id} failed: {type(error).__name__}")
        await self._store.seen(signal.id)

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
            stored = await self._store.read()
            if stored is not None and stored.revision >= revision:
                self._deliverer.offer(stored)

    def _start(self, what: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Goes on when nobody waits for it any more; the loop alone would not keep it alive."""
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _current(self) -> InForce:
        return await self._store.read() or EMPTY


def _already(held: InForce, route: str) -> Outcome:
    """A rollback of what is denied: whoever waits for it waits for the deny that is there."""
    denies = [deny for key, deny in held.denies.items() if key.route == route]
    message = f"{route} is rolled back already"
    if all(deny.rev for deny in denies):
        newest = max((deny.rev for deny in denies), default=0)
        revision = Revision(held.revision.epoch, max(held.revision.rev, newest))
        return Outcome(revision=str(revision), changed=False, message=message)
    message += " on this replica; the store hears of it when it can be reached"
    return Outcome(revision=held.label, published=False, changed=False, message=message)


def _expect(held: InForce, expect: Revision | None) -> None:
    if expect is not None and expect != held.revision:
        raise Conflict(held.revision)
