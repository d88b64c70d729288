"""The supervisor's side of explicit versions: which they are, and that asking in vain costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from gateway.control.versions import Versions
from gateway.node.channel import CallFailed
from gateway.routing.state import DenyKey, InForce
from gateway.serving.explicit import Located
from registry_client import ModelRef
from registry_client.errors import NotFound, RegistryError

COLD_AT_ONCE = 2
UNKNOWN_KEPT_S = 30.0
UNKNOWN_KEPT = 10_000


class ExplicitCalls:
    """Locates versions for the workers, a few at a time; remembers for a while what does not exist."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._cold = asyncio.Semaphore(COLD_AT_ONCE)
        self._unknown: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def locate(self, held: InForce, route_name: str, version: str) -> Located:
        """Raises `CallFailed` with the status that the client of the data plane is to see."""
        route = held.state.routes.get(route_name)
        if route is None:
            raise CallFailed(f"Request for unknown model: '{route_name}' is not found", status=404)
        missing = CallFailed(f"'{route_name}' version {version} is not found", status=404)
        if self._unknown.get((route_name, version), 0.0) > time.monotonic():
            raise missing
        pin = route.variants[route.fallback].pin
        try:
            async with self._cold:
                reference = ModelRef(pin.registry, pin.model, version)
                found, described = await self._versions.look_up(reference, held.state.registries)
                if described.version != version:
                    # An alias: explicit versions are versions, or an alias would be frozen here for good.
                    raise NotFound(version)
                found, cached = await self._versions.fetch(found, held.state.registries)
        except NotFound:
            self._remember((route_name, version))
            raise missing from None
        except (RegistryError, OSError) as error:
            raise CallFailed(
                f"'{route_name}' version {version} is not available: {error}", status=503, retry_after_s=5
            ) from error
        if DenyKey(route_name, found.digest) in held.denies:
            raise CallFailed(f"version {version} of route '{route_name}' is denied", status=403)
        return Located(found, self._versions.paths([found])[found.digest])

    def _remember(self, key: tuple[str, str]) -> None:
        self._unknown[key] = time.monotonic() + UNKNOWN_KEPT_S
        self._unknown.move_to_end(key)
        while len(self._unknown) > UNKNOWN_KEPT:
            self._unknown.popitem(last=False)
