"""What the admin API tells of the history: its lines, what served at a time, and whether it is whole."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin import documents
from gateway.admin.replica import Replica
from gateway.admin.requests import integer_of, json_response
from gateway.control.as_of import AsOf, NotTold
from gateway.control.chain import Noted, Verifier
from gateway.control.store import HistoryRecord
from gateway.routing.state import EMPTY

HISTORY_LIMIT = 1000
HEADS_LIMIT = 100
CLOCKS_DIFFER_S = 60
"""A time that is further ahead than this replica's clock lies in the future, whatever the store's clock says."""


def audit_routes(replica: Replica, prefix: str) -> list[Route]:
    """Every path that tells of the history."""
    audit = _Audit(replica)
    return [Route(f"{prefix}/audit", audit.audit), Route(f"{prefix}/audit/verify", audit.verify)]


class _Audit:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def audit(self, request: Request) -> Response:
        """The newest lines, with `?route=` those that changed it; with `?at=` what served then."""
        route = request.query_params.get("route")
        if (at := request.query_params.get("at")) is not None:
            return await self._as_of(_at_us(at), route)
        limit = integer_of(request, "limit", 100, HISTORY_LIMIT)
        records = await self._replica.store.history(limit if route is None else HISTORY_LIMIT)
        if route is not None:
            records = [record for record in records if _changes(record, route)][:limit]
        return json_response({"records": documents.history_documents(records)})

    async def verify(self, request: Request) -> Response:
        """Reads all of it. What this replica holds is one more witness: its head must be in there too."""
        held = self._replica.deliverer.held
        given = request.query_params.getlist("head")
        if len(given) > HEADS_LIMIT:
            raise HTTPException(422, f"head: {len(given)} of them are too many; at most {HEADS_LIMIT}")
        noted = [Noted(head, "that was given") for head in given]
        if held.head:
            noted.append(
                Noted(held.head, f"that this replica took with revision {held.revision}", held.revision)
            )
        ledger = await self._replica.store.ledger()
        verifier = Verifier(noted)
        async for lines in ledger.pages:
            # In a thread, as below: ten thousand lines, or routes, take a while, and rollbacks go through this loop.
            await asyncio.to_thread(verifier.read, lines)
        return json_response(verifier.verdict(ledger.head, ledger.kept))

    async def _as_of(self, at_us: int, route: str | None) -> Response:
        # The state first: a change that comes in between is then in the history, and goes before it.
        now = await self._replica.store.read() or EMPTY
        ledger = await self._replica.store.ledger()
        then = AsOf(at_us, route)
        async for lines in ledger.pages:
            await asyncio.to_thread(then.read, [line.record for line in lines if line.record is not None])
        try:
            routes = await asyncio.to_thread(then.served, now)
            return json_response({"at_us": at_us, "revision": then.revision, "routes": routes})
        except NotTold as error:
            raise HTTPException(422, f"at: {error}") from error


def _changes(record: HistoryRecord, route: str) -> bool:
    return any(change.get("route") == route for change in record.changes)


def _at_us(text: str) -> int:
    """Microseconds since the epoch, of such a number or of an ISO 8601 time with its zone."""
    try:
        if text.isascii() and text.isdigit():
            us = int(text)
            datetime.fromtimestamp(us / 1e6).astimezone()
        else:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                raise ValueError("it has no zone")
            us = round(moment.timestamp() * 1e6)
    except (ValueError, OverflowError, OSError) as error:
        raise HTTPException(
            422, f"at: {text[:60]!r} is no time such as 2026-11-23T14:03:00Z, nor microseconds since 1970"
        ) from error
    if us > (time.time() + CLOCKS_DIFFER_S) * 1e6:
        raise HTTPException(422, f"at: {text[:60]!r} lies in the future")
    return us
