"""The whole history in Redis, as it is read to be verified or searched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from gateway.control.redis_connection import RedisConnections
from gateway.control.redis_scripts import LEDGER, LOG_KEPT
from gateway.control.redis_values import fields, history_record, text
from gateway.control.store import HistoryRecord, Ledger, Line

PAGE = 200
"""Lines a round trip. One of them is 5 MB where 10,000 routes changed at once; most are half a kilobyte."""
_FIELDS = frozenset(name.encode() for name in HistoryRecord.__struct_fields__)


async def read_ledger(connections: RedisConnections, state: str, log: str) -> Ledger:
    """The lines up to the end that the log has now, and the head that the state holds now."""
    (epoch, head), last = await connections.script(LEDGER, [state, log], [])
    return Ledger(
        head=text(head or b"") if epoch is not None else None,
        kept=LOG_KEPT,
        pages=_pages(connections, log, last[0][0] if last else None),
    )


async def _pages(connections: RedisConnections, log: str, end: Any) -> AsyncIterator[Sequence[Line]]:
    start: Any = b"-"
    while end is not None:
        (entries,) = await connections.call(["XRANGE", log, start, end, "COUNT", PAGE])
        if not entries:
            return
        # In a thread: rollbacks go through this loop.
        yield await asyncio.to_thread(_lines, entries)
        start = b"(" + entries[-1][0]


def _lines(entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Line]:
    return [Line(f"entry {text(id_)}", _record(flat)) for id_, flat in entries]


def _record(flat: Sequence[bytes]) -> HistoryRecord | None:
    found = fields(flat)
    # A pair that is written twice would hide behind its last one.
    return history_record(found) if found.keys() <= _FIELDS and len(flat) == 2 * len(found) else None
