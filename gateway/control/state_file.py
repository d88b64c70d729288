"""The local state file: the embedded store's document, and the mirror of a shared one.

All of it blocks; callers on an event loop go through a thread.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gateway.routing.documents import Documents
from gateway.routing.state import InForce, decode_in_force, encode_in_force


class Signature(NamedTuple):
    """Differs after every replacement of the file: a new inode comes with each."""

    mtime_ns: int
    inode: int
    size_bytes: int


def signature(path: Path) -> Signature | None:
    """None while there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Signature(status.st_mtime_ns, status.st_ino, status.st_size)


def read(path: Path, documents: Documents | None = None) -> InForce | None:
    """None while there is no file. Raises `StateError` where it is damaged, and leaves it where it is.

    The file's owner then calls `set_aside`; a mere reader keeps what it holds. Who reads again and again has
    `documents`.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    return documents.in_force(raw) if documents is not None else decode_in_force(raw)


def write(path: Path, held: InForce) -> None:
    """Replaces the file whole and durably, or, with an `OSError`, not at all."""
    replace(path, encode_in_force(held))


def replace(path: Path, content: bytes | memoryview) -> None:
    """A reader sees the old bytes or the new ones, also after a loss of power. The mode is 0600."""
    temporary = _temporary(path)
    try:
        _write_new(temporary, content)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def set_aside(path: Path) -> Path | None:
    """Renames a damaged file to `<name>.damaged-<n>` and returns where it lies; None if it is gone."""
    n = 1
    while (aside := path.with_name(f"{path.name}.damaged-{n}")).exists():
        n += 1
    try:
        path.rename(aside)
    except FileNotFoundError:
        return None
    sync_directory(path.parent)
    return aside


def sweep(path: Path) -> None:
    """Removes what writers left that were killed. Only for the file's one owner, before it writes."""
    for leftover in path.parent.glob(f".{path.name}.tmp-*"):
        with suppress(FileNotFoundError):
            leftover.unlink()


def sync_directory(directory: Path) -> None:
    """Makes a rename in the directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, content: bytes | memoryview) -> None:
    """`os.write` may stop early, at a limit or on a full disk; the next call then says why."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")


def _write_new(path: Path, content: bytes | memoryview) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write_all(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)
