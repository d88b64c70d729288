"""The history's hash chain: what a line's head covers, and whether lines that were read still agree with theirs.

Each line holds the head before it and its own, a SHA-256 over the head before it and every other field. So no
line can be changed, removed, put in or moved without a later head, or the one that the state holds, telling of
it. What no chain can show alone is that somebody with write access to all of it has computed it anew from some
line on: for that, a head has to be noted elsewhere. Pure; `redis_scripts` computes the same in the server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.control.store import HistoryRecord, Line
from gateway.routing.state import Revision


def encode_changes(changes: Sequence[dict[str, Any]]) -> bytes:
    """The form in which they are written and hashed: keys stay in their order when it is read and written again."""
    return msgspec.json.encode(list(changes))


def told_sha256(op_id: str, actor: str, reason: str, changes: bytes) -> str:
    """Over what whoever makes the change tells of it, in hex; `changes` as `encode_changes` gives them."""
    return hashlib.sha256(msgspec.json.encode([op_id, actor, reason]) + changes).hexdigest()


def head_with(record: HistoryRecord) -> str:
    """The head of the chain with this line, in hex, from its `prev` and every field but `head`."""
    told = told_sha256(record.op_id, record.actor, record.reason, encode_changes(record.changes))
    fields = (
        *(record.prev, told, record.type),
        *(str(record.epoch), str(record.rev), str(record.us)),
        record.sha256,
    )
    return hashlib.sha256(b"".join(map(_counted, fields))).hexdigest()


def chained(record: HistoryRecord, prev: str) -> HistoryRecord:
    """The line as the next one after the head `prev`; "" begins a chain."""
    record = msgspec.structs.replace(record, prev=prev)
    return msgspec.structs.replace(record, head=head_with(record))


def _counted(field: str) -> bytes:
    """With its length in bytes before it, so that no two rows of fields are the same bytes."""
    raw = field.encode()
    return b"%d:%b" % (len(raw), raw)


class Noted(NamedTuple):
    """A head that was seen earlier, and so must be in the history."""

    head: str
    words: str
    """That follow "the head …", and say where it was seen."""
    revision: Revision | None = None
    """Where known: a line that is older than the oldest one left proves nothing."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What reading the whole history has shown."""

    lines: int
    unprotected: int
    """Of these: from before there was a chain. They may be as they were written, or not."""
    oldest: str = ""
    """Its revision; "" where there is no line."""
    oldest_us: int = 0
    newest: str = ""
    newest_us: int = 0
    head: str = ""
    """The newest line's: note it elsewhere, and later ask whether the history still holds it."""
    broken: str = ""
    """Where the chain breaks first, and how; "" where it is whole."""


class Verifier:
    """Reads lines from the oldest on, any number at a time, and then judges."""

    def __init__(self, noted: Sequence[Noted] = ()) -> None:
        self._missing = {each.head: each for each in noted}
        self._lines = self._unprotected = 0
        self._first: HistoryRecord | None = None
        self._last: HistoryRecord | None = None
        self._broken = ""

    def read(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._lines += 1
            self._broken = self._broken or self._trouble(line)
            if line.record is not None:
                self._first = self._first or line.record
                self._last = line.record
                self._unprotected += not line.record.head
                self._missing.pop(line.record.head, None)

    def verdict(self, head: str | None, kept: int) -> Verified:
        """`head`: the newest one as the state holds it, None where there is no state to hold one.

        `kept`: how many lines the store's own trimming always leaves.
        """
        first, last = self._first, self._last
        return Verified(
            lines=self._lines,
            unprotected=self._unprotected,
            oldest=_revision(first) if first else "",
            oldest_us=first.us if first else 0,
            newest=_revision(last) if last else "",
            newest_us=last.us if last else 0,
            head=last.head if last else "",
            broken=self._broken or self._begins_late(kept) or self._ends_early(head) or self._unseen(),
        )

    def _trouble(self, line: Line) -> str:
        record = line.record
        if record is None:
            return f"{line.where} is no line of a history: it was changed or put in by hand"
        name = f"{line.where} (revision {_revision(record)}, {record.type} by {record.actor[:80]})"
        before = self._last.head if self._last else None
        if not record.head:
            return (
                f"{name} has no hash, and the line before it has one: it was put in by hand" if before else ""
            )
        if head_with(record) != record.head:
            return f"{name} was changed: it does not agree with its own hash"
        if before == "" and self._last and not _may_follow(record, self._last):
            return f"{name} is of no later revision than {_revision(self._last)} before it, which has no hash"
        if before is not None and record.prev != before:
            return (
                f"{name} does not continue revision {_revision(self._last)} before it: there a line was removed, "
                "put in, moved or written anew"
            )
        return ""

    def _begins_late(self, kept: int) -> str:
        first = self._first
        if first is None or not first.head or self._lines >= kept:
            return ""
        if not first.prev and first.rev == 1:
            return ""
        return (
            f"the history begins with revision {_revision(first)}, and what was before is missing: trimming would "
            f"have left {kept} lines"
        )

    def _ends_early(self, head: str | None) -> str:
        last = self._last.head if self._last else ""
        if head is None or head == last:
            return ""
        end = (
            f"the history ends with revision {_revision(self._last)}"
            if self._last
            else "the history is empty"
        )
        if not head:
            return f"{end}, and the state has lost the head that belongs to it"
        return (
            f"{end}, and its head is not the state's {head}: lines were removed from its end, or added to it"
        )

    def _unseen(self) -> str:
        first = self._first
        for noted in self._missing.values():
            if first is None:
                return f"the head {noted.head[:80]} {noted.words} is not in the history, which is empty"
            if noted.revision is None or noted.revision >= (first.epoch, first.rev):
                return (
                    f"the head {noted.head[:80]} {noted.words} is not in the history: it was written anew since, "
                    f"or its line is older than revision {_revision(first)}, the oldest that is left"
                )
        return ""


def _may_follow(record: HistoryRecord, before: HistoryRecord) -> bool:
    """Whether their revisions allow it: every line but a reject begins a new one."""
    one, other = (record.epoch, record.rev), (before.epoch, before.rev)
    return one >= other if record.type == "reject" else one > other


def _revision(record: HistoryRecord | None) -> str:
    assert record is not None
    return str(Revision(record.epoch, record.rev))
