"""How many connections each worker has, in memory that all of them share: new ones go where the fewest are."""

from __future__ import annotations

SLOT_BYTES = 8


class Balance:
    """One worker's view. Writes its own slot only, so no lock is needed; a slot of 0 does not accept.

    Without it one worker gets most of a burst, and keeps it for as long as its clients keep their connections:
    of 64 that were opened at once two workers had 20 and 44, 11 and 53, 0 and 64.
    """

    def __init__(self, memory: memoryview, index: int) -> None:
        self._slots = memory.cast("B").cast("Q")
        self._index = index

    def accepts(self, connections: int) -> None:
        """This worker accepts, and has so many connections."""
        self._slots[self._index] = connections + 1

    def leaves(self) -> None:
        """This worker accepts no more."""
        self._slots[self._index] = 0

    def is_my_turn(self) -> bool:
        """Whether no worker that accepts has fewer connections."""
        mine = self._slots[self._index]
        return not any(0 < other < mine for other in self._slots)
