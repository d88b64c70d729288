"""What the admin API shows of routes, replicas and the weights cache. Handlers only translate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.admin import documents
from gateway.admin.replica import Replica
from gateway.admin.requests import demand, integer_of, json_response
from gateway.admin.roles import Role
from gateway.control.store import StoreUnavailable
from gateway.routing.change import route_of
from registry_client import ModelRef, split_model

VERSIONS_LIMIT = 1000
KEEP_ALIVE_S = 15.0


def view_routes(replica: Replica, prefix: str) -> list[Route]:
    """Every path that only looks."""
    views = _Views(replica)
    return [
        Route(f"{prefix}/routes", views.routes),
        Route(f"{prefix}/routes/{{route}}", views.route),
        Route(f"{prefix}/status", views.status),
        Route(f"{prefix}/events", views.events),
        Route(f"{prefix}/registries", views.registries),
        Route(f"{prefix}/versions", views.versions),
        Route(f"{prefix}/resolve", views.resolve),
        Route(f"{prefix}/cache", views.cache),
    ]


class _Views:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def routes(self, _: Request) -> Response:
        held = self._replica.deliverer.held
        found = documents.route_documents(held, self._replica.totals())
        return json_response(
            {"revision": held.label, "routes": [self._with_rollback(document) for document in found]}
        )

    async def route(self, request: Request) -> Response:
        held = self._replica.deliverer.held
        name = request.path_params["route"]
        route_of(held, name)
        document = documents.route_document(held, name, self._replica.totals())
        documents.add_exposure(document, self._replica.exposed())
        return json_response(self._with_rollback(document), etag=str(held.revision))

    async def status(self, _: Request) -> Response:
        """This replica's standing, and every replica's acknowledgement; LOST of who has fallen silent."""
        replica = self._replica
        complete = True
        try:
            members = await replica.store.members()
        except StoreUnavailable:
            members, complete = [replica.member()], False
        own = replica.member()
        return json_response(
            {
                "replica": own.replica,
                "revision": replica.deliverer.held.label,
                "ready": replica.ready(),
                "degraded": replica.degraded(),
                "members": [documents.member_document(member) for member in members],
                "complete": complete,
                "fetches": msgspec.to_builtins(list(replica.versions.weights.progress())),
            }
        )

    async def events(self, request: Request) -> Response:
        return StreamingResponse(
            self._stream(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def registries(self, _: Request) -> Response:
        declared = self._replica.deliverer.held.state.registries
        return json_response(
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
        found = await client.versions(model, limit=integer_of(request, "limit", 100, VERSIONS_LIMIT))
        aliases = await client.aliases(model)
        return json_response(
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
            demand(request, Role.OPERATOR)  # it takes room in the cache
            pin, _ = await self._replica.versions.fetch(pin, declared)
        return json_response(
            {"reference": str(reference), **documents.version_document(version, pin.digest or None)}
        )

    async def cache(self, _: Request) -> Response:
        weights = self._replica.versions.weights
        in_use = self._replica.deliverer.in_use()
        cached = [
            {**msgspec.to_builtins(entry), "in_use": entry.digest in in_use} for entry in await weights.list()
        ]
        return json_response({"versions": cached, "fetches": list(weights.progress())})

    def _with_rollback(self, document: documents.Document) -> documents.Document:
        return {**document, "rollback": self._replica.rollback(document["name"])}

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
