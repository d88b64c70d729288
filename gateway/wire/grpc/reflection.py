"""Server reflection: how grpcurl and its like learn the calls without a .proto file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc.aio import EOF

from gateway.wire.grpc.calls import parsed
from gateway.wire.grpc.departure import Departure

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both speak the same messages, under another name."""


class Reflection:
    """The one call of the service. What it needs is imported when somebody calls: 3 MiB that few workers need."""

    def __init__(self, services: Iterable[str], departure: Departure) -> None:
        self._services = (*services, *SERVICES)
        self._departure = departure

    async def info(self, _: Any, context: Any) -> None:
        await self._departure.run(self._info(context))

    async def _info(self, context: Any) -> None:
        from grpc_reflection.v1alpha.reflection import aio
        from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

        async def questions() -> AsyncIterator[Any]:
            while (body := await context.read()) is not EOF:
                yield parsed(ServerReflectionRequest, body)

        async for answer in aio.ReflectionServicer(self._services).ServerReflectionInfo(questions(), context):
            await context.write(answer.SerializeToString())
