"""The one interface behind which every registry stands, and how to open one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from registry_client.errors import InvalidConfiguration
from registry_client.models import Capabilities, ModelFile, ModelVersion

ENTRY_POINT_GROUP = "turnout.registries"

_BUILT_IN = {
    "directory": "registry_client.adapters.directory:open_directory",
    "mlflow": "registry_client.adapters.mlflow:open_mlflow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteStream:
    """The bytes of one file, from `offset` on.

    `offset` is where the source really starts: 0 where it did not honour the one that was asked for, and
    then the caller starts over. `total_bytes` is the size of the whole file, where the source says so.
    """

    offset: int
    total_bytes: int | None
    chunks: AsyncIterator[bytes | memoryview]
    """A chunk may be used until the next one is asked for; `bytes(chunk)` keeps it."""
    end: int | None = None
    """The byte after the last that comes, where only a part of what follows `offset` does."""
    validator: str = ""
    """What the source calls this state of the file (a strong ETag), where it says so."""


@runtime_checkable
class RegistryClient(Protocol):
    """A connection to one registry. Every method raises only `RegistryError`s."""

    name: str
    """The registry's name in the manifest."""
    kind: str
    """Its type: `directory`, `mlflow`, …"""
    capabilities: Capabilities

    async def resolve(self, model: str, revision: str) -> ModelVersion:
        """The version behind a revision, with its files and lineage. Raises `NotFound`, `NotReady`, …"""

    async def versions(self, model: str, limit: int = 100) -> list[ModelVersion]:
        """Up to `limit` versions, the newest first; files and lineage may be left out."""

    async def aliases(self, model: str) -> Mapping[str, str]:
        """Alias → version, by the cheapest call that the registry has: this is what is polled."""

    def open(
        self,
        version: ModelVersion,
        file: ModelFile,
        *,
        offset: int = 0,
        end: int | None = None,
        validator: str = "",
    ) -> AbstractAsyncContextManager[ByteStream]:
        """The bytes of one file of a version that this client resolved, from `offset` where it can.

        `end` and `validator` are given only where `capabilities.parts` says so: up to `end` where it can, and
        the whole file, from 0, where it is no longer the one that `validator` named.
        """

    async def aclose(self) -> None:
        """Lets go of connections. The client is not used again."""


Opener = Callable[[str, Mapping[str, object]], RegistryClient]
"""(name, options of the manifest without `type`) → a client. Raises `InvalidConfiguration`."""


def registry_types() -> list[str]:
    """The types that `open_registry` knows: our own and those of installed third parties."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def open_registry(name: str, kind: str, options: Mapping[str, object]) -> RegistryClient:
    """A client for the registry `name` of type `kind`.

    A third party adds a type by an entry point in the group `turnout.registries` that names an `Opener`;
    it cannot replace a built-in one. Raises `InvalidConfiguration` for an unknown type or bad options.
    """
    if kind in _BUILT_IN:
        # Imported here: an adapter brings its libraries along, and only the declared ones are needed.
        module, _, function = _BUILT_IN[kind].partition(":")
        built_in: Opener = getattr(import_module(module), function)
        return built_in(name, options)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=kind):
        opener: Opener = point.load()
        return opener(name, options)
    raise InvalidConfiguration(
        f"registry {name!r} has the unknown type {kind!r}; known types: {', '.join(registry_types())}"
    )
