"""The layout of a registry that is a directory, and the names that it allows.

    <root>/<model>/<version>/manifest.json     optional: files with digests, description, lineage
    <root>/<model>/<version>/…                 the files
    <root>/<model>/aliases/<alias>             a text file that holds a version

A model's name may have slashes. What begins with a dot is never a version or an alias: that is where
`publish` works before it renames.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

from registry_client.errors import InvalidReference, ProtocolError
from registry_client.models import Digest, Lineage, ModelFile
from registry_client.paths import checked_path

MANIFEST = "manifest.json"
ALIASES = "aliases"
LATEST = "latest"
SCHEMA = 1
MANIFEST_LIMIT_BYTES = 16 * 1024 * 1024

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUMERIC = re.compile(r"v?([0-9]+(?:\.[0-9]+)*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Scalar = str | int | float | bool


class FileEntry(msgspec.Struct, frozen=True):
    path: str
    size: int
    sha256: str


class LineageEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    run_id: str = ""
    metrics: dict[str, float] = {}
    params: dict[str, Scalar] = {}
    datasets: dict[str, str] = {}
    commit: str = ""
    parent: str = ""
    environment: dict[str, Scalar] = {}
    tags: dict[str, Scalar] = {}


class VersionManifest(msgspec.Struct, frozen=True):
    """`manifest.json`. Fields that a later schema adds are ignored; another schema number is refused."""

    schema: int
    files: list[FileEntry]
    created: str = ""
    description: str = ""
    lineage: LineageEntry = LineageEntry()


def decode_manifest(data: bytes, *, of: str) -> VersionManifest:
    """Raises `ProtocolError`, which names `of`, where `data` is not a manifest or lists unsafe paths."""
    try:
        manifest = msgspec.json.decode(data, type=VersionManifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{MANIFEST} of {of} is malformed: {error}") from error
    if manifest.schema != SCHEMA:
        raise ProtocolError(f"{MANIFEST} of {of} has schema {manifest.schema}; this reads {SCHEMA}")
    seen = set()
    for entry in manifest.files:
        checked_path(entry.path, listed_by=f"{MANIFEST} of {of}")
        if entry.path in seen or entry.path == MANIFEST:
            raise ProtocolError(f"{MANIFEST} of {of} lists {entry.path!r} twice, or lists itself")
        if entry.size < 0 or not _SHA256.fullmatch(entry.sha256):
            raise ProtocolError(f"{MANIFEST} of {of}: {entry.path!r} has no valid size and SHA-256")
        seen.add(entry.path)
    return manifest


def encode_manifest(manifest: VersionManifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def model_files(entries: list[FileEntry]) -> tuple[ModelFile, ...]:
    return tuple(
        ModelFile(path=entry.path, size_bytes=entry.size, digest=Digest("sha256", entry.sha256))
        for entry in sorted(entries, key=lambda entry: entry.path)
    )


def lineage_of(entry: LineageEntry) -> Lineage:
    return Lineage(
        run_id=entry.run_id,
        metrics=entry.metrics,
        params=_texts(entry.params),
        datasets=entry.datasets,
        commit=entry.commit,
        parent=entry.parent,
        environment=_texts(entry.environment),
        tags=_texts(entry.tags),
    )


def _texts(values: dict[str, Scalar]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def created_ms_of(text: str, *, of: str) -> int | None:
    """Milliseconds since 1970 of an RFC 3339 time; None for an empty one."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ProtocolError(f"{MANIFEST} of {of}: created {text[:40]!r} is not an RFC 3339 time") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def is_name(text: str) -> bool:
    """Whether `text` may name a version or an alias."""
    return NAME.fullmatch(text) is not None and text not in (ALIASES, LATEST)


def checked_name(text: str, *, what: str) -> str:
    if not is_name(text):
        raise InvalidReference(
            f"{what} {text[:80]!r} must match {NAME.pattern} and be neither {ALIASES!r} nor {LATEST!r}"
        )
    return text


def checked_model(model: str) -> tuple[str, ...]:
    """The parts of a model's name. Raises `InvalidReference`."""
    parts = tuple(model.split("/"))
    if any(not part or part.startswith(".") or part == ALIASES for part in parts):
        raise InvalidReference(
            f"model {model[:80]!r} has a part that is empty, begins with a dot or is {ALIASES!r}"
        )
    if not model.isprintable() or "\\" in model:
        raise InvalidReference(f"model {model[:80]!r} is not printable or has a backslash")
    return parts


def release_order(version: str, created_ms: int | None) -> tuple[int, tuple[int, ...], int, str]:
    """Sorts versions, the newest last: numbers (`7`, `v7`, `1.10.2`) by value, above all other names,
    which go by their time."""
    numeric = _NUMERIC.fullmatch(version)
    if numeric:
        return (1, tuple(int(part) for part in numeric[1].split(".")), created_ms or 0, version)
    return (0, (), created_ms or 0, version)
