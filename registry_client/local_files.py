"""Local files below a root, reached without following a symlink on the way.

Each part of the path is opened relative to the directory before it with O_NOFOLLOW, so neither a link that is
there nor one that is put there meanwhile leads out. String checks on paths failed ONNX three times.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from registry_client.errors import (
    IntegrityError,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RegistryError,
    Unavailable,
)

CHUNK_BYTES = 1024 * 1024

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the opening of a FIFO would wait for a writer, before we can see that it is one.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_directory_below(root: Path, parts: Sequence[str]) -> int:
    """A descriptor of the directory. The root itself may be a symlink; nothing below it may.

    Raises `NotFound`, `PermissionDenied`, `ProtocolError` (a symlink or no directory), `Unavailable`.
    """
    where = Path(root, *parts)
    try:
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Unavailable(f"the registry's directory {root} does not exist: is it mounted?") from error
    except OSError as error:
        raise mapped(error, root) from error
    for part in parts:
        try:
            below = os.open(part, _DIRECTORY, dir_fd=handle)
        except OSError as error:
            raise mapped(error, where) from error
        finally:
            os.close(handle)
        handle = below
    return handle


@contextmanager
def directory_below(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """As `open_directory_below`, and closes it."""
    handle = open_directory_below(root, parts)
    try:
        yield handle
    finally:
        os.close(handle)


def open_file_below(root: Path, parts: Sequence[str]) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file, and its status. Raises as `open_directory_below`."""
    where = Path(root, *parts)
    with directory_below(root, parts[:-1]) as directory:
        try:
            handle = os.open(parts[-1], _FILE, dir_fd=directory)
        except OSError as error:
            raise mapped(error, where) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ProtocolError(f"{where} is not a regular file")
    return handle, status


def read_file_below(root: Path, parts: Sequence[str], limit_bytes: int) -> bytes:
    """The whole of a small file. Raises `ProtocolError` if it is longer than the limit."""
    handle, status = open_file_below(root, parts)
    with os.fdopen(handle, "rb") as file:
        if status.st_size > limit_bytes:
            raise ProtocolError(f"{Path(root, *parts)} is longer than {limit_bytes} bytes")
        return file.read(limit_bytes)


def hash_file_below(root: Path, parts: Sequence[str]) -> tuple[str, os.stat_result]:
    """SHA-256 in hex, and the status that it belongs to.

    Raises `Unavailable` if the file was written to meanwhile: the digest would be of no state it ever had.
    """
    handle, before = open_file_below(root, parts)
    with os.fdopen(handle, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Unavailable(f"{Path(root, *parts)} is being written to; try again when it is complete")
    return sha256, after


def mapped(error: OSError, where: Path) -> RegistryError:
    """The registry error for an error of the operating system."""
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return ProtocolError(f"{where} is, or lies behind, a symlink: these are not followed")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{where} does not exist")
    if isinstance(error, NotADirectoryError):
        # Linux says ENOTDIR, not ELOOP, for a symlink where a directory is asked for.
        return ProtocolError(f"{where} is, or lies behind, something that is no directory (a symlink?)")
    if isinstance(error, PermissionError):
        return PermissionDenied(f"{where} may not be read by this process")
    if error.errno == errno.EIO:
        return IntegrityError(f"{where} cannot be read: {error.strerror}")
    return Unavailable(f"{where}: {error.strerror}")
