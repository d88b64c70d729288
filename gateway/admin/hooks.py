"""Signals that others post in a form of their own. Handlers only translate."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin import alertmanager
from gateway.admin.alertmanager import Alert, Webhook
from gateway.admin.problems import problem
from gateway.admin.replica import Replica
from gateway.admin.requests import actor_of, author_of, json_response, read_body
from gateway.routing.change import ChangeRefused

ALERTS_LIMIT = 1000
"""Of one post; each is a line of the history."""
ALERTS_AT_ONCE = 32
"""Each has a connection to the store while it asks; and where the store is frozen, each waits for it in vain."""
ALERTMANAGER = "alertmanager"


def hook_routes(replica: Replica, prefix: str) -> list[Route]:
    """Every path that another system posts to."""
    return [Route(f"{prefix}/hooks/alertmanager", _Hooks(replica).alertmanager, methods=["POST"])]


class _Hooks:
    def __init__(self, replica: Replica) -> None:
        self._operations = replica.operations

    async def alertmanager(self, request: Request) -> Response:
        """Rolls back what the firing alerts name, all at once: one that is refused keeps no other waiting.

        422 where one of them was refused: Alertmanager logs it and counts a failed notification. 503 where one
        could not be written down: it tries again, and what was done is not done twice.
        """
        alerts = await self._alerts(request)
        firing = alertmanager.routes_first(alert for alert in alerts if alert.status == "firing")
        actor = actor_of(request, ALERTMANAGER)
        limit = asyncio.Semaphore(ALERTS_AT_ONCE)

        async def one(alert: Alert) -> dict[str, Any]:
            async with limit:
                return await self._obey(alert, actor)

        answers = await asyncio.gather(*map(one, firing[:ALERTS_LIMIT]), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return await self._answered(request, answers, len(firing) - len(answers))

    async def _alerts(self, request: Request) -> list[Alert]:
        try:
            hook = await read_body(request, Webhook)
            if hook.version != alertmanager.VERSION:
                raise HTTPException(422, f"version {hook.version[:40]!r} is not known; known: 4")
        except HTTPException as error:
            await self._operations.refuse(
                author_of(request, "", claimed=ALERTMANAGER),
                f"this is no webhook of Alertmanager: {error.detail}",
            )
            raise
        return hook.alerts

    async def _obey(self, alert: Alert, actor: str) -> dict[str, Any]:
        author = alertmanager.author_of(alert, actor)
        answer = {"fingerprint": alert.fingerprint, "op_id": author.op_id}
        try:
            outcome = await self._operations.obey(lambda: alertmanager.routes_of(alert), author)
        except ChangeRefused as error:
            return {**answer, "refused": True, "changed": False, "message": str(error)}
        return {
            **answer,
            "refused": False,
            "changed": outcome.changed,
            "message": outcome.message,
            "revision": outcome.revision,
        }

    async def _answered(self, request: Request, answers: list[Any], passed_over: int) -> Response:
        refused = [answer["message"] for answer in answers if answer["refused"]]
        if passed_over:
            refused.append(
                f"{passed_over} alerts more than {ALERTS_LIMIT} in one post are passed over: "
                "have Alertmanager group by route"
            )
            await self._operations.refuse(author_of(request, "", claimed=ALERTMANAGER), refused[-1])
        if refused:
            return problem(422, "; ".join(refused)[:4000], "The change is refused", alerts=answers)
        return json_response({"alerts": answers})
