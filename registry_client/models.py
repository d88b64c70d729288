"""The values that every registry is translated into."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from registry_client.errors import InvalidReference

REGISTRY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MODEL_LIMIT = 512
REVISION_LIMIT = 256


@dataclass(frozen=True, slots=True)
class ModelRef:
    """`registry/model@revision`, as a person writes it.

    The registry's name ends at the first slash, so models may have slashes of their own; the revision
    starts at the last `@`. A revision is an alias, tag, stage, label, version or digest; which of them,
    the registry's adapter decides, in the order that its page documents.

        >>> ModelRef.parse("prod/team/fraud@champion")
        ModelRef(registry='prod', model='team/fraud', revision='champion')
    """

    registry: str
    model: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `InvalidReference` and says which part is missing or malformed."""
        name, at, revision = text.rpartition("@")
        if not at or not revision:
            raise InvalidReference(f"reference {text!r} has no revision: write registry/model@revision")
        registry, model = split_model(name)
        if len(revision) > REVISION_LIMIT or not revision.isprintable():
            raise InvalidReference(
                f"revision in {text[:80]!r} must be printable and at most {REVISION_LIMIT} characters"
            )
        return cls(registry, model, revision)

    def __str__(self) -> str:
        return f"{self.registry}/{self.model}@{self.revision}"


def split_model(text: str) -> tuple[str, str]:
    """`registry/model` → its two names. Raises `InvalidReference`."""
    registry, slash, model = text.partition("/")
    if not slash or not model:
        raise InvalidReference(f"{text[:80]!r} names no model: write registry/model")
    if not REGISTRY_NAME.fullmatch(registry):
        raise InvalidReference(f"registry {registry[:80]!r} must match {REGISTRY_NAME.pattern}")
    if len(model) > MODEL_LIMIT or not model.isprintable():
        raise InvalidReference(
            f"model in {text[:80]!r} must be printable and at most {MODEL_LIMIT} characters"
        )
    if any(part in ("", ".", "..") for part in model.split("/")) or "\\" in model:
        raise InvalidReference(f"model {model[:80]!r} has an empty, '.' or '..' part, or a backslash")
    return registry, model


class Scope(StrEnum):
    """What a registry's digest was computed over, and so whether it can be verified."""

    CONTENT = "content"
    """The file's own bytes: verified."""
    COMPOSITE = "composite"
    """Digests of parts (S3 multipart): kept, not verified."""
    ARCHIVE = "archive"
    """The bytes of the archive that the file came in: verified on those."""
    OPAQUE = "opaque"
    """A change marker and no more."""


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest as its registry gives it; `value` is lower-case hex."""

    algorithm: str
    value: str
    scope: Scope = Scope.CONTENT

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a version. `path` is relative, with forward slashes, and already checked by the adapter."""

    path: str
    size_bytes: int | None
    digest: Digest | None = None
    locator: str = ""
    """Where the adapter finds it again; opaque to everybody else, without credentials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a version came from, as far as its registry knows."""

    run_id: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    """Name of the data set → its digest."""
    commit: str = ""
    parent: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One immutable release of a model, as a registry describes it at this moment.

    `identity` is the registry's own immutable id of this release: two versions with the same number and
    different identities are different releases (MLflow counts from 1 again after delete and recreate).
    """

    registry: str
    model: str
    version: str
    identity: str
    files: tuple[ModelFile, ...]
    aliases: tuple[str, ...] = ()
    created_ms: int | None = None
    description: str = ""
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def digest(self) -> str | None:
        """SHA-256 over the files, in hex, where the registry knows every file's own; else None."""
        known = []
        for file in self.files:
            digest = file.digest
            if digest is None or digest.algorithm != "sha256" or digest.scope is not Scope.CONTENT:
                return None
            if file.size_bytes is None:
                return None
            known.append((file.path, file.size_bytes, digest.value))
        return version_digest(known)


def version_digest(files: Iterable[tuple[str, int, str]]) -> str:
    """SHA-256, in hex, over the sorted (path, size in bytes, SHA-256 in hex) of a version's files.

    >>> version_digest([("model.onnx", 3, hashlib.sha256(b"abc").hexdigest())])[:16]
    '912568cee4056ec1'
    """
    total = hashlib.sha256(b"turnout-version-1\n")
    for path, size_bytes, sha256 in sorted(files):
        # A length before the path, so that no path can imitate another file's line.
        encoded = path.encode()
        total.update(b"%d %s %d %s\n" % (len(encoded), encoded, size_bytes, sha256.encode()))
    return total.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a kind of registry can and cannot do, for people and for the generated table."""

    revisions: tuple[str, ...]
    """Kinds of revision that resolve, in the order in which they are tried."""
    checksums: str
    """`sha256`, another algorithm's name, or `none`."""
    ranges: bool
    lineage: bool
    parts: bool = False
    """Several parts of one file may be asked for at once: `open` takes `end` and `validator`."""
    webhooks: bool = False
    publish: bool = False
    write_back: bool = False
