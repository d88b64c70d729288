"""Versions that a request names itself: found if loaded, else fetched and loaded, a few at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from gateway.routing.state import Pin
from gateway.serving.engine import EngineError
from gateway.serving.live import EngineKey, Live, LiveRoute, ServedArm
from gateway.serving.loading import Loader
from gateway.serving.tensors import InferenceError

KEPT = 8
"""Versions that stay loaded in a worker only because somebody named them; the one unused longest goes."""


class Located(NamedTuple):
    """A version that is in the weights cache."""

    pin: Pin
    path: str


Locate = Callable[[str, str], Awaitable[Located]]
"""(route, version) → where it is, once it was fetched and verified. Raises `InferenceError`."""


class ExplicitVersions:
    """Explicit versions of this worker. Used on the event loop only."""

    def __init__(self, live: Live, loader: Loader, locate: Locate) -> None:
        self._live = live
        self._loader = loader
        self._locate = locate
        self._loaded: OrderedDict[tuple[str, str], tuple[Pin, EngineKey]] = OrderedDict()
        self._loading: dict[tuple[str, str], asyncio.Task[ServedArm]] = {}

    @property
    def needed(self) -> set[EngineKey]:
        """Engines that stay although the snapshot does not need them."""
        return {key for _, key in self._loaded.values()}

    def find(self, route: LiveRoute, version: str) -> ServedArm | None:
        """The arm that answers for an explicit version, None where it must be loaded first.

        Raises `InferenceError` where the route does not serve it.
        """
        entry = route.entry
        if entry.explicit_versions == "off":
            raise InferenceError(404, f"route '{entry.name}' does not serve explicit versions")
        pin = entry.known_versions.get(version)
        if pin is None:
            if entry.explicit_versions == "known":
                raise InferenceError(404, f"'{entry.name}' version {version[:140]} is not found")
            remembered = self._loaded.get((entry.name, version))
            if remembered is None:
                return None
            self._loaded.move_to_end((entry.name, version))
            pin = remembered[0]
        refuse_denied(route, pin)
        loaded = self._live.engines.get(EngineKey(pin.digest, entry.engine))
        return None if loaded is None else self._live.explicit(route, pin, loaded)

    def load(self, route_name: str, version: str) -> asyncio.Task[ServedArm]:
        """The load of a version; one, however many requests ask for it."""
        key = (route_name, version)
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(route_name, version))
            task.add_done_callback(lambda done: self._settled(key, done))
        return task

    async def load_within(self, route_name: str, version: str, timeout_s: float) -> ServedArm:
        """The load, waited for at most so long: it goes on without its waiter, and the next may find it done.

        Raises `InferenceError`.
        """
        task = self.load(route_name, version)
        done, _ = await asyncio.wait([task], timeout=max(0.0, timeout_s))
        if not done:
            raise InferenceError(503, "the version is still loading: try again", retry_after_s=2)
        return task.result()

    def loaded(self, route_name: str) -> list[Pin]:
        """The versions of a route that are loaded only because somebody named them."""
        return [pin for (route, _), (pin, _) in self._loaded.items() if route == route_name]

    def unload(self, route_name: str, version: str | None = None) -> None:
        """Lets go of the versions of a route that are only loaded because somebody named them."""
        for key in [key for key in self._loaded if key[0] == route_name and version in (None, key[1])]:
            self._drop(key)

    async def _load(self, route_name: str, version: str) -> ServedArm:
        located = await self._locate(route_name, version)
        route = self._live.snapshot.routes.get(route_name)
        if route is None:
            raise InferenceError(404, f"Request for unknown model: '{route_name}' is not found")
        refuse_denied(route, located.pin)
        key = EngineKey(located.pin.digest, route.entry.engine)
        loaded = self._live.engines.get(key)
        if loaded is None:
            try:
                loaded = await self._loader.load(key, located.path)
            except EngineError as error:
                raise InferenceError(
                    500, f"'{route_name}' version {version} cannot be loaded: {error}"
                ) from error
        # The snapshot may have changed while the version was loading.
        route = self._live.snapshot.routes.get(route_name)
        if route is None:
            loaded.retire()
            raise InferenceError(404, f"Request for unknown model: '{route_name}' is not found")
        ours, loaded = loaded, self._live.engines.setdefault(key, loaded)
        if ours is not loaded:
            ours.retire()  # a change needed the same version and was faster
        self._loaded[route_name, version] = (located.pin, key)
        while len(self._loaded) > KEPT:
            self._drop(next(iter(self._loaded)))
        refuse_denied(route, located.pin)
        return self._live.explicit(route, located.pin, loaded)

    def _drop(self, key: tuple[str, str]) -> None:
        pin, engine_key = self._loaded.pop(key)
        if engine_key in self._live.required_keys():
            return
        self._live.forget_explicit(key[0], pin)
        if engine_key not in self.needed:
            self._live.retire(engine_key)

    def _settled(self, key: tuple[str, str], task: asyncio.Task[ServedArm]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # whoever waited was told; nobody may have waited any more


def refuse_denied(route: LiveRoute, pin: Pin) -> None:
    if pin.digest in route.entry.denied:
        raise InferenceError(403, f"version {pin.version} of route '{route.entry.name}' is denied")
