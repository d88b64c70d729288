"""Fetches the files of one version into a private directory, and takes up again what broke off there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from gateway.control.admission import Limits
from gateway.control.cached_version import CachedFile
from gateway.control.fetch_progress import FetchState, FetchTrack
from gateway.control.file_threads import FileThreads
from gateway.control.partial_file import BUFFER_BYTES, PartialFile
from gateway.control.weights_errors import WeightsRefused
from registry_client.client import ByteStream, RegistryClient
from registry_client.errors import IntegrityError, ProtocolError, Unavailable
from registry_client.models import ModelFile, ModelVersion

RESUMES = 5
"""Breaks of one file that are taken up at once, while each brings it forward. Then the caller decides."""
RESUME_WAIT_S = 0.1
RESUME_WAIT_LIMIT_S = 5.0


class VersionFetch:
    """One attempt. Its owner holds the lock on `root`."""

    def __init__(
        self,
        client: RegistryClient,
        version: ModelVersion,
        root: Path,
        *,
        limits: Limits,
        threads: FileThreads,
        track: FetchTrack,
    ) -> None:
        self._client = client
        self._version = version
        self._root = root
        self._limits = limits
        self._threads = threads
        self._track = track
        self._finished_bytes = 0

    async def run(self) -> list[CachedFile]:
        """The files, each verified against what the registry promised of it.

        Raises the client's `RegistryError`s, `IntegrityError`, `WeightsRefused` past the limits, `OSError`.
        """
        await self._threads.run(self._remove_strangers)
        files = []
        for file in self._version.files:
            files.append(await self._fetch(file))
            self._finished_bytes += files[-1].size_bytes
        return files

    async def _fetch(self, file: ModelFile) -> CachedFile:
        # What an earlier attempt has left may be wrong itself, so a resumed file gets a second, clean try.
        for fresh in (False, True):
            partial = await self._threads.run(lambda fresh=fresh: self._open(file, fresh))  # type: ignore[misc]
            resumed = partial.size_bytes > 0
            try:
                self._track.enter(FetchState.FETCHING, file.path)
                await self._fill(partial, file)
                self._track.enter(FetchState.VERIFYING, file.path)
                return await self._threads.run(partial.finish)
            except IntegrityError:
                if not resumed:
                    raise
            finally:
                partial.close()
        raise AssertionError("the second try is fresh")

    def _open(self, file: ModelFile, fresh: bool) -> PartialFile:
        return PartialFile.open(self._root, file, fresh=fresh)

    async def _fill(self, partial: PartialFile, file: ModelFile) -> None:
        for resume in range(RESUMES + 1):
            if file.size_bytes is not None and partial.size_bytes == file.size_bytes:
                return
            before = partial.size_bytes
            try:
                await self._append(partial, file)
                return
            except Unavailable as error:
                if partial.size_bytes <= before or resume == RESUMES:
                    raise
                wait_s = error.retry_after_s or RESUME_WAIT_S * 2**resume
                await asyncio.sleep(min(wait_s, RESUME_WAIT_LIMIT_S))

    async def _append(self, partial: PartialFile, file: ModelFile) -> None:
        asked = partial.size_bytes
        async with self._client.open(self._version, file, offset=asked) as stream:
            expected = self._expected(file, stream)
            if stream.offset == 0 and asked:
                await self._threads.run(partial.restart)
            elif stream.offset != asked:
                raise ProtocolError(
                    f"{file.path!r} was asked for from byte {asked}, and came from byte {stream.offset}"
                )
            await self._copy(partial, file, stream, expected)
        if expected is not None and partial.size_bytes < expected:
            told = f"{file.path!r} ended after {partial.size_bytes} of {expected} bytes"
            if asked and partial.size_bytes == asked:
                raise IntegrityError(
                    f"{told}, and again when it was resumed: it is truncated in the registry"
                )
            raise Unavailable(told)

    def _expected(self, file: ModelFile, stream: ByteStream) -> int | None:
        promised, sent = file.size_bytes, stream.total_bytes
        if promised is not None and sent is not None and promised != sent:
            raise IntegrityError(f"{file.path!r} has {sent} bytes, {promised} were promised")
        return promised if promised is not None else sent

    async def _copy(
        self, partial: PartialFile, file: ModelFile, stream: ByteStream, expected: int | None
    ) -> None:
        buffer = bytearray()
        try:
            async for chunk in stream.chunks:
                buffer += chunk
                self._check_size(partial.size_bytes + len(buffer), file, expected)
                if len(buffer) >= BUFFER_BYTES:
                    content, buffer = bytes(buffer), bytearray()
                    await self._write(partial, content)
        finally:
            # Also after a break: what came in is not fetched again.
            if buffer:
                await self._write(partial, bytes(buffer))

    async def _write(self, partial: PartialFile, content: bytes) -> None:
        await self._threads.run(lambda: partial.append(content))
        self._track.advance(self._finished_bytes + partial.size_bytes)

    def _check_size(self, size_bytes: int, file: ModelFile, expected: int | None) -> None:
        if expected is not None and size_bytes > expected:
            raise IntegrityError(f"{file.path!r} has more than the {expected} bytes that were promised")
        if self._finished_bytes + size_bytes > self._limits.max_version_bytes:
            raise WeightsRefused(
                f"the version has more than {self._limits.max_version_bytes} bytes, the limit of one version"
            )

    def _remove_strangers(self) -> None:
        """Files of an earlier attempt that this version does not name."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        named = {file.path for file in self._version.files}
        for directory, _, names in os.walk(self._root):
            for name in names:
                path = Path(directory) / name
                if str(path.relative_to(self._root)) not in named:
                    path.unlink()
