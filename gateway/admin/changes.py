"""What the admin API lets people change. Handlers only translate: the changes are `control.operations`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin.replica import Replica
from gateway.admin.requests import Strict, author_of, if_match, json_response, outcome_response, read_body
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


class _RollbackBody(Strict):
    version: str | None = None
    reason: str = ""
    op_id: str = ""


class _PruneBody(Strict):
    max_bytes: int = 0


def change_routes(replica: Replica, prefix: str) -> list[Route]:
    """Every path that changes something, and the plan that says what would be."""
    changes = _Changes(replica)
    route = f"{prefix}/routes/{{route}}"
    return [
        Route(f"{route}/weights", changes.weights, methods=["PATCH"]),
        Route(f"{route}/rollback", changes.rollback, methods=["POST"]),
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

    async def rollback(self, request: Request) -> Response:
        body = await read_body(request, _RollbackBody)
        author = author_of(request, body.reason, body.op_id)
        name = request.path_params["route"]
        return outcome_response(await self._replica.operations.rollback(name, body.version, author))

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


def _percents(weights: dict[str, Any]) -> dict[str, float]:
    """Checked one by one, so that the error names the variant."""
    if not weights:
        raise HTTPException(422, 'weights is empty: name a variant, for example {"canary": 10}')
    for name, percent in weights.items():
        if isinstance(percent, bool) or not isinstance(percent, int | float):
            raise HTTPException(422, f"weights.{name[:140]} must be per cent, a number from 0 to 100")
    return weights
