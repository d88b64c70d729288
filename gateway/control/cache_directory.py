"""The weights cache on the disk: where what lies, and how it comes and goes whole.

    <cache>/versions/<digest>/manifest.json, files/…   complete and verified
                              derived/…                what workers made of it to share, see serving/engines/mapped
            partial/<release>/manifest.json, files/…   being fetched, or broken off
            releases/<release>.json                    which digest a registry's release has
            quarantine/…                               wrong bytes, kept for people
            trash/…                                    being removed
            locks/<release>

Names come from digests alone, never from a registry (CVE-2024-1594 and its kin). All of it blocks.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from gateway.control import state_file
from gateway.control.admission import refuse_links
from gateway.control.cached_version import CachedVersion, CacheEntry, VersionManifest
from gateway.control.partial_file import hash_file
from gateway.control.weights_errors import WeightsRefused
from registry_client.errors import IntegrityError
from registry_client.models import ModelVersion, version_digest

DIGEST = re.compile(r"[0-9a-f]{64}")
MANIFEST = "manifest.json"
FILES = "files"
DERIVED = "derived"
QUARANTINED = 4
"""How many wrong versions are kept; the oldest goes first."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A registry's release, and the digest that its files turned out to have."""

    registry: str
    model: str
    version: str
    identity: str
    digest: str


class CacheDirectory:
    """Not a lock in itself: whoever changes a release's files holds its `try_lock`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("versions", "partial", "releases", "quarantine", "trash", "locks"):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)

    def partial(self, key: str) -> Path:
        return self.root / "partial" / key

    def version(self, digest: str) -> Path:
        """Raises `IntegrityError` for what is no digest: it becomes a path."""
        if not DIGEST.fullmatch(digest):
            raise IntegrityError(f"{digest[:80]!r} is no digest: 64 hexadecimal digits, lower case")
        return self.root / "versions" / digest

    def find(self, digest: str) -> CachedVersion | None:
        """The version as its manifest tells of it, unverified; None if it is not there or unreadable."""
        directory = self.version(digest)
        try:
            manifest = _read_manifest(directory)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if manifest.digest != digest:
            return None
        return CachedVersion(
            digest=digest, path=directory / FILES, model=manifest.model, files=tuple(manifest.files)
        )

    def touch(self, digest: str) -> None:
        """It was used now."""
        with suppress(FileNotFoundError):
            os.utime(self.version(digest) / MANIFEST)

    def check(self, cached: CachedVersion) -> None:
        """Hashes every file anew. Raises `IntegrityError` and names what differs."""
        found = {str(path.relative_to(cached.path)) for path in _files(cached.path)}
        strange = found.symmetric_difference(file.path for file in cached.files)
        if strange:
            raise IntegrityError(f"{min(strange)!r} is missing or was added in {cached.path}")
        actual = []
        for file in cached.files:
            try:
                refuse_links(cached.path / file.path, file.path)
            except WeightsRefused as error:
                raise IntegrityError(f"{error} in {cached.path}") from error
            sha256 = hash_file(cached.path / file.path)
            if sha256 != file.sha256:
                raise IntegrityError(f"{file.path!r} in {cached.path} was changed: its sha256 is {sha256}")
            actual.append((file.path, file.size_bytes, sha256))
        if version_digest(actual) != cached.digest:
            raise IntegrityError(f"the manifest in {cached.path.parent} is not that of {cached.digest}")

    def publish(self, key: str, manifest: VersionManifest) -> None:
        """Turns a partial version into a complete one, durably, in one rename."""
        partial, target = self.partial(key), self.version(manifest.digest)
        state_file.replace(partial / MANIFEST, msgspec.json.encode(manifest))
        for directory, _, _ in os.walk(partial):
            state_file.sync_directory(Path(directory))
        if not self._intact(manifest.digest):
            self.quarantine(target)
        try:
            partial.rename(target)
        except OSError:
            if not self._intact(manifest.digest):
                raise
            self.remove(partial)  # another release has the same bytes
        state_file.sync_directory(target.parent)

    def remember(self, version: ModelVersion, digest: str) -> None:
        release = Release(
            registry=version.registry,
            model=version.model,
            version=version.version,
            identity=version.identity,
            digest=digest,
        )
        state_file.replace(self._release(version), msgspec.json.encode(release))

    def recall(self, version: ModelVersion) -> str | None:
        """The digest that this very release was found to have."""
        try:
            release = msgspec.json.decode(self._release(version).read_bytes(), type=Release)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return release.digest if DIGEST.fullmatch(release.digest) else None

    def quarantine(self, directory: Path) -> Path | None:
        """Moves it aside; None if it is gone. Only the last few are kept."""
        aside = self._move(directory, "quarantine")
        for old in _children(self.root / "quarantine")[:-QUARANTINED]:
            self.remove(old)
        return aside

    def remove(self, directory: Path) -> None:
        """Whole at once for everybody else: renamed first, then taken apart."""
        doomed = self._move(directory, "trash")
        if doomed is not None:
            shutil.rmtree(doomed, ignore_errors=True)

    def entries(self) -> list[CacheEntry]:
        """The complete versions, the least recently used first."""
        found = []
        for directory in _children(self.root / "versions"):
            with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
                manifest = _read_manifest(directory)
                found.append(
                    CacheEntry(
                        digest=manifest.digest,
                        # With what workers have derived from it, which goes with it.
                        size_bytes=sum(file.size_bytes for file in manifest.files)
                        + tree_bytes(directory / DERIVED),
                        last_used_s=(directory / MANIFEST).stat().st_mtime,
                        registry=manifest.registry,
                        model=manifest.model_name,
                        version=manifest.version,
                    )
                )
        return sorted(found, key=lambda entry: entry.last_used_s)

    def leftovers(self) -> list[Path]:
        """What nobody serves: the quarantine first, then what broke off and nobody fetches now."""
        idle = []
        for partial in _children(self.root / "partial"):
            with self.try_lock(partial.name) as locked:
                if locked:
                    idle.append(partial)
        return [*_children(self.root / "trash"), *_children(self.root / "quarantine"), *idle]

    @contextmanager
    def try_lock(self, key: str) -> Iterator[bool]:
        """Whether the release is ours to change, among all processes that use this directory."""
        handle = self.lock(key)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def lock(self, key: str) -> int | None:
        """A descriptor that holds the release until it is closed; None while somebody else does."""
        handle = os.open(self.root / "locks" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return handle

    def _intact(self, digest: str) -> bool:
        cached = self.find(digest)
        if cached is None:
            return False
        try:
            self.check(cached)
        except IntegrityError:
            return False
        return True

    def _move(self, directory: Path, where: str) -> Path | None:
        moved = self.root / where / f"{time.time_ns()}-{os.urandom(4).hex()}-{directory.name[-16:]}"
        try:
            directory.rename(moved)
        except FileNotFoundError:
            return None
        return moved

    def _release(self, version: ModelVersion) -> Path:
        return self.root / "releases" / f"{release_key(version)}.json"


def release_key(version: ModelVersion) -> str:
    """A file name for (registry, model, version, identity)."""
    names = (version.registry, version.model, version.version, version.identity)
    return hashlib.sha256(msgspec.json.encode(names)).hexdigest()


def tree_bytes(directory: Path) -> int:
    total = 0
    for path in _files(directory):
        with suppress(FileNotFoundError):
            status = os.lstat(path)
            # A file that is filled in spans has gaps, which take no room yet.
            total += min(status.st_size, status.st_blocks * 512)
    return total


def _read_manifest(directory: Path) -> VersionManifest:
    return msgspec.json.decode((directory / MANIFEST).read_bytes(), type=VersionManifest)


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def _files(directory: Path) -> Iterator[Path]:
    for parent, directories, names in os.walk(directory):
        for name in [*names, *(d for d in directories if (Path(parent) / d).is_symlink())]:
            yield Path(parent) / name
