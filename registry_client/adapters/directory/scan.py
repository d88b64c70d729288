"""Reads versions and aliases from the disk. Blocking: the client runs it in threads of its own."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from registry_client.adapters.directory.layout import (
    ALIASES,
    LATEST,
    MANIFEST,
    MANIFEST_LIMIT_BYTES,
    FileEntry,
    VersionManifest,
    checked_model,
    created_ms_of,
    decode_manifest,
    is_name,
    lineage_of,
    model_files,
    release_order,
)
from registry_client.errors import IntegrityError, NotFound, ProtocolError
from registry_client.local_files import (
    directory_below,
    hash_file_below,
    mapped,
    open_file_below,
    read_file_below,
)
from registry_client.models import ModelVersion, version_digest
from registry_client.paths import checked_path

ALIAS_LIMIT_BYTES = 512
FILES_LIMIT = 10_000
DEPTH_LIMIT = 32
_CACHE_LIMIT = 10_000
# A second write within the file system's clock tick leaves the time as it was, so the digest of a file that
# was touched a moment ago is not kept (git's "racy" index entries).
_SETTLED_NS = 2_000_000_000

_Key = tuple[str, int, int, int, int]


@dataclass(slots=True)
class DigestCache:
    """(path, size, mtime, ctime, inode) → SHA-256. The ctime is there because a mtime can be set back."""

    now_ns: Callable[[], int] = time.time_ns
    hash_file: Callable[[Path, Sequence[str]], tuple[str, os.stat_result]] = hash_file_below
    _known: dict[_Key, str] = field(default_factory=dict)

    def entry(self, root: Path, version: tuple[str, ...], path: str) -> FileEntry:
        parts = (*version, *path.split("/"))
        handle, status = open_file_below(root, parts)
        os.close(handle)
        known = self._known.get(_key(parts, status))
        if known is None:
            known, status = self.hash_file(root, parts)
            self._keep(parts, status, known)
        return FileEntry(path=path, size=status.st_size, sha256=known)

    def _keep(self, parts: tuple[str, ...], status: os.stat_result, sha256: str) -> None:
        if self.now_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED_NS:
            return
        while len(self._known) >= _CACHE_LIMIT:
            self._known.pop(next(iter(self._known)), None)
        self._known[_key(parts, status)] = sha256


def _key(parts: tuple[str, ...], status: os.stat_result) -> _Key:
    return ("/".join(parts), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryScan:
    """What the directory `root` holds at this moment."""

    registry: str
    root: Path
    digests: DigestCache

    def resolve(self, model: str, revision: str) -> ModelVersion:
        aliases = self.aliases(model)
        version = aliases.get(revision)
        if version is None:
            version = self._newest(model) if revision == LATEST else revision
        if version not in self._version_names(model):
            raise NotFound(_no_version(self.registry, model, revision, version))
        return self._described(model, version, aliases, hashed=True)

    def resolve_version(self, model: str, version: str) -> ModelVersion:
        """As `resolve`, but never an alias of that name."""
        return self._described(model, version, self.aliases(model), hashed=True)

    def versions(self, model: str, limit: int) -> list[ModelVersion]:
        aliases = self.aliases(model)
        names = self._version_names(model)
        found = [self._described(model, name, aliases, hashed=False) for name in names]
        found.sort(key=lambda each: release_order(each.version, each.created_ms), reverse=True)
        return found[:limit]

    def aliases(self, model: str) -> dict[str, str]:
        parts = self._model_parts(model)
        where = (*parts, ALIASES)
        try:
            names = [name for name, is_dir in _listed(self.root, where) if is_name(name) and not is_dir]
        except NotFound:
            return {}
        return {name: self._alias(model, (*where, name)) for name in sorted(names)}

    def _alias(self, model: str, parts: tuple[str, ...]) -> str:
        version = read_file_below(self.root, parts, ALIAS_LIMIT_BYTES).decode(errors="replace").strip()
        if not is_name(version):
            raise ProtocolError(
                f"alias {parts[-1]!r} of {self.registry}/{model} holds {version[:80]!r}, which is no version"
            )
        return version

    def _newest(self, model: str) -> str:
        newest = self.versions(model, 1)
        if not newest:
            raise NotFound(f"{self.registry}/{model} has no versions yet")
        return newest[0].version

    def _model_parts(self, model: str) -> tuple[str, ...]:
        parts = checked_model(model)
        try:
            with directory_below(self.root, parts):
                return parts
        except NotFound as error:
            raise NotFound(f"registry {self.registry!r} ({self.root}) has no model {model!r}") from error

    def _version_names(self, model: str) -> list[str]:
        parts = self._model_parts(model)
        listed = _listed(self.root, parts)
        return [n for n, is_dir in listed if is_dir and is_name(n) and is_version(self.root, (*parts, n))]

    def _described(self, model: str, version: str, aliases: dict[str, str], *, hashed: bool) -> ModelVersion:
        parts = (*checked_model(model), version)
        of = f"{self.registry}/{model} version {version}"
        manifest = self._manifest(parts, of)
        found = ModelVersion(
            registry=self.registry,
            model=model,
            version=version,
            identity="",
            files=(),
            aliases=tuple(alias for alias, target in aliases.items() if target == version),
            created_ms=_directory_mtime_ms(self.root, parts),
        )
        if manifest is not None:
            if hashed:
                self._check_sizes(parts, manifest.files, of)
            return _with_manifest(found, manifest, of)
        return self._with_hashes(found, parts, of) if hashed else found

    def _manifest(self, parts: tuple[str, ...], of: str) -> VersionManifest | None:
        try:
            data = read_file_below(self.root, (*parts, MANIFEST), MANIFEST_LIMIT_BYTES)
        except NotFound:
            return None
        return decode_manifest(data, of=of)

    def _check_sizes(self, parts: tuple[str, ...], files: list[FileEntry], of: str) -> None:
        for entry in files:
            try:
                handle, status = open_file_below(self.root, (*parts, *entry.path.split("/")))
            except NotFound as error:
                raise IntegrityError(f"{of}: {entry.path!r} is in {MANIFEST} and is missing") from error
            os.close(handle)
            if status.st_size != entry.size:
                raise IntegrityError(
                    f"{of}: {entry.path!r} has {status.st_size} bytes, {MANIFEST} promises {entry.size}: "
                    "a version is immutable, publish a new one"
                )

    def _with_hashes(self, found: ModelVersion, parts: tuple[str, ...], of: str) -> ModelVersion:
        paths = list(file_paths(self.root, parts, of=of))
        if not paths:
            raise NotFound(f"{of} has no files")
        entries = [self.digests.entry(self.root, parts, path) for path in paths]
        return replace(found, files=model_files(entries), identity=entries_digest(entries))


def _with_manifest(found: ModelVersion, manifest: VersionManifest, of: str) -> ModelVersion:
    created_ms = created_ms_of(manifest.created, of=of)
    return replace(
        found,
        identity=entries_digest(manifest.files),
        files=model_files(manifest.files),
        created_ms=created_ms if created_ms is not None else found.created_ms,
        description=manifest.description,
        lineage=lineage_of(manifest.lineage),
    )


def entries_digest(entries: list[FileEntry]) -> str:
    return version_digest((entry.path, entry.size, entry.sha256) for entry in entries)


def is_version(root: Path, parts: tuple[str, ...]) -> bool:
    """Whether this directory is a version, and not a model whose name goes on (`team` / `team/fraud`)."""
    entries = dict(_listed(root, parts))
    if MANIFEST in entries:
        return True
    if ALIASES in entries:
        return False
    if any(not is_dir for is_dir in entries.values()):
        return True
    # Only directories inside: either a version whose files lie deeper, or the versions of a longer name.
    return bool(entries) and not any(
        is_name(name) and MANIFEST in dict(_listed(root, (*parts, name))) for name in entries
    )


def file_paths(root: Path, parts: tuple[str, ...], *, of: str) -> Iterator[str]:
    """The relative paths of the files of a version, without its manifest.

    Raises `ProtocolError` for a symlink or anything else that is no regular file, and past the limits.
    """
    count = 0
    pending: list[tuple[str, ...]] = [()]
    while pending:
        below = pending.pop()
        for name, is_dir in sorted(_listed(root, (*parts, *below))):
            path = checked_path("/".join((*below, name)), listed_by=of)
            if is_dir:
                pending.append((*below, name))
            elif path != MANIFEST:
                count += 1
                yield path
            if count > FILES_LIMIT or len(below) > DEPTH_LIMIT:
                raise ProtocolError(f"{of} has more than {FILES_LIMIT} files or {DEPTH_LIMIT} levels")


def _listed(root: Path, parts: tuple[str, ...]) -> list[tuple[str, bool]]:
    """(name, is a directory) of what is in a directory; symlinks count as files, and fail when opened."""
    with directory_below(root, parts) as handle:
        try:
            with os.scandir(handle) as entries:
                return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError as error:
            raise mapped(error, Path(root, *parts)) from error


def _directory_mtime_ms(root: Path, parts: tuple[str, ...]) -> int:
    with directory_below(root, parts) as handle:
        status = os.fstat(handle)
    assert stat.S_ISDIR(status.st_mode)
    return status.st_mtime_ns // 1_000_000


def _no_version(registry: str, model: str, revision: str, version: str) -> str:
    if version != revision:
        return f"alias {revision!r} of {registry}/{model} names version {version!r}, which does not exist"
    return f"{registry}/{model} has no alias and no version {revision!r}"
