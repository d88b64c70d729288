"""A registry in memory that counts, breaks, waits and lies as told."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from registry_client.client import ByteStream
from registry_client.errors import NotFound, Unavailable
from registry_client.models import Capabilities, Digest, ModelFile, ModelVersion

CAPABILITIES = Capabilities(revisions=("version",), checksums="sha256", ranges=True, lineage=False)


@dataclass
class MemoryRegistry:
    """One version of one model. What it promises is fixed at the start, what it sends is `files`."""

    files: dict[str, bytes]
    checksums: bool = True
    sizes: bool = True
    ranges: bool = True
    identity: str = "release-1"
    chunk_bytes: int = 64 * 1024

    name: str = "memory"
    kind: str = "memory"
    capabilities: Capabilities = CAPABILITIES

    opens: list[tuple[str, int]] = field(default_factory=list)
    """(path, offset) of every file that was asked for."""
    break_at: list[int] = field(default_factory=list)
    """Each next opened file breaks when that many of its bytes, from its beginning, were sent."""
    end_at: list[int] = field(default_factory=list)
    """The same, but the stream just ends."""
    hold_at: int | None = None
    """After so many bytes of a file it waits for `resume`, and sets `held`."""

    def __post_init__(self) -> None:
        self._promised = dict(self.files)
        self.held = asyncio.Event()
        self.resume = asyncio.Event()

    @property
    def version(self) -> ModelVersion:
        return ModelVersion(
            registry=self.name,
            model="fraud",
            version="1",
            identity=self.identity,
            files=tuple(self._file(path, content) for path, content in self._promised.items()),
        )

    async def resolve(self, model: str, revision: str) -> ModelVersion:
        if (model, revision) != ("fraud", "1"):
            raise NotFound(f"{model}@{revision}")
        return self.version

    async def versions(self, model: str, limit: int = 100) -> list[ModelVersion]:
        return [self.version][:limit]

    async def aliases(self, model: str) -> Mapping[str, str]:
        return {}

    @asynccontextmanager
    async def open(
        self, version: ModelVersion, file: ModelFile, *, offset: int = 0
    ) -> AsyncIterator[ByteStream]:
        self.opens.append((file.path, offset))
        start = offset if self.ranges else 0
        content = self.files[file.path]
        yield ByteStream(
            offset=start,
            total_bytes=len(self._promised[file.path]) if self.sizes else None,
            chunks=self._chunks(content, start),
        )

    async def aclose(self) -> None:
        pass

    async def _chunks(self, content: bytes, start: int) -> AsyncIterator[bytes]:
        break_at = self.break_at.pop(0) if self.break_at else None
        end_at = self.end_at.pop(0) if self.end_at else len(content)
        at = start
        while at < min(len(content), end_at):
            if self.hold_at is not None and at >= self.hold_at:
                self.held.set()
                await self.resume.wait()
            if break_at is not None and at >= break_at:
                raise Unavailable("the connection broke")
            stop = min(at + self.chunk_bytes, end_at, len(content))
            if break_at is not None and at < break_at:
                stop = min(stop, break_at)
            yield content[at:stop]
            at = stop
            await asyncio.sleep(0)

    def _file(self, path: str, content: bytes) -> ModelFile:
        digest = Digest("sha256", hashlib.sha256(content).hexdigest()) if self.checksums else None
        return ModelFile(path=path, size_bytes=len(content) if self.sizes else None, digest=digest)
