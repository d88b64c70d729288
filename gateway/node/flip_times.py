"""How long this replica takes from a change's commit to its last worker's swap."""

from __future__ import annotations

from collections.abc import Callable

from gateway.control.store import Member
from gateway.routing.state import InForce, Revision


class FlipTimes:
    """Compares two times of the store's own clock, so that no clock of a host matters.

    `observe` gets seconds, once for each revision that every worker has. What a replica starts with is no
    flip: it may be a year old.
    """

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._newest: Revision | None = None

    def note(self, held: InForce, member: Member, applied_us: int) -> None:
        """`member` is the report of `held`, and `applied_us` what the store answered to it."""
        whole = 0 < member.workers_total == member.workers_ok
        if not whole or held.revision == self._newest:
            return
        if self._newest is not None and held.commit_us:
            # A fail-over may lead to a clock that is behind.
            self._observe(max(0, applied_us - held.commit_us) / 1e6)
        self._newest = held.revision
