"""The admin API under /api/v1, and the probes and metrics beside it. Handlers only translate."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.admin import documents
from gateway.admin.auth import TRUSTED, AdminGuard
from gateway.admin.problems import HANDLED, handle, handle_bug, handle_http
from gateway.admin.replica import Replica
from gateway.control.manifest_file import based
from gateway.control.operations import Outcome
from gateway.control.store import Author, StoreUnavailable
from gateway.routing.change import route_of
from gateway.routing.manifest import SIZE_LIMIT_BYTES, Manifest, parse_manifest
from gateway.routing.plan import Plan
from gateway.routing.state import Revision
from gateway.telemetry.metrics import metrics_registry
from registry_client import ModelRef, split_model

T = TypeVar("T")
ACTOR_HEADER = "turnout-actor"
HISTORY_LIMIT = 1000
KEEP_ALIVE_S = 15.0
BODY_LIMIT_BYTES = 2 * SIZE_LIMIT_BYTES


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """A body whose misspelt field is an error, not a change that nobody meant."""


class _ManifestBody(_Strict):
    manifest: str
    base: str = "/"
    reason: str = ""


class _WeightsBody(_Strict):
    weights: dict[str, Any]
    reason: str = ""


class _RollbackBody(_Strict):
    version: str | None = None
    reason: str = ""
    op_id: str = ""


class _PruneBody(_Strict):
    max_bytes: int = 0


def admin_app(replica: Replica) -> Starlette:
    """The application of the admin listener."""
    api = _Api(replica)
    v1 = "/api/v1"
    route = v1 + "/routes/{route}"
    return Starlette(
        routes=[
            Route("/livez", api.livez),
            Route("/readyz", api.readyz),
            Route("/metrics", api.metrics),
            Route(f"{v1}/routes", api.routes),
            Route(route, api.route),
            Route(f"{route}/weights", api.weights, methods=["PATCH"]),
            Route(f"{route}/rollback", api.rollback, methods=["POST"]),
            Route(f"{route}/denies/{{version:path}}", api.allow, methods=["DELETE"]),
            Route(f"{v1}/plan", api.plan, methods=["POST"]),
            Route(f"{v1}/apply", api.apply, methods=["POST"]),
            Route(f"{v1}/status", api.status),
            Route(f"{v1}/audit", api.audit),
            Route(f"{v1}/events", api.events),
            Route(f"{v1}/registries", api.registries),
            Route(f"{v1}/versions", api.versions),
            Route(f"{v1}/resolve", api.resolve),
            Route(f"{v1}/cache", api.cache),
            Route(f"{v1}/cache/prune", api.prune, methods=["POST"]),
        ],
        middleware=[Middleware(AdminGuard, token=replica.token)],
        exception_handlers={
            **dict.fromkeys(HANDLED, handle),
            HTTPException: handle_http,
            Exception: handle_bug,
        },
    )


class _Api:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._metrics = metrics_registry(replica.collector)

    async def livez(self, _: Request) -> Response:
        return _json({"live": True})

    async def readyz(self, request: Request) -> Response:
        """Ready as long as there is a state to serve; what is degraded is said beside it, to who may know."""
        ready = self._replica.ready()
        if not request.scope[TRUSTED]:
            return _json({"ready": ready}, 200 if ready else 503)
        document = {
            "ready": ready,
            "revision": self._replica.deliverer.held.label,
            "degraded": self._replica.degraded(),
        }
        return _json(document, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics), media_type=content_type)

    async def routes(self, _: Request) -> Response:
        held = self._replica.deliverer.held
        return _json(
            {"revision": held.label, "routes": documents.route_documents(held, self._replica.totals())}
        )

    async def route(self, request: Request) -> Response:
        held = self._replica.deliverer.held
        name = request.path_params["route"]
        route_of(held, name)
        return _json(documents.route_document(held, name, self._replica.totals()), etag=str(held.revision))

    async def weights(self, request: Request) -> Response:
        body = await _body(request, _WeightsBody)
        author = _author(request, body.reason)
        name = request.path_params["route"]
        expect = _if_match(request)
        weights = _percents(body.weights)
        return _outcome(await self._replica.operations.weights(name, weights, author, expect))

    async def rollback(self, request: Request) -> Response:
        body = await _body(request, _RollbackBody)
        author = _author(request, body.reason, body.op_id)
        name = request.path_params["route"]
        return _outcome(await self._replica.operations.rollback(name, body.version, author))

    async def allow(self, request: Request) -> Response:
        author = _author(request, request.query_params.get("reason", ""))
        name, version = request.path_params["route"], request.path_params["version"]
        return _outcome(await self._replica.operations.allow(name, version, author))

    async def plan(self, request: Request) -> Response:
        body = await _body(request, _ManifestBody)
        plan = await self._replica.operations.plan(await _manifest(body))
        return _json(_plan_document(plan, self._replica.deliverer.held.label))

    async def apply(self, request: Request) -> Response:
        body = await _body(request, _ManifestBody)
        author = _author(request, body.reason)
        manifest, expect = await _manifest(body), _if_match(request)
        plan, outcome = await self._replica.operations.apply(manifest, author, expect)
        document = _plan_document(plan, outcome.revision)
        return _json({**document, **msgspec.to_builtins(outcome)}, etag=outcome.revision)

    async def status(self, _: Request) -> Response:
        """This replica's standing and every live replica's acknowledgement."""
        replica = self._replica
        try:
            members = await replica.store.members()
        except StoreUnavailable:
            members = [replica.member()]
        own = replica.member()
        return _json(
            {
                "replica": own.replica,
                "revision": replica.deliverer.held.label,
                "ready": replica.ready(),
                "degraded": replica.degraded(),
                "members": [documents.member_document(member) for member in members],
                "fetches": msgspec.to_builtins(list(replica.versions.weights.progress())),
            }
        )

    async def audit(self, request: Request) -> Response:
        limit = _integer(request, "limit", 100, HISTORY_LIMIT)
        return _json({"records": documents.history_documents(await self._replica.store.history(limit))})

    async def events(self, request: Request) -> Response:
        return StreamingResponse(
            self._stream(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def registries(self, _: Request) -> Response:
        declared = self._replica.deliverer.held.state.registries
        return _json(
            {
                "registries": [
                    {"name": name, "type": registry.type, "options": registry.options}
                    for name, registry in sorted(declared.items())
                ]
            }
        )

    async def versions(self, request: Request) -> Response:
        """The versions of `?model=registry/model`, the newest first."""
        registry, model = split_model(request.query_params.get("model", ""))
        versions = self._replica.versions
        client = versions.registries.client(registry, self._replica.deliverer.held.state.registries)
        found = await client.versions(model, limit=_integer(request, "limit", 100, HISTORY_LIMIT))
        aliases = await client.aliases(model)
        return _json(
            {
                "versions": [
                    {
                        **documents.version_document(version, await versions.weights.known_digest(version)),
                        "aliases": sorted(
                            alias for alias, number in aliases.items() if number == version.version
                        ),
                    }
                    for version in found
                ]
            }
        )

    async def resolve(self, request: Request) -> Response:
        """The pin behind `?reference=registry/model@revision`; with `fetch=true` its files are fetched."""
        reference = ModelRef.parse(request.query_params.get("reference", ""))
        declared = self._replica.deliverer.held.state.registries
        pin, version = await self._replica.versions.look_up(reference, declared)
        if request.query_params.get("fetch") == "true":
            pin, _ = await self._replica.versions.fetch(pin, declared)
        return _json({"reference": str(reference), **documents.version_document(version, pin.digest or None)})

    async def cache(self, _: Request) -> Response:
        weights = self._replica.versions.weights
        in_use = self._replica.deliverer.in_use()
        cached = [
            {**msgspec.to_builtins(entry), "in_use": entry.digest in in_use} for entry in await weights.list()
        ]
        return _json({"versions": cached, "fetches": list(weights.progress())})

    async def prune(self, request: Request) -> Response:
        body = await _body(request, _PruneBody)
        gone = await self._replica.versions.weights.prune(body.max_bytes, self._replica.deliverer.in_use())
        return _json({"pruned": gone})

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        with self._replica.events.subscribe() as events:
            yield b": turnout events\n\n"
            while True:
                event: dict[str, Any] | None = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        event = await events.get()
                if event is None:
                    yield b": still here\n\n"
                else:
                    yield b"event: %s\ndata: %s\n\n" % (event["kind"].encode(), msgspec.json.encode(event))


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


async def _body(request: Request, type_: type[T]) -> T:
    chunks = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_LIMIT_BYTES:
            raise HTTPException(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes")
        chunks.append(chunk)
    body = b"".join(chunks)
    try:
        return msgspec.json.decode(body or b"{}", type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(422, f"the body is not valid: {error}") from error


def _percents(weights: dict[str, Any]) -> dict[str, float]:
    """Checked one by one, so that the error names the variant."""
    if not weights:
        raise HTTPException(422, 'weights is empty: name a variant, for example {"canary": 10}')
    for name, percent in weights.items():
        if isinstance(percent, bool) or not isinstance(percent, int | float):
            raise HTTPException(422, f"weights.{name[:140]} must be per cent, a number from 0 to 100")
    return weights


def _author(request: Request, reason: str, op_id: str = "") -> Author:
    """Who: as the client says. The token tells that it may, this tells people whom to ask."""
    actor = request.headers.get(ACTOR_HEADER, "") or "api"
    printable = "".join(character for character in actor if character.isprintable())
    return Author(actor=printable[:80], reason=reason[:500], op_id=op_id[:80] or secrets.token_hex(8))


def _if_match(request: Request) -> Revision | None:
    text = request.headers.get("if-match")
    if text is None or text.strip() == "*":
        return None
    try:
        return Revision.parse(text)
    except ValueError as error:
        raise HTTPException(422, f"If-Match: {error}") from error


def _integer(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise HTTPException(422, f"{name} must be a number from 1 to {most}")
    return int(text)


def _outcome(outcome: Outcome) -> Response:
    # 202: in force here, but the store has not heard of it yet.
    return _json(msgspec.to_builtins(outcome), 200 if outcome.published else 202, etag=outcome.revision)


def _json(document: Any, status: int = 200, *, etag: str | None = None) -> Response:
    headers = {"etag": f'"{etag}"'} if etag is not None else None
    return Response(msgspec.json.encode(document), status, headers, "application/json")
