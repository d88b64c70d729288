"""What is wrong between a replica and its store, each kind with its beginning and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import StrEnum

log = logging.getLogger(__name__)

SAID_KEPT = 20


class Trouble(StrEnum):
    """The kinds, as `turnout_control_plane_trouble` names them."""

    UNREACHABLE = "unreachable"
    """It does not answer, or refuses to be read."""
    UNWATCHED = "unwatched"
    """It can be read and its streams cannot: changes are seen by looking, signals are not seen at all."""
    UNWRITABLE = "unwritable"
    """It takes no acknowledgements, or no answers to signals."""
    UNPUBLISHED = "unpublished"
    """It takes no denies."""
    DAMAGED = "damaged"
    """Its document cannot be used here: edited by hand, or of a newer release."""
    EMPTIED = "emptied"
    REGRESSED = "regressed"
    FORK = "fork"


REFUSALS = (Trouble.FORK, Trouble.REGRESSED, Trouble.DAMAGED)
"""A state of the store that is not taken here: in the acknowledgement it is a NACK."""


class Troubles:
    """A line in the log when one begins, and one when it is over, of one level: who saw the one sees the other.

    `on_change` is told of both.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._texts: dict[Trouble, str] = {}
        self._said: dict[Trouble, set[str]] = {}

    def begin(self, kind: Trouble, text: str) -> bool:
        """Whether this was news. A cause that comes and goes is said once, until the trouble is over."""
        changed = self._texts.get(kind) != text
        self._texts[kind] = text
        said = self._said.setdefault(kind, set())
        news = text not in said and len(said) < SAID_KEPT
        if news:
            said.add(text)
            log.warning("%s", text)
        if changed:
            self._on_change()
        return news

    def end(self, *kinds: Trouble) -> None:
        for kind in kinds:
            if self._texts.pop(kind, None) is not None:
                if self._said.pop(kind, None):
                    log.warning("over: the store was %s", kind.value)
                self._on_change()

    def expect(self, kind: Trouble, text: str) -> None:
        """As it is before anything has happened: so, and not worth a line."""
        self._texts[kind] = text

    def __contains__(self, kind: Trouble) -> bool:
        return kind in self._texts

    @property
    def texts(self) -> list[str]:
        return list(self._texts.values())

    def first(self, kinds: Iterable[Trouble]) -> str:
        """The text of the first of these kinds that there is, "" without any."""
        return next((self._texts[kind] for kind in kinds if kind in self._texts), "")


__all__ = ["REFUSALS", "Trouble", "Troubles"]
