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
from gateway.control.store import HistoryRecord
from gateway.routing.state import Revision

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

    def settle(self, in_force: Revision | None) -> None:
        """Catches up with the file and cuts off what a killed writer left after the last commit."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._forget()
            return
        if status.st_ino != self._inode or status.st_size < self._end:
            self._forget()
            self._inode = status.st_ino
        lines = list(_lines(self._path, self._end))
        if lines and (last := lines[-1][1]) is not None and _after(last, in_force):
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
    def last_epoch(self) -> int:
        """The highest epoch that was ever begun here, or 0."""
        return self._last_epoch

    def append(self, record: HistoryRecord) -> None:
        """Durable when it returns. On an `OSError` nothing of the line stays, where the disk allows that."""
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

    def undo(self) -> None:
        """Takes back what was appended since the last `settle`."""
        if self._path.exists():
            self._truncate()

    def compact(self) -> None:
        """Keeps the file bounded."""
        if len(self._records) < 2 * self._kept_lines:
            return
        kept = self._records[-self._kept_lines :]
        state_file.replace(self._path, b"".join(msgspec.json.encode(record) + b"\n" for record in kept))
        self._forget()

    def committed(self, in_force: Revision | None, limit: int) -> list[HistoryRecord]:
        """The newest first, without the store's lock and without the lines that never came into force."""
        if not self._path.exists():
            return []
        records = [record for _, record in _lines(self._path, 0) if record is not None]
        if records and _after(records[-1], in_force):
            records.pop()
        return records[: -limit - 1 : -1]

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


def _after(record: HistoryRecord, in_force: Revision | None) -> bool:
    """Whether the line tells of a change that never came about.

    Without a state only a first change can be under way. Older lines then tell of a state that was lost or
    set aside, and stay.
    """
    if in_force is None:
        return record.rev == 1 and record.type in ("put", "restore")
    return (record.epoch, record.rev) > in_force


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
