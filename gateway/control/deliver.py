"""Brings a state into force on this replica: fetch, load, write down, ring the workers, acknowledge."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.control import state_file
from gateway.control.divergence import Divergence, Finding, Verdict
from gateway.control.events import Events
from gateway.control.store import Author
from gateway.control.versions import Versions
from gateway.control.weights_errors import WeightsError
from gateway.routing.state import EMPTY, Deny, DenyKey, EngineOptions, InForce, Pin, Revision, State
from gateway.routing.table import Tables
from registry_client.errors import RegistryError

log = logging.getLogger(__name__)

RETRY_S = (1.0, 2.0, 5.0, 15.0)
"""Between attempts at a state that this replica could not prepare; a newer one is tried at once."""
RETRY_WORKERS_S = 2.0
"""Before workers that could not take a state are rung again."""
FETCHES_AT_ONCE = 3


class LoadFailed(Exception):
    """A worker cannot load a version; the text is the engine's reason."""


class PrepareFailed(Exception):
    """A state cannot come into force here. What serves goes on serving."""


class WorkersApplied(msgspec.Struct, frozen=True, kw_only=True):
    """How the workers took a ring."""

    ok: int
    total: int
    errors: list[str]


class Workers(Protocol):
    """The workers, as far as a delivery needs them."""

    async def load(self, pin: Pin, options: EngineOptions, path: str) -> None:
        """Has every worker load a version. Raises `LoadFailed`."""

    async def apply(self, held: InForce, paths: Mapping[str, str]) -> WorkersApplied:
        """Has every worker make `held` the truth; returns when they have."""


class Deliverer:
    """Holds what is in force on this replica and brings newer states into force, the newest first.

    Denies overtake everything: the workers are rung with them at once, while a new document may still be
    waiting for its weights, and while a worker that hangs, or the last answers of a version that was denied
    before, keep an earlier ring from being acknowledged.
    """

    def __init__(
        self,
        path: Path,
        versions: Versions,
        workers: Workers,
        events: Events,
    ) -> None:
        self.tables = Tables()
        self.divergence = Divergence()
        self._path = path
        self._versions = versions
        self._workers = workers
        self._events = events
        self._target: InForce = EMPTY
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._ringing: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Lock()
        self._written: InForce = EMPTY
        self._refused = EMPTY.revision
        self.held: InForce = EMPTY
        """What the workers were rung with last: each serves it as soon as it hears of it."""
        self.acknowledged: InForce = EMPTY
        """The newest that every worker has answered for, and that lies on the disk."""
        self.error = ""
        """Why the newest state is not in force here, "" where it is."""
        self.applied = WorkersApplied(ok=0, total=0, errors=[])
        self.mirror_error = ""

    @property
    def newest(self) -> InForce:
        """The newest state that this replica knows, in force here or not yet."""
        return self._target

    async def start(self, mirrored: InForce) -> None:
        """The last-known-good state, with the versions that are in the cache; the rest is fetched by `run`."""
        self._target = mirrored
        await self._versions.recall(pin for pin, _ in self.required(mirrored).values())
        await asyncio.wait([self._ring(mirrored)])
        self._wake.set()

    def offer(self, stored: InForce | None, lifted: Collection[str] | None = None) -> Finding:
        """A state of the store. Its denies have been rung when this returns; its document follows, if it is
        newer. What the store lost of the denies stays in force, and is for the caller to publish.

        `lifted` as for `Divergence.look`."""
        finding = self.divergence.look(self._target, stored, lifted)
        if stored is not None and finding.verdict is Verdict.TAKE:
            self._take(stored, finding.lost)
        elif stored is not None:
            self.also_deny(stored.denies)
        return finding

    def also_deny(self, denies: Mapping[DenyKey, Deny]) -> None:
        """Denies of a store whose document is not taken: it is no newer, or not readable."""
        if any(self._target.denies.get(key) != deny for key, deny in denies.items()):
            self._target = msgspec.structs.replace(self._target, denies={**self._target.denies, **denies})
            if self.held is not EMPTY:
                self._ring(msgspec.structs.replace(self.held, denies={**self.held.denies, **denies}))

    def _take(self, target: InForce, lost: Mapping[DenyKey, Deny]) -> None:
        _warn_of_what_is_left(self._target, target)
        kept = {key: msgspec.structs.replace(deny, rev=0) for key, deny in lost.items()}
        target = msgspec.structs.replace(target, denies={**kept, **target.denies})
        if target.state == self.held.state:
            # The very same object, so that whoever has it sees at once that nothing in it is new.
            target = msgspec.structs.replace(target, state=self.held.state)
        self._target = target
        if self._only_denies_differ(target):
            if target != self.held:
                self._ring(target)
        elif target.denies.keys() - self.held.denies.keys() and self.held is not EMPTY:
            # Before anything that takes time: a rollback waits for nobody's weights.
            self._ring(_also_denied(self.held, _seen_from(self.held, target)))
        self._wake.set()

    def deny_now(self, denies: Mapping[DenyKey, str], author: Author, now_us: int) -> asyncio.Task[None]:
        """Denies here, before the store knows of it, or while it cannot be reached.

        The workers have been rung when this returns; the task ends when they all have answered.
        """
        added = {
            key: Deny(
                version=version, op_id=author.op_id, actor=author.actor, reason=author.reason, us=now_us
            )
            for key, version in denies.items()
        }
        # To each what it lacks: a document that waits for its weights may allow what is still denied here.
        self._target = _also_denied(self._target, added)
        return self._ring(_also_denied(self.held, added))

    async def prepare(self, state: State, denies: Mapping[DenyKey, Deny]) -> None:
        """Fetches, verifies and loads all that a state needs, without bringing it into force.

        Raises `PrepareFailed`, which names the version and the reason.
        """
        needed = self.required(InForce(revision=EMPTY.revision, state=state, denies=denies))
        present = self.required(self.held)
        limit = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def one(pin: Pin, options: EngineOptions, route: str) -> None:
            async with limit:
                at = f"{route}: {pin.registry}/{pin.model} version {pin.version}"
                try:
                    pin, _ = await self._versions.fetch(pin, state.registries)
                    if (pin.digest, options) not in present or self.applied.errors:
                        path = self._versions.paths([pin])[pin.digest]
                        await self._workers.load(pin, options, path)
                except (RegistryError, WeightsError, OSError) as error:
                    raise PrepareFailed(f"{at} cannot be fetched: {error}") from error
                except LoadFailed as error:
                    raise PrepareFailed(f"{at} cannot be loaded: {error}") from error

        tasks = [
            asyncio.create_task(one(pin, options, route)) for (_, options), (pin, route) in needed.items()
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def run(self) -> None:
        """Brings each newest state into force; tries again where its weights cannot be had."""
        attempt = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            target = self._target
            if self._in_force(target):
                attempt = 0
                continue
            try:
                await self.prepare(target.state, target.denies)
            except PrepareFailed as error:
                await self._refuse(target, str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
                        await self._wake.wait()
                attempt += 1
                self._wake.set()
                continue
            attempt = 0
            if target.state == self._target.state:
                self._ring(self._target)

    async def wait_for(self, revision: Revision) -> None:
        """Returns when a revision at least as new is acknowledged here, or was refused."""
        async with self._changed:
            await self._changed.wait_for(lambda: max(self.acknowledged.revision, self._refused) >= revision)

    def required(self, held: InForce) -> dict[tuple[str, EngineOptions], tuple[Pin, str]]:
        """(digest, options) → the pin and one route that needs it."""
        return {
            (pin.digest, entry.engine): (pin, name)
            for name, entry in self.tables.of(held).items()
            for pin in entry.required
        }

    def in_use(self) -> set[str]:
        """Digests that must stay in the weights cache."""
        return {digest for held in (self.held, self._target) for digest, _ in self.required(held)}

    def _only_denies_differ(self, target: InForce) -> bool:
        return target.state == self.held.state and not self._missing(target)

    def _in_force(self, target: InForce) -> bool:
        whole = target == self.held and not self._missing(target)
        return whole and not self.applied.errors and not self.error

    def _missing(self, held: InForce) -> bool:
        return any(not self._versions.fetched(digest) for digest, _ in self.required(held))

    async def _refuse(self, target: InForce, error: str) -> None:
        if self.held is EMPTY and target.state.routes:
            # There is nothing better to serve: the routes whose versions could be had are served.
            await asyncio.wait([self._ring(target)])
        news = error != self.error
        async with self._changed:
            self.error = error
            self._refused = max(self._refused, target.revision)
            self._changed.notify_all()
        if news:
            log.error("revision %s is not in force here: %s", target.revision, error)
            self._events.publish("refused", revision=str(target.revision), error=error)

    def _ring(self, held: InForce) -> asyncio.Task[None]:
        """Sends a state to the workers. Nothing waits between reading `self.held` and replacing it here, so
        two changes at once lose nothing of each other, and the workers hear of them in this order."""
        before, self.held = self.held, held
        task = asyncio.create_task(self._acknowledge(before, held))
        self._ringing.add(task)
        task.add_done_callback(self._rung)
        return task

    async def _acknowledge(self, before: InForce, held: InForce) -> None:
        pins = {pin.digest: pin for entry in self.tables.of(held).values() for pin in entry.required}
        paths = self._versions.paths(pins.values())
        # Both at once: a rollback does not wait for the disk, the acknowledgement does.
        applied, _ = await asyncio.gather(self._workers.apply(held, paths), self._write())
        if held is self.held:
            self.applied = applied
            if applied.errors:
                asyncio.get_running_loop().call_later(RETRY_WORKERS_S, self._wake.set)
        async with self._changed:
            if held.revision >= self.acknowledged.revision:
                self.acknowledged = held
            mended = bool(self.error) and held.state == self._target.state
            if mended:
                self.error = ""
            self._changed.notify_all()
        if before.label != held.label or mended:
            log.info("revision %s is in force on %d of %d workers", held.label, applied.ok, applied.total)
            self._events.publish("applied", revision=held.label, workers=applied.ok, of=applied.total)

    def _rung(self, task: asyncio.Task[None]) -> None:
        self._ringing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the workers could not be rung", exc_info=error)

    async def _write(self) -> None:
        try:
            async with self._writing:
                # The newest there is by now: what came in between needs no file of its own.
                held = self.held
                if held is not self._written:
                    await asyncio.to_thread(state_file.write, self._path, held)
                    self._written = held
                    self.mirror_error = ""
        except OSError as error:
            # A full disk must not hold up a rollback; a restart before it is mended would.
            self.mirror_error = f"the state file cannot be written: {error.strerror}"
            log.error("%s (%s)", self.mirror_error, self._path)


def _warn_of_what_is_left(held: InForce, target: InForce) -> None:
    """A new epoch that began with an earlier state than this replica's: its later changes are not part of it."""
    base = target.base
    if base.epoch == held.revision.epoch < target.revision.epoch and base < held.revision:
        log.warning(
            "revision %s continues %s: what changed up to %s is not part of it, its denies are published again",
            target.revision,
            base,
            held.revision,
        )


def _seen_from(held: InForce, target: InForce) -> Mapping[DenyKey, Deny]:
    """The denies of a later state as of one that does not have them: by its epoch's count they may look earlier."""
    if held.revision.epoch == target.revision.epoch:
        return target.denies
    return {key: msgspec.structs.replace(deny, rev=0) for key, deny in target.denies.items()}


def _also_denied(held: InForce, denies: Mapping[DenyKey, Deny]) -> InForce:
    return msgspec.structs.replace(held, denies={**denies, **held.denies})
