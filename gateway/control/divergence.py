"""What a state of the store means to a replica that holds another: newer, or from another line of revisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from gateway.control.store import HistoryRecord
from gateway.routing.state import EMPTY, Deny, DenyKey, InForce


class Verdict(StrEnum):
    """What a state of the store means to a replica that holds another."""

    TAKE = "take"
    """It is newer, or the same with other denies."""
    NOTHING = "nothing"
    FORK = "fork"
    """Another document under the same revision: two sides of a fail-over, or a write past the compare-and-set."""
    REGRESSED = "regressed"
    """The store lost writes that were in force here."""
    EMPTIED = "emptied"
    """The store has nothing; never "no routes"."""


DIVERGED = (Verdict.FORK, Verdict.REGRESSED, Verdict.EMPTIED)
"""The local state is kept; a person says which one is right, with `turnout restore` or `turnout adopt`."""

_SAYS = {
    Verdict.FORK: "the store, at revision {stored}, has another document under revision {held}: the local one "
    "is kept. Which is right? turnout adopt takes the store's, turnout restore gives it this replica's",
    Verdict.REGRESSED: "the store went back to revision {stored}: the local revision {held} is kept. "
    "Give it to the store with turnout restore, or take the store's with turnout adopt",
    Verdict.EMPTIED: "the store is empty: the local revision {held} is kept and goes on being served. "
    "Give it to the store with turnout restore",
}


class Finding(NamedTuple):
    verdict: Verdict
    lost: dict[DenyKey, Deny]
    """Denies that are held here and that the store never had, or lost."""


def judge(held: InForce, stored: InForce | None, *, apart: bool = False) -> Verdict:
    """Pure: the table of the control plane's protocol.

    `apart`: the store's revisions of this epoch are known to be of another line, so a higher one is no newer.
    """
    if stored is None:
        return Verdict.NOTHING if held is EMPTY or not held.state.routes else Verdict.EMPTIED
    if stored.revision < held.revision:
        return Verdict.REGRESSED
    if stored.revision > held.revision:
        same_epoch = stored.revision.epoch == held.revision.epoch
        return Verdict.FORK if apart and same_epoch else Verdict.TAKE
    if stored.state.encoded != held.state.encoded:
        return Verdict.FORK
    return Verdict.NOTHING if stored.denies.keys() == held.denies.keys() else Verdict.TAKE


def explain(verdict: Verdict, held: InForce, stored: InForce | None) -> str:
    """In words, with what to do; "" where all is well."""
    there = stored.revision if stored is not None else None
    return _SAYS[verdict].format(held=held.revision, stored=there) if verdict in _SAYS else ""


def left_the_line(held: InForce, records: Iterable[HistoryRecord]) -> bool:
    """Whether the store's history came by another document under the revision that is held."""
    return any(
        (record.epoch, record.rev) == held.revision and record.sha256 != held.state.sha256
        for record in records
        if record.sha256
    )


def other_changes(held: InForce, records: Sequence[HistoryRecord]) -> bool:
    """Whether the store came by another change under the revision that is held: of denies, where the document is
    the same. Refused signals are lines of that revision as well, so the head that is held may be any of theirs.
    """
    heads = {record.head for record in records if (record.epoch, record.rev) == held.revision}
    # All of its lines must be there: the one that is held may be older than a flood of refusals.
    whole = any((record.epoch, record.rev) < held.revision for record in records)
    return whole and bool(held.head and heads - {""}) and held.head not in heads


def lifted_since(held: InForce, records: Sequence[HistoryRecord]) -> set[str] | None:
    """Which denies were lifted after the revision that is held, each as its key's text; a route alone stands for all
    of its. None where the history does not reach back to that, or a line does not say of which. A restore lifts
    none."""
    if not any((record.epoch, record.rev) <= held.revision for record in records):
        return None
    lifts = [
        record for record in records if record.type == "undeny" and (record.epoch, record.rev) > held.revision
    ]
    if not all(record.changes for record in lifts):
        return None
    return {
        name
        for record in lifts
        for change in record.changes
        # Earlier releases did not write down which.
        for name in change.get("lifted", [change["route"]])
    }


class Divergence:
    """Remembers that the store's line left this replica's, until they meet again or a new epoch begins."""

    def __init__(self) -> None:
        self.verdict = Verdict.NOTHING
        self._apart = False
        self._denies_apart = False
        self._met: set[DenyKey] = set()

    @property
    def apart(self) -> bool:
        """Whether the store's line may be another than this replica's."""
        return self._apart or self._denies_apart

    def part(self) -> None:
        """What the store has in this epoch is not what comes after the revision that is held."""
        self._apart = True

    def part_denies(self) -> None:
        """The store's document is what comes after the one that is held; its denies may not be."""
        self._denies_apart = True

    def judge(self, held: InForce, stored: InForce | None) -> Verdict:
        return judge(held, stored, apart=self._apart)

    def look(self, held: InForce, stored: InForce | None, lifted: Collection[str] | None = None) -> Finding:
        """As `judge`, and remembers it. `lifted`: as `lifted_since` found in the store's history; None where it was
        not asked."""
        self.verdict = verdict = self.judge(held, stored)
        # A store that went back goes on from there, and by its revision will look newer than what it lost.
        self._denies_apart |= verdict in DIVERGED
        lost = self._lost(held, stored, lifted) if stored is not None else {}
        if verdict not in DIVERGED:
            self._apart = self._denies_apart = False
            self._met.clear()
            return Finding(verdict, lost)
        # Behind with the same document is only behind: there is nothing but denies that could be lost.
        self._apart |= stored is None or stored.state.encoded != held.state.encoded
        if stored is not None:
            self._met |= stored.denies.keys()
        return Finding(verdict, lost)

    def _lost(self, held: InForce, stored: InForce, lifted: Collection[str] | None) -> dict[DenyKey, Deny]:
        return {
            key: deny
            for key, deny in held.denies.items()
            if key not in stored.denies and self._is_lost(key, deny, held, stored, lifted)
        }

    def _is_lost(
        self, key: DenyKey, deny: Deny, held: InForce, stored: InForce, lifted: Collection[str] | None
    ) -> bool:
        """Whether the store never had this deny, or lost it; else somebody has lifted it there."""
        if deny.rev == 0:
            return True
        if self.apart:
            # Revisions of two lines do not compare; what was in the store's since, was lifted there.
            return key not in self._met
        if stored.revision.epoch == held.revision.epoch and deny.rev > stored.revision.rev:
            return True
        if lifted is not None:
            # By hand, in a fail-over, by a server that was short of memory: nobody lifts a deny without a line.
            return str(key) not in lifted and key.route not in lifted
        if stored.revision.epoch == held.revision.epoch:
            return False
        # An epoch that continues this one knew all up to its base. Of any other nobody here can say what it
        # knew, and a deny too many is the safe side.
        return stored.base.epoch != held.revision.epoch or deny.rev > stored.base.rev


__all__ = [
    "DIVERGED",
    "Divergence",
    "Finding",
    "Verdict",
    "explain",
    "judge",
    "left_the_line",
    "other_changes",
]
