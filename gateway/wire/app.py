"""The data plane over HTTP: infer requests on the short way, everything else through Starlette."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.routing.manifest import NAME
from gateway.serving.explicit import ExplicitVersions
from gateway.serving.inference import Inference
from gateway.serving.live import Live, LiveRoute, LoadedVersion
from gateway.serving.tensors import InferenceError
from gateway.wire import oip_documents as documents
from gateway.wire.infer import InferEndpoint
from gateway.wire.oip_json import Limits, encode_error

Ask = Callable[..., Awaitable[Any]]
"""Calls the supervisor: `await ask("statistics", route=…)`."""

_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
SERVER_VERSION = "0.1.0"


class DataPlane:
    """The ASGI application of a worker."""

    def __init__(self, infer: InferEndpoint, rest: ASGIApp, readiness: Readiness) -> None:
        self._infer = infer
        self._rest = rest
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._readiness.draining:
            send = _closing(send)
        problem = _malformed(scope)
        if problem is not None:
            await _error(400, problem)(scope, receive, send)
            return
        match = _INFER.fullmatch(scope["path"])
        if match is None or scope["method"] != "POST":
            await self._rest(scope, receive, send)
        elif not NAME.fullmatch(match[1]) or (match[2] is not None and not NAME.fullmatch(match[2])):
            await _error(400, f"names of models and versions must match {NAME.pattern}")(scope, receive, send)
        else:
            await self._infer(scope, receive, send, match[1], match[2])

    def drain(self) -> None:
        """From now on unready, and every answer asks its client to come back on another connection."""
        self._readiness.draining = True


class Readiness:
    """Whether this worker wants new connections."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.draining = False

    @property
    def ready(self) -> bool:
        return not self.draining and self._live.snapshot.held.revision.rev > 0


def data_plane(
    live: Live, inference: Inference, explicit: ExplicitVersions, ask: Ask, limits: Limits
) -> DataPlane:
    """The application over the data plane of one worker."""
    readiness = Readiness(live)
    return DataPlane(
        InferEndpoint(inference, limits), _rest(_Models(live, explicit, ask), readiness), readiness
    )


def _rest(models: _Models, readiness: Readiness) -> Starlette:
    async def server(_: Request) -> Response:
        return _json(documents.server_metadata(SERVER_VERSION))

    async def alive(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        return _json({"ready": readiness.ready}, 200 if readiness.ready else 503)

    async def infer_needs_post(_: Request) -> Response:
        return Response(encode_error("Method Not Allowed"), 405, {"allow": "POST"}, "application/json")

    model = "/v2/models/{model}"
    routes = [
        Route("/v2", server),
        Route("/v2/health/live", alive),
        Route("/v2/health/ready", ready),
        Route("/v2/models", models.names),
        Route("/v2/models/stats", models.statistics),
        Route("/v2/repository/index", models.index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", models.load, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", models.unload, methods=["POST"]),
    ]
    for at in (model, model + "/versions/{version}"):
        routes += [
            Route(at, models.metadata),
            Route(at + "/ready", models.ready),
            Route(at + "/config", models.config),
            Route(at + "/stats", models.statistics),
            Route(at + "/infer", infer_needs_post, methods=["GET", "PUT", "PATCH", "DELETE"]),
        ]
    return Starlette(
        routes=routes,
        exception_handlers={HTTPException: _http_error, InferenceError: _inference_error},
    )


class _Models:
    """What clients may ask of routes and their versions, apart from predictions."""

    def __init__(self, live: Live, explicit: ExplicitVersions, ask: Ask) -> None:
        self._live = live
        self._explicit = explicit
        self._ask = ask

    async def names(self, _: Request) -> Response:
        return _json({"models": list(self._live.snapshot.routes)})

    async def metadata(self, request: Request) -> Response:
        route, loaded = await self._loaded(request)
        versions = list(route.entry.known_versions)
        engine = loaded.engine
        return _json(documents.model_metadata(route.entry.name, versions, engine.platform, engine.signature))

    async def config(self, request: Request) -> Response:
        route, loaded = await self._loaded(request)
        engine, batcher = loaded.engine, loaded.batcher
        return _json(
            documents.model_config(
                route.entry.name,
                engine.platform,
                engine.signature,
                batcher.max_batch_size,
                batching=batcher.batchable,
            )
        )

    async def ready(self, request: Request) -> Response:
        route = self._route(request)
        version = request.path_params.get("version")
        ready = route.ready if version is None else self._explicit.find(route, version) is not None
        return _json({"name": route.entry.name, "ready": ready}, 200 if ready else 503)

    async def statistics(self, request: Request) -> Response:
        """Over all workers: a client's next request may well reach another one."""
        if "model" in request.path_params:
            self._route(request)
        params = {"route": request.path_params.get("model"), "version": request.path_params.get("version")}
        return _json(await self._ask("statistics", **params))

    async def index(self, request: Request) -> Response:
        wanted = await _options(request, _IndexRequest)
        entries = [
            documents.IndexEntry(
                name=route.entry.name,
                version=pin.version,
                state="READY" if pin in loaded else "UNAVAILABLE",
                reason="" if pin in loaded else self._why_not(route, pin.digest),
            )
            for route in self._live.snapshot.routes.values()
            for loaded in [{arm.pin for arm in route.arms.values()}]
            for pin in route.entry.known_versions.values()
        ]
        return _json(documents.repository_index(entries, ready_only=wanted.ready))

    async def load(self, request: Request) -> Response:
        """Fetches and warms a version ahead of its first request; what a route declares is loaded already."""
        route = self._route(request)
        version = (await _options(request, _LoadRequest)).parameters.get("version")
        if version is not None and self._explicit.find(route, str(version)) is None:
            await self._explicit.load(route.entry.name, str(version))
        return _json({"name": route.entry.name, "load": True})

    async def unload(self, request: Request) -> Response:
        """Lets go of versions that were loaded by name; what a route declares stays."""
        route = self._route(request)
        version = (await _options(request, _LoadRequest)).parameters.get("version")
        await self._ask("unload", route=route.entry.name, version=None if version is None else str(version))
        return _json({"name": route.entry.name, "unload": True})

    def _route(self, request: Request) -> LiveRoute:
        name = request.path_params["model"]
        route = self._live.snapshot.routes.get(name)
        if route is None:
            raise InferenceError(404, f"Request for unknown model: '{name[:140]}' is not found")
        return route

    async def _loaded(self, request: Request) -> tuple[LiveRoute, LoadedVersion]:
        route = self._route(request)
        version = request.path_params.get("version")
        if version is not None:
            found = self._explicit.find(route, version) or await self._explicit.load(
                route.entry.name, version
            )
            return route, found.loaded
        fallback = route.entry.fallback
        served = route.served(fallback) if fallback is not None else None
        if served is None:
            raise InferenceError(503, f"'{route.entry.name}' has no version loaded yet", retry_after_s=1)
        return route, served.loaded

    @staticmethod
    def _why_not(route: LiveRoute, digest: str) -> str:
        return "denied" if digest in route.entry.denied else "not loaded"


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _LoadRequest(msgspec.Struct):
    parameters: dict[str, str | int | bool] = {}


async def _options(request: Request, type_: type[Any]) -> Any:
    body = await request.body()
    try:
        return msgspec.json.decode(body, type=type_) if body.strip() else type_()
    except msgspec.MsgspecError as error:
        raise InferenceError(400, f"the request is not valid: {error}") from None


def _malformed(scope: Scope) -> str | None:
    if b"%" in scope.get("raw_path", b""):
        # Names never need escapes, and an encoded separator means another path to each reader of it.
        return f"percent-encoding is not accepted in paths: names match {NAME.pattern}"
    if scope["http_version"] == "1.1" and not any(name == b"host" for name, _ in scope["headers"]):
        return "the Host header is missing"
    return None


def _closing(send: Send) -> Send:
    async def closing(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return closing


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return Response(encode_error(message), status, media_type="application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(encode_error(error.detail), error.status_code, error.headers, "application/json")


async def _inference_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, InferenceError)
    response = _error(error.status, str(error))
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response
