"""What the admin API lets people change. Handlers only translate: the changes are `control.operations`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin.auth import HOLDER
from gateway.admin.replica import Replica
from gateway.admin.requests import Strict, author_of, if_match, json_response, outcome_response, read_body
from gateway.admin.roles import Role
from gateway.control.manifest_file import based
from gateway.routing.manifest import Manifest, parse_manifest
from gateway.routing.plan import Plan


class _ManifestBody(Strict):
    manifest: str
    base: str = "/"
    reason: str = ""


class _WeightsBody(Strict):
    weights: dict[str, Any]
    reason: str = ""


class _WeightsOfBody(Strict):
    routes: dict[str, dict[str, Any]]
    reason: str = ""


class _RollbackBody(Strict):
    version: str | None = None
    reason: str = ""
    op_id: str = ""


class _RollbackOfBody(Strict):
    routes: dict[str, str | None]
    reason: str = ""
    op_id: str = ""


B = TypeVar("B", _RollbackBody, _RollbackOfBody)


class _PruneBody(Strict):
    max_bytes: int = 0


def change_routes(replica: Replica, prefix: str) -> list[Route]:
    """Every path that changes something, and the plan that says what would be."""
    changes = _Changes(replica)
    route = f"{prefix}/routes/{{route}}"
    return [
        Route(f"{route}/weights", changes.weights, methods=["PATCH"]),
        Route(f"{prefix}/weights", changes.weights_of, methods=["PATCH"]),
        Route(f"{route}/rollback", changes.rollback, methods=["POST"]),
        Route(f"{prefix}/rollback", changes.rollback_of, methods=["POST"]),
        Route(f"{route}/denies/{{version:path}}", changes.allow, methods=["DELETE"]),
        Route(f"{prefix}/plan", changes.plan, methods=["POST"]),
        Route(f"{prefix}/apply", changes.apply, methods=["POST"]),
        Route(f"{prefix}/cache/prune", changes.prune, methods=["POST"]),
    ]


class _Changes:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def weights(self, request: Request) -> Response:
        body = await read_body(request, _WeightsBody)
        author = author_of(request, body.reason)
        name = request.path_params["route"]
        expect = if_match(request)
        weights = _percents(body.weights)
        return outcome_response(await self._replica.operations.weights(name, weights, author, expect))

    async def weights_of(self, request: Request) -> Response:
        """Several routes in one revision."""
        body = await read_body(request, _WeightsOfBody)
        author = author_of(request, body.reason)
        expect = if_match(request)
        weights = {name: _percents(given, f"routes.{name[:140]}") for name, given in body.routes.items()}
        return outcome_response(await self._replica.operations.weights_of(weights, author, expect))

    async def rollback(self, request: Request) -> Response:
        body = await self._rollback_body(request, _RollbackBody)
        return await self._roll_back(request, {request.path_params["route"]: body.version}, body)

    async def rollback_of(self, request: Request) -> Response:
        """Several routes in one revision, each with its version or null."""
        body = await self._rollback_body(request, _RollbackOfBody)
        return await self._roll_back(request, body.routes, body)

    async def _rollback_body(self, request: Request, type_: type[B]) -> B:
        try:
            return await read_body(request, type_)
        except HTTPException as error:
            if _is_signal(request):
                await self._replica.operations.refuse(author_of(request, ""), error.detail)
            raise

    async def _roll_back(
        self, request: Request, routes: Mapping[str, str | None], body: _RollbackBody | _RollbackOfBody
    ) -> Response:
        author = author_of(request, body.reason, body.op_id)
        operations = self._replica.operations
        if _is_signal(request):
            return outcome_response(await operations.obey(lambda: routes, author))
        return outcome_response(await operations.rollback_of(routes, author))

    async def allow(self, request: Request) -> Response:
        author = author_of(request, request.query_params.get("reason", ""))
        name, version = request.path_params["route"], request.path_params["version"]
        return outcome_response(await self._replica.operations.allow(name, version, author))

    async def plan(self, request: Request) -> Response:
        body = await read_body(request, _ManifestBody)
        plan = await self._replica.operations.plan(await _manifest(body))
        return json_response(_plan_document(plan, self._replica.deliverer.held.label))

    async def apply(self, request: Request) -> Response:
        body = await read_body(request, _ManifestBody)
        author = author_of(request, body.reason)
        manifest, expect = await _manifest(body), if_match(request)
        plan, outcome = await self._replica.operations.apply(manifest, author, expect)
        document = _plan_document(plan, outcome.revision)
        return json_response({**document, **msgspec.to_builtins(outcome)}, etag=outcome.revision)

    async def prune(self, request: Request) -> Response:
        body = await read_body(request, _PruneBody)
        gone = await self._replica.versions.weights.prune(body.max_bytes, self._replica.deliverer.in_use())
        return json_response({"pruned": gone})


def _is_signal(request: Request) -> bool:
    """What a guard posts is one: whatever becomes of it has its line in the history."""
    return bool(request.scope[HOLDER].role is Role.GUARD)


async def _manifest(body: _ManifestBody) -> Manifest:
    # In a thread: PyYAML takes five seconds for a megabyte, and rollbacks go through this loop.
    return based(await asyncio.to_thread(parse_manifest, body.manifest), Path(body.base))


def _plan_document(plan: Plan, revision: str) -> dict[str, Any]:
    return {
        "revision": revision,
        "changes": [msgspec.to_builtins(change) for change in plan.changes],
        "lines": [str(change) for change in plan.changes],
        "notes": plan.notes,
    }


def _percents(weights: dict[str, Any], at: str = "weights") -> dict[str, float]:
    """Checked one by one, so that the error names the variant."""
    if not weights:
        raise HTTPException(422, f'{at} is empty: name a variant, for example {{"canary": 10}}')
    for name, percent in weights.items():
        if isinstance(percent, bool) or not isinstance(percent, int | float):
            raise HTTPException(422, f"{at}.{name[:140]} must be per cent, a number from 0 to 100")
    return weights
