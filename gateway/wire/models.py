"""What clients may ask of routes and their versions, apart from predictions; free of any protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from gateway.routing.names import NAME
from gateway.serving.explicit import ExplicitVersions
from gateway.serving.live import EngineKey, Live, LiveRoute, LoadedVersion
from gateway.serving.tensors import InferenceError
from gateway.wire import oip_documents as documents
from gateway.wire.oip_documents import Document

Ask = Callable[..., Awaitable[Any]]
"""Calls the supervisor: `await ask("statistics", route=…)`. Raises `InferenceError`."""


class Models:
    """Answers with the protocol's documents. Every method raises `InferenceError`.

    `version` is None where a request names none.
    """

    def __init__(self, live: Live, explicit: ExplicitVersions, ask: Ask) -> None:
        self._live = live
        self._explicit = explicit
        self._ask = ask

    def names(self) -> list[str]:
        return sorted(self._live.snapshot.routes)

    async def metadata(self, name: str, version: str | None) -> Document:
        route = self.route(name)
        loaded = await self.loaded(route, version)
        # What is asked for by name is a version, too, although the route does not declare it.
        versions = list(dict.fromkeys((*route.entry.known_versions, *filter(None, [version]))))
        engine = loaded.engine
        return documents.model_metadata(name, versions, engine.platform, engine.signature)

    async def config(self, name: str, version: str | None) -> Document:
        loaded = await self.loaded(self.route(name), version)
        engine, batcher = loaded.engine, loaded.batcher
        return documents.model_config(
            name,
            engine.platform,
            engine.signature,
            batcher.max_batch_size,
            batching=batcher.batchable,
        )

    def ready(self, name: str, version: str | None) -> bool:
        route = self.route(name)
        if version is None:
            return route.ready
        return self._explicit.find(route, checked_name("version", version)) is not None

    async def statistics(self, name: str | None, version: str | None) -> Document:
        """Over all workers: a client's next request may well reach another one. No name: of all models."""
        if name is not None:
            self.route(name)
        if version is not None:
            checked_name("version", version)
        found: Document = await self._ask("statistics", route=name, version=version)
        return found

    def index(self, *, ready_only: bool) -> list[Document]:
        entries = [entry for route in self._live.snapshot.routes.values() for entry in self.entries(route)]
        return documents.repository_index(entries, ready_only=ready_only)

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Has every worker fetch and warm a version ahead of its first request.

        What a route declares is loaded already. Of Triton's parameters only `version` means something here.
        """
        self.route(name)
        version = _named_version(parameters)
        if version is not None:
            await self._ask("load", route=name, version=version)

    async def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Has every worker let go of versions that were loaded by name; what a route declares stays."""
        self.route(name)
        await self._ask("unload", route=name, version=_named_version(parameters))

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
        name = route.entry.name
        if version is not None:
            found = self._explicit.find(route, checked_name("version", version))
            if found is None:
                found = await self._explicit.load_within(name, version, route.entry.timeout_ms / 1000)
            return found.loaded
        fallback = route.entry.fallback
        served = route.served(fallback) if fallback is not None else None
        if served is None:
            raise InferenceError(503, f"'{name}' has no version loaded yet", retry_after_s=1)
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


def _named_version(parameters: Mapping[str, Any]) -> str | None:
    version = parameters.get("version")
    return None if version is None else checked_name("version", str(version))


def checked_name(kind: str, name: str) -> str:
    """What cannot be a name is not asked of a registry. Raises `InferenceError` (400)."""
    if not NAME.fullmatch(name):
        raise InferenceError(400, f"{kind} {name[:140]!r} is no name: names match {NAME.pattern}")
    return name
