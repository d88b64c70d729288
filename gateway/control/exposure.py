"""This replica's hand on the counts of exposure: allowances for its workers, and the end of what is used up.

Whatever happens here, nobody waits for it on a request's way: where the store cannot be asked there is no
allowance, and the fallback answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec

from gateway.control.deliver import Deliverer
from gateway.control.exposure_store import Ask, ExposureStore, Found
from gateway.control.store import StoreUnavailable
from gateway.routing.exposure import Count, Trip, lapsed, lost, reached
from gateway.routing.state import DenyKey, Exposure

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often every count is compared with the store's: what others' workers did, and who renewed a lease."""
T = TypeVar("T")
OnTrip = Callable[[DenyKey, Trip, Count | None], None]


class _Watched:
    """What this replica knows of one limited version."""

    def __init__(self) -> None:
        self.count: Count | None = None
        self.own_errors = 0
        """Of this replica's workers, in this count."""
        self.published_errors = 0
        """How many of them `count` has."""
        self.renewed_at: float | None = None
        """By this process' own clock: a lost store, or one whose clock is wrong, keeps no lease alive."""
        self.tripped = False

    @property
    def errors(self) -> int:
        return (self.count.errors if self.count is not None else 0) + self.own_errors - self.published_errors

    def leased_s(self, exposure: Exposure, now: float) -> float:
        """What is left of the lease; 0 as long as nothing was heard of it."""
        if self.renewed_at is None:
            return 0.0
        return max(0.0, self.renewed_at + exposure.lease_ms / 1000 - now)

    def take_in(self, count: Count, asked: Ask, sent_at: float, now_us: int) -> None:
        """`sent_at` is when the store was asked, by this process' own clock."""
        before = self.count
        if before is not None and count.number != before.number:
            # Allowed again, maybe before this replica came to look while it was denied.
            self.own_errors, self.tripped = 0, False
            asked = msgspec.structs.replace(asked, errors=0)
        if before is None or (count.number, count.renewed_us) > (before.number, before.renewed_us):
            self.renewed_at = sent_at - max(0, now_us - count.renewed_us) / 1e6
        elif count.renewed_us < before.renewed_us:
            # The store has lost a renewal. It was heard of here, and holds.
            count = msgspec.structs.replace(count, renewed_us=before.renewed_us)
        self.published_errors = asked.errors
        self.count = count


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """What is used of a version's limits, for people and metrics."""

    exposure: Exposure
    requests: int
    """Given to workers; not all of them may be used."""
    errors: int
    keys: int
    lease_s: float
    """What is left of the lease."""


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is given of one version."""

    requests: int = 0
    errors: int = 0
    keys: list[bytes] = []
    lease_s: float = 0.0


class Exposures:
    """Every limited version that this replica serves. `on_trip` is to deny the version, at once."""

    def __init__(
        self,
        store: ExposureStore,
        deliverer: Deliverer,
        on_trip: OnTrip,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._deliverer = deliverer
        self._on_trip = on_trip
        self._clock = clock
        self._watched: dict[DenyKey, _Watched] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.trouble = ""
        """Why nothing more can be given, "" where it can."""

    async def run(self) -> None:
        """Follows the counts for as long as this replica runs."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Compares every count with the store's, and ends what has reached its limit or has no lease."""
        limited = self._limited()
        for key in self._watched.keys() - limited.keys():
            # Denied, or limited no more: what comes after an `allow` is another count.
            del self._watched[key]
        if not limited:
            self.trouble = ""
            return
        await self._ask({key: self._asks(key, exposure) for key, exposure in limited.items()})
        for key, exposure in limited.items():
            self._judge_errors(key, exposure)
            # Only here, where the store was asked first: somebody may have renewed it a moment ago.
            watched = self._watched_one(key)
            if exposure.lease_ms and watched.count and not watched.leased_s(exposure, self._clock()):
                self._trip(key, lapsed(exposure))

    async def allowance(
        self, key: DenyKey, *, requests: int, spent: bool, errors: int, keys: tuple[bytes, ...]
    ) -> Allowance:
        """What one worker may expose; `errors` are those that it has seen since it asked last."""
        exposure = self._limited_one(key)
        if exposure is None:
            return Allowance()
        watched = self._watched_one(key)
        watched.own_errors += errors
        self._judge_errors(key, exposure)
        found = None
        if (requests or keys or watched.count is None) and not watched.tripped:
            ask = self._asks(key, exposure, requests=requests, ahead=not spent, keys=keys)
            found = (await self._ask({key: ask})).get(key)
            self._judge_errors(key, exposure)
        if found is not None and found.count is not None:
            if spent and requests and not found.requests:
                self._trip(key, reached(exposure, "requests", found.count.requests))
            if len(found.keys) < len(keys):
                self._trip(key, reached(exposure, "keys", found.count.keys))
        return Allowance(
            requests=found.requests if found is not None else 0,
            errors=max(0, exposure.errors - watched.errors) if exposure.errors else 0,
            keys=list(found.keys) if found is not None else [],
            lease_s=watched.leased_s(exposure, self._clock()),
        )

    async def renew(self, keys: Collection[DenyKey]) -> None:
        """Raises `StoreUnavailable`."""
        if keys:
            await self._undisturbed(self._store.renew(keys))

    async def restart(self, keys: Collection[DenyKey]) -> None:
        """New counts for versions that are to be allowed again. Raises `StoreUnavailable`."""
        counts = {key: watched.count for key in keys if (watched := self._watched.get(key)) is not None}
        numbers = {key: count.number if (count := counts.get(key)) is not None else 0 for key in keys}
        await self._undisturbed(self._store.restart(numbers))
        for key in keys:
            self._watched.pop(key, None)

    def watching(self) -> Mapping[DenyKey, Watching]:
        """Every limited version that is not denied, as far as this replica knows."""
        found = {}
        for key, exposure in self._limited().items():
            watched = self._watched.get(key) or _Watched()
            count = watched.count
            found[key] = Watching(
                exposure=exposure,
                requests=count.requests if count is not None else 0,
                errors=watched.errors,
                keys=count.keys if count is not None else 0,
                lease_s=watched.leased_s(exposure, self._clock()),
            )
        return found

    async def aclose(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)  # each has a time-out of its own
        await self._store.aclose()

    def _asks(
        self,
        key: DenyKey,
        exposure: Exposure,
        *,
        requests: int = 0,
        ahead: bool = False,
        keys: tuple[bytes, ...] = (),
    ) -> Ask:
        watched = self._watched_one(key)
        return Ask(
            limit=exposure.requests,
            requests=requests if exposure.requests else 0,
            ahead=ahead,
            errors=watched.own_errors,
            keys_limit=exposure.keys,
            keys=keys if exposure.keys else (),
            seen=watched.count,
        )

    async def _ask(self, asks: Mapping[DenyKey, Ask]) -> dict[DenyKey, Found]:
        """Empty where the store cannot be asked."""
        sent_at = self._clock()
        try:
            found = await self._undisturbed(self._store.ask(asks))
        except StoreUnavailable as error:
            if not self.trouble:
                log.warning("no more exposure of limited versions: %s", error)
            self.trouble = f"limited versions are not exposed further: {error}"
            return {}
        self.trouble = ""
        for key, answer in found.items():
            watched = self._watched_one(key)
            if answer.count is None:
                if watched.count is asks[key].seen:  # else it was begun anew while this was under way
                    self._trip(key, lost())
            elif _is_newer(answer.count, watched.count):
                watched.take_in(answer.count, asks[key], sent_at, answer.now_us)
        return found

    def _judge_errors(self, key: DenyKey, exposure: Exposure) -> None:
        self._trip(key, reached(exposure, "errors", self._watched_one(key).errors))

    def _trip(self, key: DenyKey, trip: Trip | None) -> None:
        watched = self._watched_one(key)
        if trip is not None and not watched.tripped:
            watched.tripped = True
            self._on_trip(key, trip, watched.count)

    def _limited(self) -> dict[DenyKey, Exposure]:
        table = self._deliverer.tables.of(self._deliverer.held)
        return {
            DenyKey(name, digest): exposure
            for name, entry in table.items()
            for digest, exposure in entry.limited.items()
        }

    def _limited_one(self, key: DenyKey) -> Exposure | None:
        entry = self._deliverer.tables.of(self._deliverer.held).get(key.route)
        return entry.limited.get(key.digest) if entry is not None else None

    def _watched_one(self, key: DenyKey) -> _Watched:
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched()
        return watched

    async def _undisturbed(self, what: Coroutine[Any, Any, T]) -> T:
        """Goes on when its caller is cancelled, with its worker: a call of Redis must not be cut in two."""
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited was told


def _is_newer(found: Count, known: Count | None) -> bool:
    """Answers may overtake one another."""
    return known is None or (found.number, found.requests, found.keys) >= (
        known.number,
        known.requests,
        known.keys,
    )
