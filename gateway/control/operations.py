"""What people and signals do to the state: each a pure change, a compare-and-set, a delivery."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

import msgspec

from gateway.control import signals
from gateway.control.authors import shown
from gateway.control.committing import RING_GRACE_S, Committing, Outcome, expect_revision
from gateway.control.deliver import Deliverer
from gateway.control.divergence import DIVERGED, Verdict
from gateway.control.exposure import Exposures
from gateway.control.refusals import Refusals
from gateway.control.store import (
    Author,
    Committed,
    Conflict,
    Signal,
    Store,
    StoreError,
)
from gateway.control.versions import Versions
from gateway.control.weights_errors import WeightsRefused
from gateway.routing import change
from gateway.routing.change import ChangeRefused, version_of
from gateway.routing.exposure import Count, Trip, leased
from gateway.routing.manifest import Manifest
from gateway.routing.plan import Plan, make_plan
from gateway.routing.state import (
    Deny,
    DenyKey,
    InForce,
    Pin,
    Revision,
    State,
    StateError,
)

log = logging.getLogger(__name__)

KNOWN_GRACE_S = 0.25
"""How long a signal waits for the store to say whether it was obeyed before; past it, it is obeyed."""
REFUSAL_LENGTH = 1000
ANSWERED_KEPT = 10_000
"""Signals that had nothing to do and left no line, remembered by this replica alone."""
STORE_GRACE_S = 0.5
"""How long a rollback waits for the store after it is in force here; past it, the reader publishes it."""


class Operations:
    """Every way to change the state goes through here, so each leaves one line in the history."""

    def __init__(
        self,
        store: Store,
        deliverer: Deliverer,
        versions: Versions,
        exposures: Exposures | None = None,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._exposures = exposures
        self._deliverer = deliverer
        self._versions = versions
        self._committing = Committing(store, deliverer)
        self._staying: set[str] = set()
        """Signals that came and are not done."""
        self._clock_s = clock_s
        self._refusals = Refusals()
        self._answered: dict[str, None] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def plan(self, manifest: Manifest) -> Plan:
        """What applying a manifest would change now. Raises `RegistryError`, `ChangeRefused`."""
        return make_plan(
            manifest, await self._versions.look_up_all(manifest), await self._committing.current()
        )

    async def apply(
        self, manifest: Manifest, author: Author, expect: Revision | None = None
    ) -> tuple[Plan, Outcome]:
        """Fetches and loads what the manifest names, then puts it in force, whole or not at all.

        Raises `RegistryError`, `ChangeRefused`, `PrepareFailed`, `Conflict`, `StoreUnavailable`.
        """
        held = await self._committing.current()
        expect_revision(held, expect)
        pins = await self._versions.look_up_all(manifest)
        fetched = [self._fetch(reference, pin, manifest) for reference, pin in pins.items()]
        # Only now are all digests known, and with them what is denied.
        resolved = dict(zip(pins, await asyncio.gather(*fetched), strict=True))
        plan = make_plan(manifest, resolved, held)
        if not plan.changes and plan.state.manifest_sha256 == held.state.manifest_sha256:
            return plan, Outcome(revision=held.label, changed=False, message="nothing changes")
        await self._deliverer.prepare(plan.state, held.denies)
        changed = [(n, r) for n, r in plan.state.routes.items() if r != held.state.routes.get(n)]
        await self._renew([key for name, route in changed for key in leased(name, route)])
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
        held = await self._committing.current()
        expect_revision(held, expect)
        state = change.set_weights_of(held, routes)
        # Who sets weights is there to judge. First: a lease that lapsed while its weight was 0 is none.
        judged = ((route, name) for route, percents in routes.items() for name in percents)
        await self._renew([key for route, name in judged for key in leased(route, state.routes[route], name)])
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
            return _already(held, routes)
        return await self._deny(denies, author, held)

    def exceeded(self, key: DenyKey, trip: Trip, count: Count | None) -> None:
        """Denies a version that has reached a limit, or whose lease has lapsed: as a rollback does."""
        held = self._deliverer.newest
        version = version_of(held, key)
        if version is None or key in held.denies:
            return
        log.warning("%s: version %s is denied: %s", key.route, version, trip.reason)
        # Every replica comes to it by itself, and the history has one line for all.
        count_id = f"{count.life}-{count.number}" if count is not None else secrets.token_hex(8)
        author = Author(
            actor=trip.actor, reason=trip.reason, op_id=f"{trip.actor}-{key.digest[:16]}-{count_id}"
        )
        self._start(self._deny({key: version}, author, held))

    async def renew(self, route: str, variant: str | None) -> Outcome:
        """Begins the lease of a variant, or of all that have one, anew. Raises as `weights` does."""
        held = await self._committing.current()
        keys = change.renew(held, route, variant)
        await self._renew(keys)
        versions = ", ".join(str(version_of(held, key)) for key in keys)
        return Outcome(
            revision=held.label, changed=False, message=f"{route}: the lease of version {versions} is renewed"
        )

    async def _renew(self, keys: Collection[DenyKey]) -> None:
        if self._exposures is not None:
            await self._exposures.renew(keys)

    async def _deny(self, denies: Mapping[DenyKey, str], author: Author, held: InForce) -> Outcome:
        """In force here when it returns, and committed, or left for the reader to publish."""
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
        held = await self._committing.current()
        keys = change.allow(held, route, version)
        denies = {key: deny for key, deny in held.denies.items() if key not in keys}
        after = msgspec.structs.replace(held, denies=denies)
        await self._deliverer.prepare(held.state, denies)
        if self._exposures is not None:
            # First: were the deny lifted with the old count in force, its limit would trip again.
            await self._exposures.restart(keys)
        revision = await self._store.undeny(keys, author, change.lifting(held, after))
        await self._committing.deliver(revision)
        return Outcome(
            revision=str(revision),
            message=f"{route}: version {version} is allowed again",
            durable=revision.durable,
        )

    async def obey(
        self, asked: Callable[[], Mapping[str, str | None]], author: Author, *, comes_again: bool = True
    ) -> Outcome:
        """A rollback that a signal asks for: done once, whatever was changed since, and one line of the history.

        `asked` reads out of the signal which routes, each with its version or None; it may raise `ChangeRefused`.
        The line says that it is done, that there was nothing to do, or why it is refused. One that `comes_again`
        is refused once for each state: an alert that still fires finds what to roll back to when there is some.
        Raises `ChangeRefused` when that is written, and `StoreUnavailable` where it cannot be; a rollback is in
        force here by then.
        """
        if author.op_id in self._answered or await self._obeyed(author.op_id):
            return self._answered_before()
        refused_as = self._of_this_state(author) if comes_again else author
        try:
            outcome = await self.rollback_of(asked(), author)
        except ChangeRefused as error:
            if comes_again and await self._obeyed(refused_as.op_id):
                return self._answered_before()
            await self.refuse(refused_as, str(error))
            raise
        if not outcome.changed and not self._is_its_own(author.op_id):
            await self._note_idle(author, outcome.message)
        return outcome

    def _answered_before(self) -> Outcome:
        message = "this signal has had its answer before, and is in the history"
        return Outcome(revision=self._deliverer.held.label, changed=False, message=message)

    def _of_this_state(self, author: Author) -> Author:
        """What is refused now is another refusal when something has changed."""
        return msgspec.structs.replace(author, op_id=f"{author.op_id}|{self._deliverer.newest.revision}")

    async def _note_idle(self, author: Author, message: str) -> None:
        """Also where it leaves no line: the same signal must not undo what is allowed later."""
        if (line := self._worded(f"nothing to do, {message}")) is not None:
            await self._reject(author, line)
            return
        self._answered[author.op_id] = None
        if len(self._answered) > ANSWERED_KEPT:
            del self._answered[next(iter(self._answered))]

    async def refuse(self, author: Author, error: str) -> None:
        """A line in the log and one in the history for a signal that cannot be obeyed, unless they are too many."""
        if (line := self._worded(error)) is not None:
            log.warning("%s by %s is refused: %s", author.op_id, author.actor, line)
            await self._reject(author, line)

    def _worded(self, error: str) -> str | None:
        """What the line of a refusal says; None where it has none."""
        if (left_out := self._refusals.admit(self._clock_s())) is None:
            return None
        error = shown(error, REFUSAL_LENGTH)  # it may quote what was sent
        return (
            f"{error} ({left_out} refusals before it left no line: too many in a minute)"
            if left_out
            else error
        )

    async def signal(self, signal: Signal) -> None:
        """A request out of the `:signals` stream. What cannot be done leaves a line in the history, no more.

        One whose denies are not published yet stays: replicas that are away now would never hear of it.
        """
        author = signals.author_of(signal)
        self._staying.add(signal.id)
        try:
            outcome = await self.obey(lambda: signals.routes_of(signal), author, comes_again=False)
            if not outcome.published:
                return
        except ChangeRefused:
            pass  # it has its line by then
        except (StoreError, StateError):
            raise
        except Exception as error:
            # It would come again after every restart, and end the process every time.
            log.exception("signal %s failed", signal.id)
            if (line := self._worded(f"signal {signal.id} failed: {type(error).__name__}")) is not None:
                await self._reject(author, line)
        self._staying.discard(signal.id)
        # The store knows only how far they are done: one that stays keeps the later ones with it.
        if not any(signals.position(other) < signals.position(signal.id) for other in self._staying):
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
        return await self._committing.deny(denies, author, change.summary(before, after))

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
        except (StoreError, StateError) as error:
            log.warning("the denies of %s are not published yet: %s", author.op_id, error)
            return None
        await self._committing.offer(revision)
        return revision

    async def _put(self, held: InForce, state: State, author: Author) -> Outcome:
        after = msgspec.structs.replace(held, state=state)
        revision = await self._store.put(state, held.revision, author, change.summary(held, after))
        await self._committing.deliver(revision)
        return Outcome(revision=str(revision), durable=revision.durable)

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


def _already(held: InForce, routes: Collection[str]) -> Outcome:
    """A rollback of what is denied: whoever waits for it waits for the denies that are there."""
    denies = [deny for key, deny in held.denies.items() if key.route in routes]
    message = f"{', '.join(routes)} {'is' if len(routes) == 1 else 'are'} rolled back already"
    if all(deny.rev for deny in denies):
        newest = max((deny.rev for deny in denies), default=0)
        revision = Revision(held.revision.epoch, max(held.revision.rev, newest))
        return Outcome(revision=str(revision), changed=False, message=message)
    message += " on this replica; the store hears of it when it can be reached"
    return Outcome(revision=held.label, published=False, changed=False, message=message)


def _denied(denies: Mapping[DenyKey, str]) -> str:
    by_route: dict[str, set[str]] = {}
    for key, version in denies.items():
        by_route.setdefault(key.route, set()).add(version)
    return "; ".join(
        f"{route}: version {', '.join(sorted(versions))} is denied" for route, versions in by_route.items()
    )
