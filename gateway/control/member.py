"""What every store does alike with a replica's report of itself."""

from __future__ import annotations

import msgspec

from gateway.control.store import Member

FADES_S = 15
"""A replica that has not reported for this long is not live."""


class AppliedClock:
    """Stamps a report with the store's time at which its content first was true.

    The replica repeats its report as a heartbeat; the time of what it has applied stays the first one's.
    """

    def __init__(self) -> None:
        self._last: Member | None = None

    def stamp(self, member: Member, now_us: int) -> Member:
        """`member` itself where it brings a time along."""
        if member.applied_us:
            return member
        if self._last is None or msgspec.structs.replace(self._last, applied_us=0) != member:
            self._last = msgspec.structs.replace(member, applied_us=now_us)
        return self._last
