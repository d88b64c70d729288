"""Brings a state into force on this replica: fetch, load, write down, ring the workers, acknowledge."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.control import state_file
from gateway.control.events import Events
from gateway.control.store import Author
from gateway.control.versions import Versions
from gateway.control.weights_errors import WeightsError
from gateway.routing.state import EMPTY, Deny, DenyKey, EngineOptions, InForce, Pin, State
from gateway.routing.table import compile_table
from registry_client.errors import RegistryError

log = logging.getLogger(__name__)

RETRY_S = (1.0, 2.0, 5.0, 15.0)
"""Between attempts at a state that this replica could not prepare; a newer one is tried at once."""
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
    """Holds what is in force on this replica and brings newer states into force, one at a time.

    Denies overtake everything: they are applied to what is in force at once, while a new document may still
    be waiting for its weights.
    """

    def __init__(
        self,
        path: Path,
        versions: Versions,
        workers: Workers,
        events: Events,
        on_flip: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._versions = versions
        self._workers = workers
        self._events = events
        self._on_flip = on_flip
        self._lock = asyncio.Lock()
        self._target: InForce = EMPTY
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self.held: InForce = EMPTY
        """What the workers serve."""
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
        await self._versions.recall(pin for pin, _ in _required(mirrored).values())
        await self._apply(lambda _: mirrored)
        self._wake.set()

    async def offer(self, target: InForce) -> None:
        """A state of the store. Its denies are in force when this returns, its document maybe later."""
        if target.revision < self._target.revision:
            return
        target = msgspec.structs.replace(target, denies={**self._unpublished(target), **target.denies})
        self._target = target
        if self._only_denies_differ(target):
            await self._apply(lambda held: self._target if held.state == self._target.state else held)
        elif target.denies.keys() - self.held.denies.keys() and self.held is not EMPTY:
            # Before anything that takes time: a rollback waits for nobody's weights.
            await self._apply(lambda held: _also_denied(held, target.denies))
        self._wake.set()

    async def deny_now(self, denies: Mapping[DenyKey, str], author: Author, now_us: int) -> None:
        """Denies here, before the store knows of it, or while it cannot be reached."""
        added = {
            key: Deny(
                version=version, op_id=author.op_id, actor=author.actor, reason=author.reason, us=now_us
            )
            for key, version in denies.items()
            if key not in self.held.denies
        }
        self._target = _also_denied(self._target, added)
        if added:
            await self._apply(lambda held: _also_denied(held, added))

    async def prepare(self, state: State, denies: Mapping[DenyKey, Deny]) -> None:
        """Fetches, verifies and loads all that a state needs, without bringing it into force.

        Raises `PrepareFailed`, which names the version and the reason.
        """
        needed = _required(InForce(revision=EMPTY.revision, state=state, denies=denies))
        present = _required(self.held)
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
            if target.state == self._target.state:
                await self._apply(lambda _: self._target)
            attempt = 0
            self._wake.set()

    async def wait_for(self, target: InForce) -> None:
        """Returns when a state at least as new as `target` is in force here or was refused."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.held.revision >= target.revision or bool(self.error))

    def in_use(self) -> set[str]:
        """Digests that must stay in the weights cache."""
        return {digest for held in (self.held, self._target) for digest, _ in _required(held)}

    async def again(self) -> None:
        """Rings the workers once more with what is in force: one of them was replaced."""
        if self.held is not EMPTY:
            await self._apply(lambda held: held)

    def _only_denies_differ(self, target: InForce) -> bool:
        return target.state == self.held.state and not self._missing(target)

    def _in_force(self, target: InForce) -> bool:
        return target == self.held and not self._missing(target) and not self.applied.errors

    def _missing(self, held: InForce) -> bool:
        return any(not self._versions.fetched(digest) for digest, _ in _required(held))

    def _unpublished(self, target: InForce) -> dict[DenyKey, Deny]:
        """Denies that only this replica knows yet: what the store says does not lift them."""
        return {
            key: deny
            for key, deny in self._target.denies.items()
            if deny.rev == 0 and key not in target.denies
        }

    async def _refuse(self, target: InForce, error: str) -> None:
        if error != self.error:
            log.error("revision %s is not in force here: %s", target.revision, error)
            self._events.publish("refused", revision=str(target.revision), error=error)
        if self.held is EMPTY and target.state.routes:
            # There is nothing better to serve: the routes whose versions could be had are served.
            await self._apply(lambda _: target)
        async with self._changed:
            self.error = error
            self._changed.notify_all()

    async def _apply(self, decide: Callable[[InForce], InForce]) -> None:
        """What `decide` makes of what is in force then: two changes at once lose nothing of each other."""
        learned = time.monotonic()
        async with self._lock:
            before = self.held
            held = decide(before)
            paths = self._versions.paths(pin for pin, _ in _required(held).values())
            # Both at once: a rollback does not wait for the disk, the acknowledgement does.
            applied, _ = await asyncio.gather(self._workers.apply(held, paths), self._write(held))
            self.held, self.applied = held, applied
        async with self._changed:
            if held.state == self._target.state:
                self.error = ""
            self._changed.notify_all()
        if before.label != held.label:
            self._on_flip(time.monotonic() - learned)
            log.info("revision %s is in force on %d of %d workers", held.label, applied.ok, applied.total)
            self._events.publish("applied", revision=held.label, workers=applied.ok, of=applied.total)

    async def _write(self, held: InForce) -> None:
        try:
            await asyncio.to_thread(state_file.write, self._path, held)
            self.mirror_error = ""
        except OSError as error:
            # A full disk must not hold up a rollback; a restart before it is mended would.
            self.mirror_error = f"the state file cannot be written: {error.strerror}"
            log.error("%s (%s)", self.mirror_error, self._path)


def _also_denied(held: InForce, denies: Mapping[DenyKey, Deny]) -> InForce:
    return msgspec.structs.replace(held, denies={**denies, **held.denies})


def _required(held: InForce) -> dict[tuple[str, EngineOptions], tuple[Pin, str]]:
    """(digest, options) → the pin and one route that needs it."""
    return {
        (pin.digest, entry.engine): (pin, name)
        for name, entry in compile_table(held).items()
        for pin in entry.required
    }
