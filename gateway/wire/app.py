"""The data plane as an ASGI application: infer requests by a way of their own, the rest through Starlette."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.routing.names import NAME
from gateway.serving.inference import Inference
from gateway.serving.tensors import InferenceError
from gateway.wire import answers
from gateway.wire import oip_documents as documents
from gateway.wire.infer import InferEndpoint
from gateway.wire.lane import Lane
from gateway.wire.model_handlers import ModelHandlers, json_response
from gateway.wire.models import Models
from gateway.wire.neighbours.mlflow import Invocations, InvocationsCodec
from gateway.wire.neighbours.tensorflow_serving import PredictCodec, tensorflow_routes
from gateway.wire.oip_json import Limits, encode_error
from gateway.wire.readiness import Readiness

log = logging.getLogger(__name__)

_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_SHOWN_CHARS = 200


class DataPlane:
    """The ASGI application of a worker."""

    def __init__(self, infer: InferEndpoint, rest: ASGIApp, readiness: Readiness, lane: Lane) -> None:
        self._infer = infer
        self._rest = rest
        self._readiness = readiness
        self.lane = lane
        """The shorter way to the same answers, for the connections that know it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._readiness.draining:
            send = _closing(send)
        fenced = _Fenced(send, self.lane.revision)
        try:
            await self._answer(scope, receive, fenced)
        except Exception as bug:
            if fenced.started:
                raise
            log.exception("a request could not be answered")
            await _bug(bug)(scope, receive, fenced)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = _malformed(scope)
        if problem is not None:
            await _error(400, problem)(scope, receive, send)
            return
        match = _INFER.fullmatch(scope["path"])
        if match is None:
            await self._rest(scope, receive, send)
        elif scope["method"] != "POST":
            await _not_allowed(scope, "POST")(scope, receive, send)
        elif not NAME.fullmatch(match[1]) or (match[2] is not None and not NAME.fullmatch(match[2])):
            name = match[1] if not NAME.fullmatch(match[1]) else match[2]
            text = f"{name[:_SHOWN_CHARS]!r} is no name: models and versions match {NAME.pattern}"
            await _error(400, text)(scope, receive, send)
        else:
            await self._infer(scope, receive, send, match[1], match[2])

    def drain(self) -> None:
        """From now on unready, and every answer asks its client to come back on another connection."""
        self._readiness.drain()
        self.lane.draining = True


def data_plane(inference: Inference, models: Models, readiness: Readiness, limits: Limits) -> DataPlane:
    """The application over the data plane of one worker."""
    handlers = ModelHandlers(models)
    neighbours = [
        *tensorflow_routes(InferEndpoint(inference, limits, PredictCodec()), models),
        Route("/invocations", Invocations(InferEndpoint(inference, limits, InvocationsCodec()), models)),
    ]
    rest = _rest(handlers, readiness, neighbours)
    return DataPlane(
        InferEndpoint(inference, limits), rest, readiness, Lane(inference, limits, asyncio.get_running_loop())
    )


def _rest(models: ModelHandlers, readiness: Readiness, neighbours: list[Route]) -> Starlette:
    async def server(_: Request) -> Response:
        return json_response(documents.server_metadata())

    async def alive(_: Request) -> Response:
        return json_response({"live": True})

    async def ready(_: Request) -> Response:
        return json_response({"ready": readiness.ready}, 200 if readiness.ready else 503)

    async def ping(_: Request) -> Response:
        return Response("\n", 200 if readiness.ready else 503, media_type="application/json")

    async def version(_: Request) -> Response:
        return Response(documents.SERVER_VERSION, media_type="text/plain")

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
        Route("/ping", ping),
        Route("/health", ping),
        Route("/version", version),
        *neighbours,
    ]
    for at in (model, model + "/versions/{version}"):
        routes += [
            Route(at, models.metadata),
            Route(at + "/ready", models.ready),
            Route(at + "/config", models.config),
            Route(at + "/stats", models.statistics),
        ]
    rest = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _http_error,
            InferenceError: _inference_error,
            Exception: _unforeseen,
        },
    )
    # A redirect would repeat whatever Host the client sent.
    rest.router.redirect_slashes = False
    return rest


def _malformed(scope: Scope) -> str | None:
    if b"%" in scope.get("raw_path", b""):
        # Names never need escapes, and an encoded separator means another path to each reader of it.
        return f"percent-encoding is not accepted in paths: names match {NAME.pattern}"
    hosts = sum(name == b"host" for name, _ in scope["headers"])
    if hosts > 1:
        return "the Host header is given more than once"
    if hosts == 0 and scope["http_version"] == "1.1":
        return "the Host header is missing"
    return None


class _Fenced:
    """Tells with every answer by which revision it was routed, at the least.

    Predictions say so themselves; what answers beside them looks at the snapshot once, and not before this.
    """

    def __init__(self, send: Send, revision: str) -> None:
        self._send = send
        self._revision = (answers.REVISION_HEADER, revision.encode())
        self.started = False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = message["headers"]
            if all(name != answers.REVISION_HEADER for name, _ in headers):
                message["headers"] = [*headers, self._revision]
        await self._send(message)


def _closing(send: Send) -> Send:
    async def closing(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return closing


def _error(status: int, message: str) -> Response:
    return Response(encode_error(message), status, media_type="application/json")


def _not_allowed(scope: Scope, allowed: str) -> Response:
    path, method = scope["path"][:_SHOWN_CHARS], scope["method"]
    response = _error(405, f"{method} is not allowed for {path}: use {allowed}")
    response.headers["allow"] = allowed
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and error.headers is not None:
        return _not_allowed(request.scope, ", ".join(sorted(error.headers["Allow"].split(", "))))
    return _error(error.status_code, f"there is nothing at {request.scope['path'][:_SHOWN_CHARS]}")


def _bug(error: Exception) -> Response:
    return _error(500, f"the request failed: {type(error).__name__}, see the gateway's log")


async def _unforeseen(_: Request, error: Exception) -> Response:
    """Starlette raises it again behind the answer, so that it is in the log."""
    return _bug(error)


async def _inference_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, InferenceError)
    response = _error(error.status, str(error))
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response
