"""grpc.health.v1: what load balancers and orchestrators ask."""

from __future__ import annotations

from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from gateway.serving.tensors import InferenceError
from gateway.wire.grpc.calls import parsed, read_one
from gateway.wire.grpc.departure import Departure
from gateway.wire.readiness import Readiness

SERVICE = "grpc.health.v1.Health"


class Health:
    """Overall (the empty name) and of each service: all are ready when the worker is."""

    def __init__(self, readiness: Readiness, services: frozenset[str], departure: Departure) -> None:
        self._readiness = readiness
        self._services = services | {""}
        self._departure = departure

    async def check(self, _: Any, context: Any) -> bytes:
        asked = parsed(HealthCheckRequest, await read_one(context))
        if asked.service not in self._services:
            raise InferenceError(404, f"there is no service {asked.service[:140]!r} here")
        return self._status()

    async def watch(self, _: Any, context: Any) -> None:
        """The status, and again whenever it changes."""
        asked = parsed(HealthCheckRequest, await read_one(context))
        await self._departure.run(self._watch(asked.service in self._services, context))

    async def _watch(self, known: bool, context: Any) -> None:
        last = b""
        while True:
            changed = self._readiness.changed
            status = self._status() if known else _encoded(HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                await context.write(status)
                last = status
            await changed.wait()

    def _status(self) -> bytes:
        ready = self._readiness.ready
        return _encoded(HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING)


def _encoded(status: Any) -> bytes:
    encoded: bytes = HealthCheckResponse(status=status).SerializeToString()
    return encoded
