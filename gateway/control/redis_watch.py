"""Waiting for news of the shared store: one blocking command after another, on a connection of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from gateway.control import redis_connection
from gateway.control.redis_connection import RedisLine
from gateway.control.redis_scripts import LOOK
from gateway.control.redis_values import SIGNAL_BYTES, SIGNAL_FIELDS, fields, signal
from gateway.control.store import Signal

BLOCK_MS = 500
WATCH_TIMEOUT_S = 1.5
"""An empty answer after `BLOCK_MS` proves that the server lives; none by now, that it does not."""
COMPARE_S = 5.0
"""How often there is an item without a cause. A reader whose cursor is ahead of the server (a promoted stale
replica) would wait silently for ever."""
AT_ONCE = 10
"""Entries in one answer: one of them may have a megabyte."""
SIGNALS_AT_ONCE = 100
"""That are cut to size by the server."""


class DoneWith:
    """The last signal that this process is done with: where a store that was emptied has lost its cursor."""

    id: bytes = b""


async def news(
    line: RedisLine, key: Callable[[str], str], done: DoneWith, jitter: Callable[[], float]
) -> AsyncGenerator[tuple[list[Signal], bool], None]:
    """As `Store.watch`, and whether it is time for a compare; raises the driver's errors.

    `jitter` varies the time between two compares.
    """
    cursors = _Cursors(key("log"), key("signals"), key("state"), done)
    while True:
        async with asyncio.timeout(redis_connection.CALL_TIMEOUT_S):
            signals = await cursors.renew(line)
        until = time.monotonic() + COMPARE_S * jitter()
        yield signals, True
        while (left_s := until - time.monotonic()) > 0:
            block_ms = min(BLOCK_MS, max(1, int(left_s * 1000)))
            async with asyncio.timeout(WATCH_TIMEOUT_S):
                found = await cursors.advance(line, block_ms)
            if found is not None:
                yield found, False


class _Cursors:
    """The last entry of each stream that was seen."""

    def __init__(self, log: str, signals: str, state: str, done: DoneWith) -> None:
        self._log, self._signals, self._state, self._done = log, signals, state, done
        self._last: dict[str, bytes] = {}

    async def renew(self, line: RedisLine) -> list[Signal]:
        """To where the server is, which may have gone back; the signals that nobody is done with yet.

        The ends first, the reader's reading after: what comes in between is seen twice, never missed.
        """
        keys = [self._state, self._log, self._signals]
        bounds = [SIGNALS_AT_ONCE, 2 * SIGNAL_FIELDS, SIGNAL_BYTES]
        log, done, entries = await line.script(LOOK, keys, [*bounds, self._done.id])
        self._done.id = done
        self._last = {self._log: log, self._signals: done}
        return self._taken(self._signals, entries)

    async def advance(self, line: RedisLine, block_ms: int) -> list[Signal] | None:
        """None when nothing came."""
        options = ["COUNT", AT_ONCE, "BLOCK", block_ms]
        names = [self._log, self._signals]
        ids = [self._last[name] for name in names]
        (found,) = await line.call(["XREAD", *options, "STREAMS", *names, *ids])
        if not found:
            return None
        taken = {name: self._taken(name.decode(), entries) for name, entries in found}
        return taken.get(self._signals.encode(), [])

    def _taken(self, name: str, entries: Iterable[Any]) -> list[Signal]:
        signals = []
        for id_, flat in entries:
            self._last[name] = id_
            if name == self._signals and flat:
                signals.append(signal(id_, fields(flat)))
        return signals
