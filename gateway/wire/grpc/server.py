"""The gRPC listener of one worker: which services there are, what a client may do, how it drains."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import grpc
from grpc import aio

from gateway.serving.inference import Inference
from gateway.wire.grpc import health, inference_pb2, reflection
from gateway.wire.grpc.calls import Handler, Revision, fenced, fenced_stream, guarded, unknown
from gateway.wire.grpc.departure import Departure
from gateway.wire.grpc.health import Health
from gateway.wire.grpc.infer import InferMessages
from gateway.wire.grpc.infer_calls import InferCalls
from gateway.wire.grpc.reflection import Reflection
from gateway.wire.grpc.service import Service
from gateway.wire.models import Models
from gateway.wire.oip_json import Limits
from gateway.wire.readiness import Readiness

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
IN_FLIGHT_S = 30.0
"""How long calls in flight may take when their worker stops."""
CALLS_AT_ONCE = 256
"""On one connection; what a client sends beyond waits on its side."""
METADATA_BYTES = 16 * 1024
KEEPALIVE_MS = 60_000
"""A connection that is silent so long is asked whether it is still there, and has 20 s to answer."""
PINGS_MS = 10_000
"""A client may ask as often; one that asks more often is sent away. The usual five minutes send away most."""


class GrpcServer:
    """Serves on an address that other workers share; `start` it once."""

    def __init__(
        self, inference: Inference, models: Models, readiness: Readiness, limits: Limits, address: str
    ) -> None:
        # Handlers let nothing of their own out (`guarded`). What grpcio would log beside are tracebacks for
        # clients that went at the wrong moment, with which anybody could fill the log.
        logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
        self._departure = Departure()
        self._revision: Revision = lambda: inference.snapshot.label
        self._server = aio.server(options=_options(limits))
        for service, handlers in self._handlers(inference, models, readiness, limits).items():
            handler = grpc.method_handlers_generic_handler(service, handlers)
            self._server.add_generic_rpc_handlers((handler,))
        self._server.add_generic_rpc_handlers((_Unknown(self._revision),))
        self.port = self._server.add_insecure_port(address)
        """The port that was bound; raises `RuntimeError` where it cannot be."""

    async def start(self) -> None:
        """Calls are answered from now on."""
        await self._server.start()

    async def stop(self) -> None:
        """Takes no new calls, tells connections to go, and returns when what is in flight was answered."""
        await self._departure.leave(lambda: self._server.stop(IN_FLIGHT_S))

    def _handlers(
        self, inference: Inference, models: Models, readiness: Readiness, limits: Limits
    ) -> Mapping[str, Mapping[str, grpc.RpcMethodHandler]]:
        infer = InferCalls(InferMessages(inference, limits), self._departure)
        services = (SERVICE, health.SERVICE)
        asked = Health(readiness, frozenset(services), self._departure)
        info = Reflection(services, self._departure).info

        def once(handler: Handler) -> grpc.RpcMethodHandler:
            return _answers_once(fenced(handler, self._revision), self._revision)

        def often(handler: Handler) -> grpc.RpcMethodHandler:
            fenced_handler = guarded(fenced_stream(handler, self._revision), self._revision)
            return grpc.stream_stream_rpc_method_handler(fenced_handler)

        unary = {name: once(handler) for name, handler in Service(models, readiness).handlers().items()}
        return {
            SERVICE: {
                **unary,
                # Its answers know by which revision they were routed.
                "ModelInfer": _answers_once(infer.infer, self._revision),
                "ModelStreamInfer": often(infer.stream),
            },
            health.SERVICE: {"Check": once(asked.check), "Watch": often(asked.watch)},
            **{name: {"ServerReflectionInfo": often(info)} for name in reflection.SERVICES},
        }


class _Unknown(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Has a handler for every call that the others do not have; it comes last."""

    def __init__(self, revision: Revision) -> None:
        self._handler = _answers_once(unknown, revision)

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handler


def _answers_once(handler: Handler, revision: Revision) -> grpc.RpcMethodHandler:
    # On the wire a call with one message is a stream of one: so the handler reads it itself, within a time.
    return grpc.stream_unary_rpc_method_handler(guarded(handler, revision))


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        # Each worker binds the port, and the kernel shares out the connections.
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", CALLS_AT_ONCE),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", PINGS_MS),
    ]
