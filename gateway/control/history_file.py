"""The embedded store's history: one JSON line a change, in the order of the changes.

A line is written before the state that it tells of, so the last ones may tell of a change that never came
about: who reads gives the revision that is in force, and later lines do not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.control import state_file
from gateway.control.chain import chained
from gateway.control.store import HistoryRecord, Line
from gateway.routing.state import InForce, Revision

_RECORD = msgspec.json.Decoder(HistoryRecord)
"""Made before there are threads: see `gateway.routing.state`."""
KEPT_LINES = 10_000
"""How many changes, and so op ids, are remembered. The file is cut when it holds twice as many."""


class HistoryFile:
    """Everything but `committed` expects the caller to hold the store's lock."""

    def __init__(self, path: Path, kept_lines: int = KEPT_LINES) -> None:
        self._path = path
        self._kept_lines = kept_lines
        self._records: list[HistoryRecord] = []
        self._ops: dict[str, Revision] = {}
        # What was parsed already, so that a commit does not read the whole file again.
        self._inode = 0
        self._end = 0
        self._last_epoch = 0

    def settle(self, in_force: InForce | None, *, unreadable: bool = False) -> None:
        """Catches up with the file and cuts off what a killed writer left after the last commit.

        `unreadable`: there is a state and it does not tell its revision, so all lines stay.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._forget()
            return
        if status.st_ino != self._inode or status.st_size < self._end:
            self._forget()
            self._inode = status.st_ino
        lines = list(_lines(self._path, self._end))
        last = lines[-1][1] if lines else None
        if last is not None and not unreadable and _uncommitted(last, in_force):
            self._last_epoch = max(self._last_epoch, last.epoch)
            lines.pop()  # at most one: every writer settles before it appends
        for length, record in lines:
            self._end += length
            if record is not None:
                self._remember(record)
        if status.st_size > self._end:
            self._truncate()

    def find(self, op_id: str, epoch: int) -> Revision | None:
        """What the change with this id led to, in this life of the store."""
        found = self._ops.get(op_id)
        return found if found is not None and found.epoch == epoch else None

    @property
    def kept_lines(self) -> int:
        """How many lines are always left."""
        return self._kept_lines

    @property
    def last_epoch(self) -> int:
        """The highest epoch that was ever begun here, or 0."""
        return self._last_epoch

    def append(self, record: HistoryRecord, in_force: InForce | None) -> str:
        """The chain's new head. The line is durable when it returns; on an `OSError` nothing of it stays, where
        the disk allows that.

        It continues the head that the state holds: were it that of the last line, the next change would hide
        that lines were removed. Only where the state was lost does it continue the lines that are left.
        """
        last = self._records[-1].head if self._records else ""
        record = chained(record, in_force.head if in_force is not None else last)
        line = msgspec.json.encode(record) + b"\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            state_file.write_all(handle, line)
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, self._end)
            raise
        finally:
            os.close(handle)
        return record.head

    def undo(self) -> None:
        """Takes back what was appended since the last `settle`."""
        if self._path.exists():
            self._truncate()

    def compact(self, in_force: InForce) -> None:
        """Keeps the file bounded."""
        if len(self._records) < 2 * self._kept_lines:
            return
        self.settle(in_force)  # with the line of the change that has just come into force
        kept = self._records[-self._kept_lines :]
        state_file.replace(self._path, b"".join(msgspec.json.encode(record) + b"\n" for record in kept))
        self._forget()

    def committed(self, in_force: InForce | None, limit: int) -> list[HistoryRecord]:
        """The newest first, without the store's lock and without the lines that never came into force."""
        records = [line.record for line in self.lines(in_force) if line.record is not None]
        if records and _after(records[-1], in_force):  # several changes came since the state was read
            records.pop()
        return records[: -limit - 1 : -1]

    def lines(self, in_force: InForce | None) -> list[Line]:
        """All of them, the oldest first, without one that never came into force."""
        if not self._path.exists():
            return []
        numbered = enumerate(_lines(self._path, 0), 1)
        lines = [Line(f"line {number}", record) for number, (_, record) in numbered]
        if lines and (last := lines[-1].record) is not None and _uncommitted(last, in_force):
            lines.pop()
        return lines

    def _remember(self, record: HistoryRecord) -> None:
        self._records.append(record)
        self._last_epoch = max(self._last_epoch, record.epoch)
        if record.op_id:
            self._ops.setdefault(record.op_id, Revision(record.epoch, record.rev))

    def _forget(self) -> None:
        self._records, self._ops, self._inode, self._end = [], {}, 0, 0

    def _truncate(self) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(handle, self._end)
            os.fsync(handle)
        finally:
            os.close(handle)


def _uncommitted(record: HistoryRecord, in_force: InForce | None) -> bool:
    """Whether the line tells of a change that never came about: the state still holds the head before it."""
    if in_force is not None and in_force.head and record.head:
        return record.prev == in_force.head
    return _after(record, in_force)


def _after(record: HistoryRecord, in_force: InForce | None) -> bool:
    """The same by revisions alone.

    Without a state only a first change can be under way. Older lines then tell of a state that was lost or
    set aside, and stay.
    """
    if in_force is None:
        return record.rev == 1 and record.type in ("put", "restore")
    return (record.epoch, record.rev) > in_force.revision


def _lines(path: Path, start: int) -> Iterator[tuple[int, HistoryRecord | None]]:
    """(length in bytes, record) of each whole line; None for one that is unreadable."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield len(line), _decode(line)


def _decode(line: bytes) -> HistoryRecord | None:
    try:
        return _RECORD.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
