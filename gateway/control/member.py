"""What every store does alike with a replica's report of itself."""

from __future__ import annotations

import msgspec

from gateway.control.store import Member

FADES_S = 15
"""A replica that has not reported for this long is not live."""
LOST_S = 600
"""For so long it is named all the same: it may be frozen or cut off, and go on answering by what it had."""
LOST = "LOST"
"""Its status then; `error` says for how long it has been silent."""


def is_live(member: Member) -> bool:
    """Whether it reported lately."""
    return member.status != LOST


def lost(member: Member, silent_s: int) -> Member:
    """What it said last, as of one that says nothing any more."""
    return msgspec.structs.replace(member, status=LOST, error=f"silent for {silent_s} s")


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
