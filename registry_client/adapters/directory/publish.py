"""Puts a version into a directory registry, whole or not at all, and moves aliases."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from registry_client.adapters.directory.layout import (
    ALIASES,
    MANIFEST,
    SCHEMA,
    FileEntry,
    LineageEntry,
    VersionManifest,
    checked_model,
    checked_name,
    encode_manifest,
    is_name,
)
from registry_client.adapters.directory.scan import DigestCache, DirectoryScan, entries_digest, is_version
from registry_client.errors import (
    IntegrityError,
    InvalidConfiguration,
    InvalidReference,
    NotFound,
    Unsupported,
)
from registry_client.local_files import CHUNK_BYTES, mapped
from registry_client.models import ModelVersion
from registry_client.paths import checked_path
from registry_client.pickles import is_pickle

REGISTRY = "directory"
"""The registry's name in what `publish` returns: a directory has none until a manifest gives it one."""


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    description: str = ""
    lineage: LineageEntry = LineageEntry()


def publish(
    root: str | Path,
    model: str,
    source_path: str | Path,
    *,
    version: str | None = None,
    aliases: Iterable[str] = (),
    metadata: Mapping[str, object] | None = None,
    created: datetime | None = None,
) -> ModelVersion:
    """Copies a file or a folder to `<root>/<model>/<version>` and points `aliases` at it.

    Without `version` it gets the next whole number. To publish the same files under a version that exists
    changes nothing but the aliases. `metadata` is `{"description": str, "lineage": {run_id, metrics, params,
    datasets, commit, parent, environment, tags}}`. Blocks; safe beside other publishers.

    Raises `InvalidReference` (names), `InvalidConfiguration` (metadata), `NotFound` (the source),
    `Unsupported` (pickles, symlinks, devices) and `IntegrityError` (the version exists with other content).

        >>> publish("models", "digits", "digits.onnx", aliases=["champion"]).version  # doctest: +SKIP
        '1'
    """
    described = _metadata(metadata or {})
    with _errors_mapped():
        return _publish(
            Path(root),
            model,
            Path(source_path),
            version,
            tuple(aliases),
            described,
            created or datetime.now(UTC),
        )


def _publish(
    root: Path,
    model: str,
    source: Path,
    version: str | None,
    aliases: tuple[str, ...],
    described: _Metadata,
    created: datetime,
) -> ModelVersion:
    wanted = tuple(checked_name(alias, what="alias") for alias in aliases)
    if version is not None:
        checked_name(version, what="version")
    sources = list(_sources(source))
    home = _model_home(root, model)
    with _workspace(home) as work:
        entries = [_copied(each, work, path) for path, each in sources]
        manifest = VersionManifest(
            schema=SCHEMA,
            files=sorted(entries, key=lambda entry: entry.path),
            created=created.isoformat(),
            description=described.description,
            lineage=described.lineage,
        )
        _write_synced(work / MANIFEST, encode_manifest(manifest))
        _sync_tree(work)
        name = _placed(work, home, root, model, version, entries)
    for alias in wanted:
        _set_alias(root, model, alias, name)
    return _scan(root).resolve_version(model, name)


def set_alias(root: str | Path, model: str, alias: str, version: str) -> None:
    """Points `alias` at an existing version, in one step for every reader.

    Raises `InvalidReference` for a bad name and `NotFound` where the version does not exist.
    """
    with _errors_mapped():
        _set_alias(Path(root), model, alias, version)


def _set_alias(root: Path, model: str, alias: str, version: str) -> None:
    checked_name(alias, what="alias")
    checked_name(version, what="version")
    parts = checked_model(model)
    if not _exists(root, (*parts, version)):
        raise NotFound(f"{model} in {root} has no version {version!r} for the alias {alias!r}")
    directory = root.joinpath(*parts, ALIASES)
    directory.mkdir(exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{alias}.", dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(version.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(directory / alias)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(directory)


@contextmanager
def _errors_mapped() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise mapped(error, Path(error.filename or "the registry's directory")) from error


def _metadata(metadata: Mapping[str, object]) -> _Metadata:
    try:
        described = msgspec.convert(dict(metadata), _Metadata)
    except msgspec.ValidationError as error:
        raise InvalidConfiguration(f"metadata of the version: {error}") from error
    for name, value in described.lineage.metrics.items():
        if not math.isfinite(value):
            raise InvalidConfiguration(f"metric {name!r} is {value}; JSON has finite numbers only")
    return described


def _sources(source: Path) -> Iterator[tuple[str, Path]]:
    """(path in the version, file) of everything to be published."""
    if not stat.S_ISDIR(_kind(source)):
        yield _accepted(source.name, source)
        return
    found = False
    for directory, folders, files in os.walk(source, onerror=_raise):
        folders.sort()
        for name in folders:
            if not stat.S_ISDIR(_kind(Path(directory, name))):
                raise Unsupported(f"{Path(directory, name)} is a symlink: publish the files themselves")
        for name in sorted(files):
            file = Path(directory, name)
            found = True
            yield _accepted(file.relative_to(source).as_posix(), file)
    if not found:
        raise NotFound(f"{source} holds no files to publish")


def _raise(error: OSError) -> None:
    raise mapped(error, Path(error.filename)) from error


def _kind(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError as error:
        raise mapped(error, path) from error


def _accepted(path: str, file: Path) -> tuple[str, Path]:
    checked_path(path, listed_by=str(file))
    if not stat.S_ISREG(_kind(file)):
        raise Unsupported(f"{file} is a symlink or no regular file: publish the files themselves")
    if path == MANIFEST:
        raise Unsupported(f"{file}: the name {MANIFEST} is kept for the registry's own; rename the file")
    if is_pickle(file):
        raise Unsupported(
            f"{file} is a pickle, which runs code when loaded: export it to ONNX or safetensors"
        )
    return path, file


def _model_home(root: Path, model: str) -> Path:
    parts = checked_model(model)
    for depth in range(1, len(parts) + 1):
        # Else a version of `team` called `fraud` and the model `team/fraud` would lie inside each other.
        if (root.joinpath(*parts[:depth]) / MANIFEST).exists():
            raise InvalidReference(f"model {model!r}: {'/'.join(parts[:depth])!r} is a version in {root}")
    home = root.joinpath(*parts)
    home.mkdir(parents=True, exist_ok=True)
    return home


@contextmanager
def _workspace(home: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=".publish-", dir=home))
    try:
        work.chmod(0o755)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copied(source: Path, work: Path, path: str) -> FileEntry:
    target = work / path
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    size = 0
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            sha256.update(chunk)
            size += writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return FileEntry(path=path, size=size, sha256=sha256.hexdigest())


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_tree(work: Path) -> None:
    for directory, _, _ in os.walk(work, topdown=False):
        _sync(Path(directory))


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _placed(
    work: Path, home: Path, root: Path, model: str, version: str | None, entries: list[FileEntry]
) -> str:
    """Renames the finished version into place and returns its name."""
    while True:
        name = version or _next_number(home)
        target = home / name
        if not target.exists():
            try:
                work.rename(target)
            except OSError:
                # Another publisher was first: rename refuses a directory that is not empty.
                if not target.exists():
                    raise
            else:
                _sync(home)
                return name
        if version is not None:
            _check_same(root, model, version, entries)
            return version


def _check_same(root: Path, model: str, version: str, entries: list[FileEntry]) -> None:
    if not _exists(root, (*checked_model(model), version)):
        raise InvalidReference(
            f"{version!r} in {model!r} is a model or no version at all: choose another name"
        )
    if _scan(root).resolve_version(model, version).identity != entries_digest(entries):
        raise IntegrityError(
            f"{model} version {version} exists in {root} with other content: a version is immutable, "
            "publish under a new one"
        )


def _next_number(home: Path) -> str:
    # Everything that is there counts, so that a number is not given out again to something else.
    numbers = [int(each.name) for each in home.iterdir() if is_name(each.name) and each.name.isdecimal()]
    return str(max(numbers, default=0) + 1)


def _exists(root: Path, parts: tuple[str, ...]) -> bool:
    try:
        return is_version(root, parts)
    except NotFound:
        return False


def _scan(root: Path) -> DirectoryScan:
    return DirectoryScan(registry=REGISTRY, root=root, digests=DigestCache())
