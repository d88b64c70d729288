"""Fetches the files of one version into a private directory, and takes up again what broke off there."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from gateway.control.admission import Limits
from gateway.control.cached_version import CachedFile
from gateway.control.fetch_progress import FetchState, FetchTrack
from gateway.control.file_threads import FileThreads
from gateway.control.missing_spans import remove_notes
from gateway.control.parallel_fetch import FROM_BYTES, Asked, ParallelFetch, SourceChanged, divided, taken_up
from gateway.control.partial_file import BUFFER_BYTES, PartialFile
from gateway.control.weights_errors import WeightsRefused
from registry_client.client import ByteStream, RegistryClient
from registry_client.errors import IntegrityError, ProtocolError, Unavailable
from registry_client.models import ModelFile, ModelVersion, Scope


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
        self._undivided: set[str] = set()

    async def run(self) -> list[CachedFile]:
        """The files, each verified against what the registry promised of it.

        Raises the client's `RegistryError`s, `IntegrityError`, `WeightsRefused` past the limits, `OSError`.
        """
        await self._threads.run(self._remove_strangers)
        files = []
        for file in self._version.files:
            files.append(await self._fetch(file))
            self._finished_bytes += files[-1].size_bytes
        await self._threads.run(lambda: remove_notes(self._root))
        return files

    async def _fetch(self, file: ModelFile) -> CachedFile:
        # What an earlier attempt has left may be wrong itself, so a resumed file gets a second, clean try.
        for fresh in (False, True):
            partial = await self._open(file, fresh)
            resumed = partial.held_bytes > 0
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

    async def _open(self, file: ModelFile, fresh: bool) -> PartialFile:
        return await self._threads.run(
            lambda: PartialFile.open(self._root, file, fresh=fresh), undo=PartialFile.close
        )

    async def _fill(self, partial: PartialFile, file: ModelFile) -> None:
        await taken_up(lambda: self._go_on(partial, file), lambda: partial.held_bytes)

    async def _go_on(self, partial: PartialFile, file: ModelFile) -> None:
        if file.size_bytes is not None and partial.size_bytes == file.size_bytes:
            return
        try:
            await self._append(partial, file)
        except (SourceChanged, ProtocolError):
            if not partial.spans:
                raise
            await self._from_the_start(partial, file)
            await self._append(partial, file)

    async def _append(self, partial: PartialFile, file: ModelFile) -> None:
        asked = self._wanted(partial, file)
        async with self._open_part(file, asked) as stream:
            expected = self._expected(file, stream)
            if stream.end is not None and self._can_divide(file, stream):
                await self._fill_spans(partial, file, stream)
                return
            if partial.spans or (stream.offset == 0 and asked.start):
                await self._from_the_start(partial, file)
            elif stream.offset != asked.start:
                raise ProtocolError(
                    f"{file.path!r} was asked for from byte {asked.start}, and came from byte {stream.offset}"
                )
            await self._copy(partial, file, stream, expected)
        if stream.end is not None and partial.size_bytes == stream.end:
            # Nothing says that a second part would be of the same bytes: the rest comes in one stream.
            self._undivided.add(file.path)
            await self._append(partial, file)
        elif expected is not None and partial.size_bytes < expected:
            told = f"{file.path!r} ended after {partial.size_bytes} of {expected} bytes"
            if asked.start and partial.size_bytes == asked.start:
                raise IntegrityError(
                    f"{told}, and again when it was resumed: it is truncated in the registry"
                )
            raise Unavailable(told)

    def _wanted(self, partial: PartialFile, file: ModelFile) -> Asked:
        """The first part that is missing; all that is missing, where the file is not to be divided."""
        if partial.gaps:
            first = partial.gaps[0]
            return Asked(first.start, first.end, partial.validator)
        start, size_bytes = partial.size_bytes, file.size_bytes
        divisible = self._client.capabilities.parts and file.path not in self._undivided
        if not divisible or size_bytes is None or size_bytes - start < FROM_BYTES:
            return Asked(start)
        return Asked(start, divided(start, size_bytes)[0].end)

    def _open_part(self, file: ModelFile, asked: Asked) -> AbstractAsyncContextManager[ByteStream]:
        if asked.end is None:
            return self._client.open(self._version, file, offset=asked.start)
        return self._client.open(
            self._version, file, offset=asked.start, end=asked.end, validator=asked.validator
        )

    def _can_divide(self, file: ModelFile, stream: ByteStream) -> bool:
        """Whether parts of different states of the file would be told apart, sooner or later."""
        return bool(stream.validator) or (file.digest is not None and file.digest.scope is Scope.CONTENT)

    async def _fill_spans(self, partial: PartialFile, file: ModelFile, first: ByteStream) -> None:
        assert file.size_bytes is not None
        if not partial.spans:
            spans = divided(first.offset, file.size_bytes)
            await self._threads.run(lambda: partial.divide(spans, first.validator))
        await ParallelFetch(
            partial,
            lambda asked: self._open_part(file, asked),
            self._threads,
            lambda: self._track.advance(self._finished_bytes + partial.held_bytes),
        ).run(first)

    async def _from_the_start(self, partial: PartialFile, file: ModelFile) -> None:
        if partial.spans:
            self._undivided.add(file.path)
        await self._threads.run(partial.restart)

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
                self._check_size(partial.size_bytes + len(buffer) + len(chunk), file, expected)
                if not buffer and len(chunk) >= BUFFER_BYTES:
                    await self._write(partial, chunk)
                    continue
                buffer += chunk
                if len(buffer) >= BUFFER_BYTES:
                    content, buffer = bytes(buffer), bytearray()
                    await self._write(partial, content)
        finally:
            # Also after a break: what came in is not fetched again.
            if buffer:
                await self._write(partial, bytes(buffer))

    async def _write(self, partial: PartialFile, content: bytes | memoryview) -> None:
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
