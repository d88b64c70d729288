"""Which spans of a file are still missing, written down beside it, so that whoever comes next goes on there.

    partial/<release>/missing/<sha256 of the file's path>.json

Where there is such a note, the file may have gaps; where there is none, it is whole up to its end. All of it
blocks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.control import state_file

DIRECTORY = "missing"


class Span(msgspec.Struct):
    """Bytes of a file, from `start` up to `end`."""

    start: int
    end: int


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    inode: int
    """Of the file that it is about: another one has other gaps."""
    size_bytes: int
    validator: str
    spans: list[Span]


class MissingFile:
    """The note of one file below `root`. Its owner holds the lock on the release."""

    def __init__(self, root: Path, path: str) -> None:
        self._path = root.parent / DIRECTORY / f"{hashlib.sha256(path.encode()).hexdigest()}.json"

    def exists(self) -> bool:
        return self._path.exists()

    def read(self, handle: int, size_bytes: int) -> tuple[list[Span], str] | None:
        """(what is missing, the validator); None where it is not about this file or cannot be believed."""
        try:
            note = msgspec.json.decode(self._path.read_bytes(), type=_Note)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        status = os.fstat(handle)
        spans = [span for span in note.spans if span.start < span.end]
        # What nobody calls missing lies in the file: so it reaches as far as that at least.
        reach = size_bytes
        for span in sorted(spans, key=lambda span: -span.end):
            if span.end != reach:
                break
            reach = span.start
        sane = all(span.start >= 0 and span.end <= size_bytes for span in spans)
        known = (note.inode, note.size_bytes) == (status.st_ino, size_bytes)
        return (spans, note.validator) if sane and known and status.st_size >= reach else None

    def write(self, handle: int, size_bytes: int, spans: list[Span], validator: str) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        note = _Note(
            inode=os.fstat(handle).st_ino,
            size_bytes=size_bytes,
            validator=validator,
            spans=[span for span in spans if span.start < span.end],
        )
        state_file.replace(self._path, msgspec.json.encode(note))

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()


def remove_notes(root: Path) -> None:
    """All of a version whose files are whole."""
    shutil.rmtree(root.parent / DIRECTORY, ignore_errors=True)
