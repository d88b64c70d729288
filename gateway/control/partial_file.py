"""One file while it is fetched: hashed as it is written, and again from its start when it is resumed.

All of it blocks; callers on an event loop go through a thread.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, Self

from gateway.control.cached_version import CachedFile
from gateway.control.state_file import write_all
from registry_client.errors import IntegrityError
from registry_client.models import ModelFile, Scope

BUFFER_BYTES = 2**20
_VERIFIABLE = frozenset(("md5", "sha1", "sha224", "sha256", "sha384", "sha512"))


class PartialFile:
    """Open for writing at its end; `size_bytes` are there already."""

    def __init__(self, handle: int, file: ModelFile) -> None:
        self._handle = handle
        self._file = file
        self.size_bytes = 0
        self._restart_hashes()

    @classmethod
    def open(cls, root: Path, file: ModelFile, *, fresh: bool) -> Self:
        """Below `root`, a private directory. What is no plain file of our own there is replaced."""
        path = root / file.path
        _make_directories(root, path.parent)
        if fresh:
            path.unlink(missing_ok=True)
        partial = cls(_open(path), file)
        try:
            partial._take_up()
        except BaseException:
            partial.close()
            raise
        return partial

    def append(self, content: bytes) -> None:
        write_all(self._handle, content)
        self._hash(content)

    def restart(self) -> None:
        """Back to nothing."""
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self.size_bytes = 0
        self._restart_hashes()

    def finish(self) -> CachedFile:
        """Makes it durable. Raises `IntegrityError` where the bytes are not those that were promised."""
        os.fsync(self._handle)
        expected = self._file.size_bytes
        if expected is not None and expected != self.size_bytes:
            raise IntegrityError(f"{self._file.path!r} has {self.size_bytes} bytes, {expected} were promised")
        promised = self._file.digest
        if self._promised is not None and promised and self._promised.hexdigest() != promised.value.lower():
            raise IntegrityError(
                f"{self._file.path!r} has {promised.algorithm} {self._promised.hexdigest()}, "
                f"{promised.value} was promised"
            )
        return CachedFile(path=self._file.path, size_bytes=self.size_bytes, sha256=self._sha256.hexdigest())

    def close(self) -> None:
        os.close(self._handle)

    def _take_up(self) -> None:
        while chunk := os.read(self._handle, BUFFER_BYTES):
            self._hash(chunk)
        if self._file.size_bytes is not None and self.size_bytes > self._file.size_bytes:
            self.restart()

    def _hash(self, content: bytes) -> None:
        self._sha256.update(content)
        if self._promised is not None and self._promised is not self._sha256:
            self._promised.update(content)
        self.size_bytes += len(content)

    def _restart_hashes(self) -> None:
        self._sha256 = hashlib.sha256()
        self._promised = _promised_hash(self._file, self._sha256)


def hash_file(path: Path) -> str:
    """SHA-256 in hex; follows no link."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _promised_hash(file: ModelFile, sha256: Any) -> Any:
    """Counts along what the registry promised; None where that cannot be verified on the file's bytes."""
    promised = file.digest
    if promised is None or promised.scope is not Scope.CONTENT or promised.algorithm not in _VERIFIABLE:
        return None
    if promised.algorithm == "sha256":
        return sha256
    return hashlib.new(promised.algorithm, usedforsecurity=False)


def _make_directories(root: Path, directory: Path) -> None:
    at = root
    for part in directory.relative_to(root).parts:
        at = at / part
        try:
            at.mkdir(mode=0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(at).st_mode):
                at.unlink()
                at.mkdir(mode=0o700)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:  # a link, or something that cannot be opened so
        path.unlink()
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return handle
    os.close(handle)
    path.unlink()
    return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
