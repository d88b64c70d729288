"""How a worker leaves its clients: calls that last as long as they like are ended, the others are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from gateway.serving.tensors import InferenceError

GOING_AWAY = "this worker is going away: try again"
_HELD_S = 0.05
"""Before and after the goodbye: a call that a client has sent is here by then, and so is the goodbye with it."""


class Departure:
    """The open-ended parts of calls, each in a task of its own, and the moment in which no answer is given."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._released = asyncio.Event()
        self._released.set()

    def start(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `part` until it ends, or this worker goes. The caller cancels it when the call ends first."""
        task = asyncio.get_running_loop().create_task(part)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._leaving:
            task.cancel()
        return task

    async def run(self, part: Coroutine[Any, Any, None]) -> None:
        """Runs a call that is nothing but its open-ended part."""
        task = self.start(part)
        try:
            await asyncio.wait([task])
            self.end(task)
        finally:
            task.cancel()

    def end(self, task: asyncio.Task[None]) -> None:
        """The call's end, once its part has ended. Raises what the part raised, `InferenceError` (503) where
        this worker goes."""
        if task.cancelled():
            raise InferenceError(503, GOING_AWAY)
        task.result()

    async def answering(self) -> None:
        """Waits until answers may be given, which is at once until this worker goes."""
        if not self._released.is_set():
            await self._released.wait()

    async def leave(self, goodbye: Callable[[], Awaitable[None]]) -> None:
        """Ends the open-ended parts, says `goodbye`, and returns when that has.

        gRPC's core cancels a call that arrives behind its own goodbye, although the client cannot have heard
        it yet. So the answers wait until it was said: who waits for an answer sends nothing.
        """
        self._leaving = True
        for task in list(self._tasks):
            task.cancel()
        self._released.clear()
        saying = None
        try:
            await asyncio.sleep(_HELD_S)
            saying = asyncio.ensure_future(goodbye())
            await asyncio.sleep(_HELD_S)
        finally:
            self._released.set()
        await saying
