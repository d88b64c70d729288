"""What every store does alike with a replica's report of itself."""

from __future__ import annotations

import msgspec

from gateway.control.store import Member

FADES_S = 15
"""A replica that has not reported for this long is not live."""


class AppliedClock:
    """Remembers the store's time at which the content of a report first was true.

    The replica repeats its report as a heartbeat; the time of what it has applied stays the first one's.
    """

    def __init__(self) -> None:
        self._last: Member | None = None

    def known_us(self, member: Member) -> int:
        """0 where the content is new; what `member` brings along is believed."""
        if member.applied_us or self._last is None:
            return member.applied_us
        same = msgspec.structs.replace(self._last, applied_us=0) == member
        return self._last.applied_us if same else 0

    def keep(self, member: Member, applied_us: int) -> Member:
        """`member` with its time."""
        self._last = msgspec.structs.replace(member, applied_us=applied_us)
        return self._last
