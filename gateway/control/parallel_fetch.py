"""One large file over several connections at once, each with a part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from gateway.control.file_threads import FileThreads
from gateway.control.missing_spans import Span
from gateway.control.partial_file import PartialFile
from registry_client.client import ByteStream
from registry_client.errors import IntegrityError, ProtocolError, Unavailable

FROM_BYTES = 64 * 2**20
"""Smaller files come over one connection: there, a second one costs more than it brings."""
CONNECTIONS = 4
SPAN_BYTES = 32 * 2**20
SPANS = 64
"""At most; of a very large file each is longer."""
HASH_BYTES = 32 * 2**20
RESUMES = 5
"""Breaks of one stream that are taken up at once, while each brings it forward. Then the caller decides."""
RESUME_WAIT_S = 0.1
RESUME_WAIT_LIMIT_S = 5.0


class Asked(NamedTuple):
    """From `start` up to `end`, or to the file's end, of the file that `validator` names."""

    start: int
    end: int | None = None
    validator: str = ""


OpenPart = Callable[[Asked], AbstractAsyncContextManager[ByteStream]]


class SourceChanged(Exception):
    """The source does not go on with parts of the file that it began with."""


def divided(start: int, end: int) -> list[Span]:
    """The spans from `start` to `end`, in order."""
    length = max(SPAN_BYTES, -(-(end - start) // SPANS))
    return [Span(at, min(at + length, end)) for at in range(start, end, length)]


async def taken_up(attempt: Callable[[], Awaitable[None]], done_bytes: Callable[[], int]) -> None:
    """Attempts again what breaks off, as long as each attempt brings it forward."""
    for resume in range(RESUMES + 1):
        before = done_bytes()
        try:
            await attempt()
            return
        except Unavailable as error:
            if done_bytes() <= before or resume == RESUMES:
                raise
            wait_s = error.retry_after_s or RESUME_WAIT_S * 2**resume
            await asyncio.sleep(min(wait_s, RESUME_WAIT_LIMIT_S))


class ParallelFetch:
    """Fills the spans of a divided file. `advanced` is called after every chunk."""

    def __init__(
        self, partial: PartialFile, open_part: OpenPart, threads: FileThreads, advanced: Callable[[], None]
    ) -> None:
        self._partial = partial
        self._open = open_part
        self._threads = threads
        self._advanced = advanced
        self._todo = list(reversed(partial.gaps))
        self._grew = asyncio.Event()
        self._whole = False

    async def run(self, first: ByteStream) -> None:
        """Returns when the file is whole and hashed. `first` is the open stream of the first span.

        Raises `SourceChanged`, and what `open_part` raises; what came until then is kept.
        """
        hashing = asyncio.create_task(self._hash_along())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._work(first))
                for _ in range(CONNECTIONS - 1):
                    group.create_task(self._work(None))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        else:
            self._whole = True
            self._grew.set()
            await hashing
        finally:
            hashing.cancel()
            await asyncio.wait([hashing])
            await self._threads.run(self._partial.keep_spans)

    async def _work(self, stream: ByteStream | None) -> None:
        """Takes one span after the other, until none is left."""
        while self._todo:
            span = self._todo.pop()
            if stream is not None:
                begun, stream = stream, None
                try:
                    await self._copy(span, begun)
                except Unavailable:
                    if span.start == begun.offset:
                        raise
            await taken_up(lambda: self._fill(span), lambda: span.start)  # noqa: B023 - awaited at once
            await self._threads.run(self._partial.keep_spans)

    async def _fill(self, span: Span) -> None:
        if span.start == span.end:
            return
        try:
            async with self._open(Asked(span.start, span.end, self._partial.validator)) as stream:
                if stream.offset != span.start or stream.end is None:
                    raise SourceChanged
                await self._copy(span, stream)
        except ProtocolError as error:
            raise SourceChanged from error

    async def _copy(self, span: Span, stream: ByteStream) -> None:
        async for chunk in stream.chunks:
            if len(chunk) > span.end - span.start:
                raise IntegrityError(f"more came than the bytes up to {span.end} that were asked for")
            await self._threads.run(lambda: self._partial.write_into(span, chunk))  # noqa: B023
            self._advanced()
            self._grew.set()
        if span.start < span.end:
            raise Unavailable(f"a part ended {span.end - span.start} bytes early")

    async def _hash_along(self) -> None:
        while True:
            self._grew.clear()
            whole = self._whole
            while await self._threads.run(lambda: self._partial.hash_on(HASH_BYTES)):
                pass
            if whole:
                return
            await self._grew.wait()
