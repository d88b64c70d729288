"""gRPC clients that never stop asking: threads with a channel each, that tell losses apart."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType

import grpc

from gateway.wire.grpc import inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
_TIMEOUT_S = 20.0


def infer_call(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        SERVICE + "ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    )


class GrpcLoad:
    """`with GrpcLoad(address, request, clients=8) as load:` asks from `clients` threads until the block ends."""

    def __init__(self, address: str, request: pb.ModelInferRequest, *, clients: int = 8) -> None:
        self._address = address
        self._request = request
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        self._lock = threading.Lock()
        self.answers = 0
        self.refused = 0
        """Calls that found nobody to connect to: nothing was lost with them."""
        self.lost: Counter[str] = Counter()
        """Calls that got onto a connection, and no answer came."""

    def __enter__(self) -> GrpcLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S + 5)

    def _ask(self) -> None:
        with grpc.insecure_channel(self._address, options=OWN_CONNECTION) as channel:
            infer = infer_call(channel)
            while not self._stop.is_set():
                try:
                    infer(self._request, timeout=_TIMEOUT_S)
                except grpc.RpcError as error:
                    refused = "failed to connect to all addresses" in (error.details() or "")
                    with self._lock:
                        if refused:
                            self.refused += 1
                        else:
                            self.lost[f"{error.code()}: {error.details()}"] += 1
                    if refused:
                        self._stop.wait(0.02)
                else:
                    with self._lock:
                        self.answers += 1
