"""What clients may ask of routes and their versions, over HTTP: only translates."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.serving.tensors import InferenceError
from gateway.wire.models import Models

OPTIONS_BYTES = 1024 * 1024
"""Of a request to the repository: Triton's clients may put a model's configuration into it."""


class ModelHandlers:
    """Handlers for Starlette. Each raises `InferenceError`."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def names(self, _: Request) -> Response:
        return json_response({"models": self._models.names()})

    async def metadata(self, request: Request) -> Response:
        return json_response(await self._models.metadata(_name(request), _version(request)))

    async def config(self, request: Request) -> Response:
        return json_response(await self._models.config(_name(request), _version(request)))

    async def ready(self, request: Request) -> Response:
        name = _name(request)
        ready = self._models.ready(name, _version(request))
        return json_response({"name": name, "ready": ready}, 200 if ready else 503)

    async def statistics(self, request: Request) -> Response:
        name: str | None = request.path_params.get("model")
        return json_response(await self._models.statistics(name, _version(request)))

    async def index(self, request: Request) -> Response:
        wanted = await _options(request, _IndexRequest)
        return json_response(self._models.index(ready_only=wanted.ready))

    async def load(self, request: Request) -> Response:
        name = _name(request)
        await self._models.load(name, (await _options(request, _LoadRequest)).parameters)
        return json_response({"name": name, "load": True})

    async def unload(self, request: Request) -> Response:
        name = _name(request)
        await self._models.unload(name, (await _options(request, _LoadRequest)).parameters)
        return json_response({"name": name, "unload": True})


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _LoadRequest(msgspec.Struct):
    parameters: dict[str, str | int | float | bool] = {}


def _name(request: Request) -> str:
    name: str = request.path_params["model"]
    return name


def _version(request: Request) -> str | None:
    return request.path_params.get("version")


async def _options(request: Request, type_: type[Any]) -> Any:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > OPTIONS_BYTES:
                raise InferenceError(
                    413,
                    f"the body has more than {OPTIONS_BYTES} bytes, the limit of requests to the repository",
                )
    except ClientDisconnect:
        raise InferenceError(400, "the client is gone") from None
    try:
        return msgspec.json.decode(body, type=type_) if body.strip() else type_()
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InferenceError(400, f"the request is not valid: {error}") from None
    except RecursionError:
        raise InferenceError(400, "the request is not valid: it is nested too deeply") from None


def json_response(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
