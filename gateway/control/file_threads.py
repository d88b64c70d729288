"""The threads in which the weights' files are written and hashed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

THREADS = 4
"""A pool of their own: gigabytes that are hashed must not hold up the state store's threads."""


class FileThreads:
    """Runs blocking work; a cancelled caller waits until what it began has ended."""

    def __init__(self, threads: int = THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="turnout-weights")

    async def run(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # Else the caller would close files that the thread still writes, and a number that the
            # system has meanwhile given to another file would be written to.
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue
            if not future.cancelled():
                future.exception()
            raise

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
