"""A version as it lies in the cache, complete and verified."""

from __future__ import annotations

from pathlib import Path

import msgspec


class CachedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a version. `path` is relative to the version's directory."""

    path: str
    size_bytes: int
    sha256: str


class VersionManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside a version's files: written last, so where it is, the version is whole."""

    digest: str
    model: str
    """Path of the ONNX model among the files."""
    files: list[CachedFile]
    registry: str = ""
    model_name: str = ""
    version: str = ""
    """The release that it was first fetched as, for people."""


class CachedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is ready to be loaded."""

    digest: str
    path: Path
    """The directory of its files."""
    model: str
    files: tuple[CachedFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One version for a listing."""

    digest: str
    size_bytes: int
    last_used_s: float
    """Seconds since the epoch."""
    registry: str = ""
    model: str = ""
    version: str = ""


def model_path(cached: CachedVersion) -> Path:
    """The ONNX model to load."""
    return cached.path / cached.model
