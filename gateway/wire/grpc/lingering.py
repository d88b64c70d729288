"""Calls that last as long as their clients like: they end when the worker goes, which waits for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from grpc import StatusCode

GOING_AWAY = "this worker is going away: try again"


class Lingering:
    """The open-ended parts of such calls, each in a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False

    def start(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `part` until it ends, or this worker goes. The caller cancels it when the call ends first."""
        task = asyncio.get_running_loop().create_task(part)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._leaving:
            task.cancel()
        return task

    async def run(self, part: Coroutine[Any, Any, None], context: Any) -> None:
        """Runs a call that is nothing but its open-ended part."""
        task = self.start(part)
        try:
            await asyncio.wait([task])
            await self.end(task, context)
        finally:
            task.cancel()

    async def end(self, task: asyncio.Task[None], context: Any) -> None:
        """The call's status, once its part has ended. Raises what the part raised."""
        if task.cancelled():
            await context.abort(StatusCode.UNAVAILABLE, GOING_AWAY)
        task.result()

    def leave(self) -> None:
        """No part goes on from now on."""
        self._leaving = True
        for task in list(self._tasks):
            task.cancel()
