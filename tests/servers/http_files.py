"""A registry whose one version lies on an HTTP server, and such a server, which honours ranges as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

import httpx

from registry_client.client import ByteStream
from registry_client.models import Capabilities, Digest, ModelFile, ModelVersion
from registry_client.parts import Part
from registry_client.transport import HttpTransport, Retries, TimeLimits, open_transport

CAPABILITIES = Capabilities(
    revisions=("version",), checksums="sha256", ranges=True, lineage=False, parts=True
)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class HttpRegistry:
    """One version, whose files have the sizes and, where they are given, the digests of `files`."""

    name = "http"
    kind = "http"
    capabilities = CAPABILITIES

    def __init__(self, url: str, files: tuple[ModelFile, ...], read_s: float = 5.0) -> None:
        limits = TimeLimits(connect_s=2.0, read_s=read_s)
        self.transport: HttpTransport = open_transport(
            httpx.URL(url), limits=limits, retries=Retries(attempts=1)
        )
        self.version = ModelVersion(registry="http", model="m", version="1", identity="r1", files=files)

    async def resolve(self, model: str, revision: str) -> ModelVersion:
        return self.version

    async def versions(self, model: str, limit: int = 100) -> list[ModelVersion]:
        return [self.version]

    async def aliases(self, model: str) -> Mapping[str, str]:
        return {}

    def open(
        self,
        version: ModelVersion,
        file: ModelFile,
        *,
        offset: int = 0,
        end: int | None = None,
        validator: str = "",
    ) -> AbstractAsyncContextManager[ByteStream]:
        return self.transport.stream(file.path, Part(offset, end, validator))

    async def aclose(self) -> None:
        await self.transport.aclose()


def described(files: Mapping[str, bytes], *, checksums: bool = True) -> tuple[ModelFile, ...]:
    return tuple(
        ModelFile(
            path=path,
            size_bytes=len(content),
            digest=Digest("sha256", hashlib.sha256(content).hexdigest()) if checksums else None,
        )
        for path, content in files.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server is about to send; a fault changes it."""

    status: int
    start: int
    content: bytes
    total_bytes: int
    etag: str
    content_range: str = ""
    declared_bytes: int | None = None
    hang: bool = False
    """Nothing more comes after the content, and the connection stays open."""


Fault = Callable[[Reply, str], Reply]
"""(honest reply, the request's Range header) → the reply."""


@dataclass
class FileServer:
    """`async with FileServer(files) as server`; `server.asked` has (path, Range, If-Range) of each request."""

    files: dict[str, bytes]
    fault: Fault = lambda reply, _: reply
    etags: bool = True
    ranges: bool = True
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    async def __aenter__(self) -> FileServer:
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        for writer in self._writers:
            if not writer.transport.is_closing() or writer.transport.get_write_buffer_size():
                writer.transport.abort()  # a client that went early has left bytes behind
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.append(writer)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path = first.split(" ")[1].lstrip("/")
        wanted, condition = headers.get("range", ""), headers.get("if-range", "")
        self.asked.append((path, wanted, condition))
        reply = self.fault(self._honest(self.files[path], wanted, condition), wanted)
        length = len(reply.content) if reply.declared_bytes is None else reply.declared_bytes
        head = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {length}", "Connection: close"]
        head += [f"ETag: {reply.etag}"] if self.etags else []
        if reply.status == 206:
            last = reply.start + length - 1
            shown = reply.content_range or f"bytes {reply.start}-{last}/{reply.total_bytes}"
            head.append(f"Content-Range: {shown}")
        writer.write("\r\n".join([*head, "", ""]).encode() + reply.content)
        await writer.drain()
        if reply.hang:
            await asyncio.Event().wait()

    def _honest(self, content: bytes, wanted: str, condition: str) -> Reply:
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        whole = Reply(status=200, start=0, content=content, total_bytes=len(content), etag=etag)
        found = _RANGE.fullmatch(wanted)
        if found is None or not self.ranges or (condition and condition != etag):
            return whole
        start, end = int(found[1]), int(found[2]) + 1 if found[2] else len(content)
        return replace(whole, status=206, start=start, content=content[start:end])
