"""The whole history in Redis, as it is read to be verified or searched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.asyncio import Redis

from gateway.control.redis_connection import RedisAddress
from gateway.control.redis_scripts import LOG_KEPT
from gateway.control.redis_values import history_record, text
from gateway.control.store import HistoryRecord, Ledger, Line

PAGE = 200
"""Lines a round trip. One of them is 5 MB where 10,000 routes changed at once; most are half a kilobyte."""
_FIELDS = frozenset(name.encode() for name in HistoryRecord.__struct_fields__)


async def read_ledger(redis: Redis, address: RedisAddress, state: str, log: str) -> Ledger:
    """The lines up to the end that the log has now, and the head that the state holds now."""
    with address.mapped():
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hmget(state, ["epoch", "head"])
            pipe.xrevrange(log, count=1)
            (epoch, head), last = await pipe.execute()
    end = last[0][0] if last else None
    return Ledger(
        head=text(head or b"") if epoch is not None else None,
        kept=LOG_KEPT,
        pages=_pages(redis, address, log, end),
    )


async def _pages(redis: Redis, address: RedisAddress, log: str, end: Any) -> AsyncIterator[Sequence[Line]]:
    start: Any = b"-"
    while end is not None:
        with address.mapped():
            entries: Any = await redis.xrange(log, min=start, max=end, count=PAGE)
        if not entries:
            return
        # In a thread: rollbacks go through this loop.
        yield await asyncio.to_thread(_lines, entries)
        start = b"(" + entries[-1][0]


def _lines(entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Line]:
    return [Line(f"entry {text(id_)}", _record(fields)) for id_, fields in entries]


def _record(fields: dict[bytes, bytes]) -> HistoryRecord | None:
    return history_record(fields) if fields.keys() <= _FIELDS else None
