"""One file while it is fetched: hashed as it is written, and again from its start when it is resumed.

It grows at its end, or in spans that come side by side; then the hash follows behind the first one that is
missing, and reads back what lies in the page cache still. All of it blocks; callers on an event loop go
through a thread.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, Self

from gateway.control.cached_version import CachedFile
from gateway.control.missing_spans import MissingFile, Span
from gateway.control.state_file import write_all
from registry_client.errors import IntegrityError
from registry_client.models import ModelFile, Scope

BUFFER_BYTES = 2**20
_VERIFIABLE = frozenset(("md5", "sha1", "sha224", "sha256", "sha384", "sha512"))


class PartialFile:
    """Open for writing; `size_bytes` from its start are there already, and hashed."""

    def __init__(self, handle: int, file: ModelFile, missing: MissingFile) -> None:
        self._handle = handle
        self._file = file
        self._missing = missing
        self.size_bytes = 0
        self.spans: list[Span] = []
        """What is missing, where it is fetched in spans; their starts move on as they are filled."""
        self.validator = ""
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._restart_hashes()

    @classmethod
    def open(cls, root: Path, file: ModelFile, *, fresh: bool) -> Self:
        """Below `root`, a private directory. What is no plain file of our own there is replaced."""
        path = root / file.path
        _make_directories(root, path.parent)
        missing = MissingFile(root, file.path)
        if fresh:
            path.unlink(missing_ok=True)
            missing.remove()
        partial = cls(_open(path), file, missing)
        try:
            partial._take_up()
        except BaseException:
            partial.close()
            raise
        return partial

    def append(self, content: bytes | memoryview) -> None:
        write_all(self._handle, content)
        self._hash(content)

    @property
    def held_bytes(self) -> int:
        """What needs not be fetched any more."""
        if not self.spans:
            return self.size_bytes
        return (self._file.size_bytes or 0) - sum(span.end - span.start for span in self.spans)

    @property
    def gaps(self) -> list[Span]:
        """The spans of which something is missing, in order."""
        return [span for span in self.spans if span.start < span.end]

    def divide(self, spans: list[Span], validator: str) -> None:
        """From now on it is filled in `spans`, all of which are missing, of the file that `validator` names."""
        self.spans, self.validator = spans, validator
        self.keep_spans()

    def write_into(self, span: Span, content: bytes | memoryview) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._handle, view, span.start)
            span.start += written
            view = view[written:]

    def hash_on(self, limit_bytes: int) -> bool:
        """Hashes up to `limit_bytes` more of what is there without a gap; whether there was any."""
        edge = min((span.start for span in self.gaps), default=self._file.size_bytes)
        assert edge is not None
        todo = min(edge - self.size_bytes, limit_bytes)
        buffer = self._buffer
        for _ in range(-(-todo // BUFFER_BYTES)):
            chunk = buffer[: min(BUFFER_BYTES, edge - self.size_bytes)]
            count = os.preadv(self._handle, [chunk], self.size_bytes)
            if not count:
                raise IntegrityError(f"{self._file.path!r} was cut off while it was fetched")
            self._hash(chunk[:count])
        return todo > 0

    def keep_spans(self) -> None:
        """What is there is taken up after this, even by another process. First the bytes, then the note."""
        os.fdatasync(self._handle)
        self._missing.write(self._handle, self._file.size_bytes or 0, self.spans, self.validator)

    def restart(self) -> None:
        """Back to nothing."""
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self._missing.remove()
        self.size_bytes = 0
        self.spans, self.validator = [], ""
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
        self._missing.remove()
        return CachedFile(path=self._file.path, size_bytes=self.size_bytes, sha256=self._sha256.hexdigest())

    def close(self) -> None:
        os.close(self._handle)

    def _take_up(self) -> None:
        if self._missing.exists():
            self._take_up_spans()
            return
        while chunk := os.read(self._handle, BUFFER_BYTES):
            self._hash(chunk)
        if self._file.size_bytes is not None and self.size_bytes > self._file.size_bytes:
            self.restart()

    def _take_up_spans(self) -> None:
        found = self._missing.read(self._handle, self._file.size_bytes or 0)
        if found is None:
            self.restart()
            return
        self.spans, self.validator = found
        while self.hash_on(BUFFER_BYTES):
            pass

    def _hash(self, content: bytes | memoryview) -> None:
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
