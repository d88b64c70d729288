"""What clients may ask of routes and their versions, apart from predictions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.routing.manifest import NAME
from gateway.serving.explicit import ExplicitVersions
from gateway.serving.live import EngineKey, Live, LiveRoute, LoadedVersion
from gateway.serving.tensors import InferenceError
from gateway.wire import oip_documents as documents

Ask = Callable[..., Awaitable[Any]]
"""Calls the supervisor: `await ask("statistics", route=…)`. Raises `InferenceError`."""

OPTIONS_BYTES = 1024 * 1024
"""Of a request to the repository: Triton's clients may put a model's configuration into it."""


class Models:
    """Handlers for Starlette. Each raises `InferenceError`."""

    def __init__(self, live: Live, explicit: ExplicitVersions, ask: Ask) -> None:
        self._live = live
        self._explicit = explicit
        self._ask = ask

    async def names(self, _: Request) -> Response:
        return json_response({"models": list(self._live.snapshot.routes)})

    async def metadata(self, request: Request) -> Response:
        route = self._named(request)
        loaded = await self.loaded(route, _version(request))
        # What is asked for by name is a version, too, although the route does not declare it.
        versions = list(dict.fromkeys((*route.entry.known_versions, *filter(None, [_version(request)]))))
        engine = loaded.engine
        return json_response(
            documents.model_metadata(route.entry.name, versions, engine.platform, engine.signature)
        )

    async def config(self, request: Request) -> Response:
        route = self._named(request)
        loaded = await self.loaded(route, _version(request))
        engine, batcher = loaded.engine, loaded.batcher
        return json_response(
            documents.model_config(
                route.entry.name,
                engine.platform,
                engine.signature,
                batcher.max_batch_size,
                batching=batcher.batchable,
            )
        )

    async def ready(self, request: Request) -> Response:
        route = self._named(request)
        version = _version(request)
        ready = route.ready if version is None else self._explicit.find(route, version) is not None
        return json_response({"name": route.entry.name, "ready": ready}, 200 if ready else 503)

    async def statistics(self, request: Request) -> Response:
        """Over all workers: a client's next request may well reach another one."""
        route = self._named(request).entry.name if "model" in request.path_params else None
        return json_response(await self._ask("statistics", route=route, version=_version(request)))

    async def index(self, request: Request) -> Response:
        wanted = await _options(request, _IndexRequest)
        entries = [entry for route in self._live.snapshot.routes.values() for entry in self.entries(route)]
        return json_response(documents.repository_index(entries, ready_only=wanted.ready))

    async def load(self, request: Request) -> Response:
        """Has every worker fetch and warm a version ahead of its first request.

        What a route declares is loaded already.
        """
        route = self._named(request)
        version = _named_version(await _options(request, _LoadRequest))
        if version is not None:
            await self._ask("load", route=route.entry.name, version=version)
        return json_response({"name": route.entry.name, "load": True})

    async def unload(self, request: Request) -> Response:
        """Has every worker let go of versions that were loaded by name; what a route declares stays."""
        route = self._named(request)
        version = _named_version(await _options(request, _LoadRequest))
        await self._ask("unload", route=route.entry.name, version=version)
        return json_response({"name": route.entry.name, "unload": True})

    def route(self, name: str) -> LiveRoute:
        """Raises `InferenceError` (404)."""
        route = self._live.snapshot.routes.get(name)
        if route is None:
            raise InferenceError(404, f"Request for unknown model: '{name[:140]}' is not found")
        return route

    async def loaded(self, route: LiveRoute, version: str | None) -> LoadedVersion:
        """The version, loaded for the asking within the route's time-out; None: the fallback's.

        Raises `InferenceError`.
        """
        if version is not None:
            found = self._explicit.find(route, version)
            if found is None:
                name, timeout_s = route.entry.name, route.entry.timeout_ms / 1000
                found = await self._explicit.load_within(name, version, timeout_s)
            return found.loaded
        fallback = route.entry.fallback
        served = route.served(fallback) if fallback is not None else None
        if served is None:
            raise InferenceError(503, f"'{route.entry.name}' has no version loaded yet", retry_after_s=1)
        return served.loaded

    def entries(self, route: LiveRoute) -> Iterator[documents.IndexEntry]:
        """The versions that the route declares or had before, and those that somebody named."""
        entry = route.entry
        named = {pin.version: pin for pin in self._explicit.loaded(entry.name)}
        pins = {**entry.known_versions, **named, **entry.known_versions}
        for version, pin in pins.items():
            if pin.digest in entry.denied:
                state, reason = documents.UNAVAILABLE, "denied"
            elif EngineKey(pin.digest, entry.engine) in self._live.engines:
                state, reason = documents.READY, ""
            else:
                state, reason = documents.UNAVAILABLE, "not loaded"
            yield documents.IndexEntry(name=entry.name, version=version, state=state, reason=reason)

    def _named(self, request: Request) -> LiveRoute:
        return self.route(request.path_params["model"])


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _LoadRequest(msgspec.Struct):
    """Triton's: of the parameters only `version` means something here."""

    parameters: dict[str, str | int | float | bool] = {}


def _version(request: Request) -> str | None:
    version = request.path_params.get("version")
    return None if version is None else checked_name("version", version)


def _named_version(wanted: _LoadRequest) -> str | None:
    version = wanted.parameters.get("version")
    return None if version is None else checked_name("version", str(version))


def checked_name(kind: str, name: str) -> str:
    """What cannot be a name is not asked of a registry. Raises `InferenceError` (400)."""
    if not NAME.fullmatch(name):
        raise InferenceError(400, f"{kind} {name[:140]!r} is no name: names match {NAME.pattern}")
    return name


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
