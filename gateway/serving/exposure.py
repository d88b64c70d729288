"""What this worker may still expose of limited versions: integers that are counted down on a request's way.

Nothing here waits. An allowance comes from the supervisor, which takes it out of the fleet's count; while there
is none, the route's fallback answers. So one that is lost with its worker is never given twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

import msgspec

from gateway.routing.state import DenyKey, Exposure
from gateway.routing.table import RouteEntry
from gateway.serving.tensors import InferenceError

FIRST_WANT, MOST_WANT = 2, 4096
"""Requests that a worker asks to be allowed: more each time that they were used up within `BRISK_S`."""
BRISK_S = 0.5
PAUSE_S = 0.25
"""Before a worker asks again that was given nothing."""
LEASE_LOOK_S = 1.0
KEYS_PENDING = 1024
KEY_BYTES = 16
NO_ERRORS_LIMIT = 1 << 62


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker asks of its supervisor for one version."""

    route: str
    digest: str
    requests: int
    spent: bool
    """A request came and found nothing left: where no more is to be had, the limit is reached."""
    errors: int
    """Since it asked last."""
    keys: list[bytes]
    """Hashes of keys that were never seen here."""


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """What it is given."""

    requests: int = 0
    errors: int = 0
    """How many more are bearable, as far as the supervisor knows."""
    keys: list[bytes] = []
    """Of those that were asked for: the ones that may see the version."""
    lease_s: float = 0.0
    """What is left of the lease."""


Ask = Callable[[Wanted], Awaitable[Allowed]]
"""Raises `InferenceError` where there is nobody to ask."""


class Quota:
    """One limited version of one route in this worker. Used on the event loop only."""

    def __init__(self, key: DenyKey, exposure: Exposure, ask: Ask, clock: Callable[[], float]) -> None:
        self._key = key
        self.exposure = exposure
        self._ask = ask
        self._clock = clock
        self._left = 0
        self._want = FIRST_WANT
        self._low = 0
        self._given_at = 0.0
        self._spent = False
        self._errors = 0
        """Not told to the supervisor yet."""
        self._errors_left = exposure.errors or NO_ERRORS_LIMIT
        self._keys: set[bytes] = set()
        self._unknown: set[bytes] = set()
        self._leased_until = 0.0
        self._look_at = 0.0
        self._due = False
        self._retired = False
        self._asking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def by_key(self) -> bool:
        """Whether a request's sticky key decides with."""
        return self.exposure.keys > 0

    def change(self, exposure: Exposure) -> None:
        """Other limits on the same count."""
        if exposure != self.exposure:
            self.exposure = exposure
            self._errors_left = exposure.errors or NO_ERRORS_LIMIT
            self.ask()

    def spend(self, key: bytes | None = None) -> bool:
        """Whether the version may answer one more request, which is counted by that."""
        exposure = self.exposure
        if self._errors >= self._errors_left or self._retired:
            return False
        if exposure.lease_ms and not self._is_leased():
            return False
        if exposure.keys and not self._knows(key):
            return False
        if exposure.requests:
            if not self._left:
                self._spent = True
                self.ask()
                return False
            self._left -= 1
            if self._left <= self._low:
                self.ask()
        return True

    def failed(self) -> None:
        """The version answered a request with 500 or more."""
        if self.exposure.errors:
            self._errors += 1
            self.ask()

    def retire(self) -> None:
        """What is left is never used: the version is denied, or limited no more."""
        self._retired = True
        self._left = 0
        if self._timer is not None:
            self._timer.cancel()

    def ask(self) -> None:
        """Asks the supervisor, now or when it may be asked again."""
        self._due = True
        if self._asking is None and self._timer is None and not self._retired:
            self._asking = asyncio.get_running_loop().create_task(self._run())

    def _is_leased(self) -> bool:
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LEASE_LOOK_S
            self.ask()
        return now < self._leased_until

    def _knows(self, key: bytes | None) -> bool:
        if key is None:
            return False  # it cannot be counted
        short = hashlib.blake2b(key, digest_size=KEY_BYTES).digest()
        if short in self._keys:
            return True
        if len(self._unknown) < KEYS_PENDING:
            self._unknown.add(short)
        self.ask()
        return False

    async def _run(self) -> None:
        try:
            while self._due and not self._retired:
                self._due = False
                if not await self._ask_once():
                    self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._pause_is_over)
                    return
        finally:
            self._asking = None

    def _pause_is_over(self) -> None:
        self._timer = None
        if self._due:
            self.ask()

    async def _ask_once(self) -> bool:
        """Whether it helped."""
        unknown = list(self._unknown)
        wanted = Wanted(
            route=self._key.route,
            digest=self._key.digest,
            requests=self._wants() if self.exposure.requests and self._left <= self._low else 0,
            spent=self._spent,
            errors=self._errors,
            keys=unknown,
        )
        sent_at = self._clock()
        try:
            allowed = await self._ask(wanted)
        except InferenceError:
            self._due = True
            return False
        self._errors -= wanted.errors
        self._errors_left = allowed.errors if self.exposure.errors else NO_ERRORS_LIMIT
        self._keys.update(allowed.keys)
        self._unknown.difference_update(unknown)
        self._leased_until = sent_at + allowed.lease_s
        if allowed.requests:
            self._left += allowed.requests
            self._low = allowed.requests // 2
            self._given_at, self._spent = sent_at, False
        elif wanted.requests:
            self._low = 0  # there may be no more: use what is left before asking again
        return not (wanted.spent and not allowed.requests) and not (unknown and not allowed.keys)

    def _wants(self) -> int:
        if self._given_at:
            brisk = self._clock() - self._given_at < BRISK_S
            self._want = min(MOST_WANT, self._want * 2) if brisk else max(FIRST_WANT, self._want // 2)
        return self._want


async def nobody(_: Wanted) -> Allowed:
    """Whom a worker without a supervisor asks."""
    return Allowed()


class Quotas:
    """Every limited version of this worker."""

    def __init__(self, ask: Ask = nobody, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._by_route: dict[str, dict[str, Quota]] = {}

    def of(self, entry: RouteEntry) -> dict[str, Quota]:
        """By digest, of all versions that the entry limits; those that it does not, any more, are retired."""
        limited, known = entry.limited, self._by_route.get(entry.name)
        if not limited and not known:
            return {}
        quotas = {}
        for digest, exposure in limited.items():
            quota = (known or {}).get(digest)
            if quota is None:
                quota = Quota(DenyKey(entry.name, digest), exposure, self._ask, self._clock)
                quota.ask()
            else:
                quota.change(exposure)
            quotas[digest] = quota
        self.forget(entry.name, but=quotas)
        if quotas:
            self._by_route[entry.name] = quotas
        return quotas

    def forget(self, route: str, but: dict[str, Quota] | None = None) -> None:
        """Retires the quotas of a route."""
        for digest, quota in self._by_route.pop(route, {}).items():
            if digest not in (but or {}):
                quota.retire()
