"""The bytes of one file on a disk, as a stream that begins at an offset.

Bytes over http come from `HttpTransport.stream`, and neither goes through obstore (measured with 0.12.1):
its HTTP store follows redirects by itself, to any address, sends the configured headers along (all but
Authorization), and puts a presigned URL with its signature into the Referer of the next host; it takes
headers per store, not per request. Its local store follows symlinks. It is for s3:, gs: and az: addresses.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from registry_client.client import ByteStream
from registry_client.local_files import CHUNK_BYTES, mapped, open_file_below

T = TypeVar("T")


class InThread(Protocol):
    """Runs a blocking call in a thread that its owner has set aside for such calls."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


@asynccontextmanager
async def open_local(
    root: Path, parts: Sequence[str], *, offset: int, in_thread: InThread
) -> AsyncIterator[ByteStream]:
    """A regular file below `root`, reached through no symlink.

    An offset past its end is not honoured: the stream begins at 0. Raises as `open_file_below`.
    """
    handle, status = await _opened(in_thread(lambda: open_file_below(root, parts)))
    start = offset if 0 <= offset <= status.st_size else 0
    try:
        yield ByteStream(
            offset=start,
            total_bytes=status.st_size,
            chunks=_chunks(handle, start, Path(root, *parts), in_thread),
        )
    finally:
        os.close(handle)


async def _opened(opening: Awaitable[tuple[int, os.stat_result]]) -> tuple[int, os.stat_result]:
    # A thread cannot be cancelled: what it opens after its caller has gone has to be closed all the same.
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close_if_opened)
        raise


def _close_if_opened(task: asyncio.Future[tuple[int, os.stat_result]]) -> None:
    if not task.cancelled() and task.exception() is None:
        os.close(task.result()[0])


async def _chunks(handle: int, start: int, where: Path, in_thread: InThread) -> AsyncIterator[bytes]:
    position = start
    while chunk := await in_thread(partial(_read_at, handle, position, where)):
        position += len(chunk)
        yield chunk


def _read_at(handle: int, position: int, where: Path) -> bytes:
    try:
        return os.pread(handle, CHUNK_BYTES, position)
    except OSError as error:
        raise mapped(error, where) from error
