"""How far each limited version was exposed, over all replicas: counts beside the state, and its leases.

No change of them is a revision: they count up with the traffic. What they lead to, a deny, is one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec

from gateway.routing.exposure import Count
from gateway.routing.state import DenyKey

SHARE, SHARE_AHEAD = 8, 64
"""Of what is left, one part of so many is given at once: what a dead worker or an idle one never uses stays
small. The smaller part is for those that nobody has asked yet."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica asks for one version, and tells of it."""

    limit: int = 0
    """Requests that may be given in all; 0: they are not limited."""
    requests: int = 0
    """That are wanted now."""
    ahead: bool = False
    """Nobody needs them yet: where little is left, none are given."""
    errors: int = 0
    """Of this replica, in the count that it has seen."""
    keys_limit: int = 0
    keys: tuple[bytes, ...] = ()
    """Hashes of sticky keys that want to see the version."""
    seen: Count | None = None
    """The latest that this replica knows: where the store has less, it has lost some of it."""


class Found(msgspec.Struct, frozen=True):
    """What the store answers."""

    count: Count | None
    """After what was given now. None where it does not follow from what was seen: nothing is given then."""
    requests: int
    """Given."""
    keys: tuple[bytes, ...]
    """Of those that were asked for: the ones that may."""
    now_us: int
    """By the store's clock."""


class ExposureStore(Protocol):
    """Every method may raise `StoreUnavailable`. What was given when the answer is lost is never given again."""

    async def ask(self, asks: Mapping[DenyKey, Ask]) -> dict[DenyKey, Found]:
        """Each whole or not at all. A version that was never asked for begins its count, and its lease, now."""

    async def renew(self, keys: Collection[DenyKey]) -> None:
        """The leases of these begin anew, by the store's clock."""

    async def restart(self, numbers: Mapping[DenyKey, int]) -> None:
        """Begins new counts, and leases, with numbers above these and above those that there are.

        A version that was never counted stays so where its number is 0.
        """

    async def aclose(self) -> None: ...
