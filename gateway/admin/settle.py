"""What the admin API lets people say when the store and a replica differ: which of the two is right."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin.replica import Replica
from gateway.admin.requests import Strict, author_of, if_match, outcome_response, read_body


class _SettleBody(Strict):
    reason: str = ""
    op_id: str = ""


class _RestoreBody(_SettleBody):
    force: bool = False
    """Also where another replica holds later changes, which are undone by it."""


def settle_routes(replica: Replica, prefix: str) -> list[Route]:
    """Both take `If-Match` with the store's revision, 0.0 where it is empty."""
    settle = _Settle(replica)
    return [
        Route(f"{prefix}/restore", settle.restore, methods=["POST"]),
        Route(f"{prefix}/adopt", settle.adopt, methods=["POST"]),
    ]


class _Settle:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def restore(self, request: Request) -> Response:
        body = await read_body(request, _RestoreBody)
        author = author_of(request, body.reason, body.op_id)
        outcome = await self._replica.settlement.restore(author, if_match(request), force=body.force)
        return outcome_response(outcome)

    async def adopt(self, request: Request) -> Response:
        body = await read_body(request, _SettleBody)
        author = author_of(request, body.reason, body.op_id)
        return outcome_response(await self._replica.settlement.adopt(author, if_match(request)))
