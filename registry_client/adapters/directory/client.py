"""A registry that is a directory: on a disk, a volume, or a mounted share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

from registry_client.adapters.directory.layout import checked_model, checked_name
from registry_client.adapters.directory.scan import DigestCache, DirectoryScan
from registry_client.blobs import open_local
from registry_client.client import ByteStream
from registry_client.errors import InvalidConfiguration
from registry_client.models import Capabilities, ModelFile, ModelVersion
from registry_client.paths import checked_path

T = TypeVar("T")

_OPTIONS = frozenset({"path"})
_THREADS = 4

CAPABILITIES = Capabilities(
    revisions=("alias", "version", "latest"),
    checksums="sha256",
    ranges=True,
    lineage=True,
    publish=True,
)


class DirectoryClient:
    """Reads `<root>/<model>/<version>/…`; the layout is described in `layout`."""

    kind = "directory"
    capabilities = CAPABILITIES

    def __init__(self, name: str, root: Path, *, digests: DigestCache | None = None) -> None:
        self.name = name
        self._scan = DirectoryScan(registry=name, root=root, digests=digests or DigestCache())
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"registry-{name}")

    async def resolve(self, model: str, revision: str) -> ModelVersion:
        """Tries alias, version, and `latest` where it is asked for by that word: the highest number, or the
        newest where versions are not numbers. Without a `manifest.json` every file is hashed, once."""
        return await self._in_thread(lambda: self._scan.resolve(model, revision))

    async def versions(self, model: str, limit: int = 100) -> list[ModelVersion]:
        """Versions without a `manifest.json` come without files and identity: nothing is hashed here."""
        return await self._in_thread(lambda: self._scan.versions(model, limit))

    async def aliases(self, model: str) -> Mapping[str, str]:
        return await self._in_thread(lambda: self._scan.aliases(model))

    def open(
        self,
        version: ModelVersion,
        file: ModelFile,
        *,
        offset: int = 0,
        end: int | None = None,
        validator: str = "",
    ) -> AbstractAsyncContextManager[ByteStream]:
        """`end` and `validator` are not given: one disk gains nothing by parts."""
        parts = (
            *checked_model(version.model),
            checked_name(version.version, what="version"),
            *checked_path(file.path, listed_by=f"{self.name}/{version.model}").split("/"),
        )
        return open_local(self._scan.root, parts, offset=offset, in_thread=self._in_thread)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[[], T], /) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def open_directory(name: str, options: Mapping[str, object]) -> DirectoryClient:
    """Options: `path`, absolute or relative to the working directory. Raises `InvalidConfiguration`."""
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise InvalidConfiguration(
            f"registry {name!r} (directory) has the unknown option {unknown[0]!r}; known: path"
        )
    path = options.get("path")
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidConfiguration(f"registry {name!r} (directory) needs the option `path`, a directory")
    return DirectoryClient(name, Path.cwd() / path)
