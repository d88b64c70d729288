"""Waiting for news of the shared store: one blocking command after another, on a connection of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from gateway.control.redis_connection import CALL_TIMEOUT_S, RedisLine
from gateway.control.redis_values import fields, id_order, signal
from gateway.control.store import Signal

BLOCK_MS = 500
WATCH_TIMEOUT_S = 1.5
"""An empty answer after `BLOCK_MS` proves that the server lives; none by now, that it does not."""
COMPARE_S = 5.0
"""How often there is an item without a cause. A reader whose cursor is ahead of the server (a promoted stale
replica) would wait silently for ever."""
AT_ONCE = 10
"""Entries in one answer: one of them may have a megabyte."""


async def news(
    line: RedisLine, key: Callable[[str], str], jitter: Callable[[], float]
) -> AsyncGenerator[tuple[list[Signal], bool], None]:
    """As `Store.watch`, and whether it is time for a compare; raises the driver's errors.

    `jitter` varies the time between two compares.
    """
    cursors = _Cursors(key("log"), key("signals"), key("state"))
    while True:
        async with asyncio.timeout(CALL_TIMEOUT_S):
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

    def __init__(self, log: str, signals: str, state: str) -> None:
        self._log, self._signals, self._state = log, signals, state
        self._last: dict[str, bytes] = {}

    async def renew(self, line: RedisLine) -> list[Signal]:
        """To where the server is, which may have gone back; the signals that nobody is done with yet.

        The ends first, the reader's reading after: what comes in between is seen twice, never missed.
        """
        ends = [["XREVRANGE", name, "+", "-", "COUNT", 1] for name in (self._log, self._signals)]
        log, signals, done = await line.call(*ends, ["HGET", self._state, "signals_id"])
        self._last[self._log] = _end(log)
        end = _end(signals)
        if done is None:
            # No state: what came before there is one is about nothing.
            before = self._last.get(self._signals, end)
            self._last[self._signals] = min(before, end, key=id_order)
            return []
        self._last[self._signals] = done if id_order(done) != (0, 0) else b"0-0"
        if id_order(end) <= id_order(done):
            return []
        after = b"(" + self._last[self._signals]
        (entries,) = await line.call(["XRANGE", self._signals, after, "+", "COUNT", AT_ONCE])
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


def _end(entries: list[Any]) -> bytes:
    return entries[0][0] if entries else b"0-0"
