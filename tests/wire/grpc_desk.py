"""The gRPC server of one worker in this process, over fake engines that a test can hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
from grpc import aio

from gateway.routing.state import Route
from gateway.serving.explicit import ExplicitVersions, Located
from gateway.serving.inference import Inference
from gateway.serving.live import Live, ServedArm
from gateway.serving.loading import Loader
from gateway.serving.tensors import InferenceError
from gateway.wire.grpc import inference_pb2 as pb
from gateway.wire.grpc.server import GrpcServer
from gateway.wire.models import Models
from gateway.wire.oip_json import Limits
from gateway.wire.readiness import Readiness
from tests.serving.fake_engine import FakeEngine, batcher, load, observing, requests
from tests.states import in_force, route

SERVICE = "/inference.GRPCInferenceService/"
SOON_S = 10.0


class GrpcDesk:
    """Route `digits` with version 1; each run is in a thread, and waits for the engine's gate."""

    def __init__(self, threads: ThreadPoolExecutor, limits: Limits, *routes: Route) -> None:
        self.writer = observing()
        self.live = Live(self.writer)
        self.engine = FakeEngine()
        loop = asyncio.get_running_loop()
        load(self.live, "1", self.engine, batcher(self.engine, loop, threads, run_ns=10**9, batching=False))
        self.live.swap(in_force(*(routes or (route({"stable 1": 100}),))))
        explicit = ExplicitVersions(self.live, cast(Loader, None), self.locate)
        self.trouble: Exception = InferenceError(503, "the supervisor is away", retry_after_s=7)
        self.readiness = Readiness(self.live)
        models = Models(self.live, explicit, self.ask)
        self.server = GrpcServer(
            Inference(self.live, explicit, lambda: 0.0), models, self.readiness, limits, "127.0.0.1:0"
        )
        self.channel = aio.insecure_channel(f"127.0.0.1:{self.server.port}")

    async def locate(self, _: str, version: str) -> Located:
        raise InferenceError(404, f"'digits' version {version} is not found")

    async def ask(self, *_: Any, **__: Any) -> Any:
        raise self.trouble

    def hold(self) -> None:
        """Runs wait from now on; `engine.entered` is set by the next."""
        self.engine.gate = threading.Event()
        self.engine.entered.clear()

    def release(self) -> None:
        assert self.engine.gate is not None
        self.engine.gate.set()

    async def running(self) -> None:
        """Returns when the engine runs something."""
        assert await asyncio.to_thread(self.engine.entered.wait, SOON_S)

    @property
    def arm(self) -> ServedArm:
        return self.live.snapshot.routes["digits"].arms["stable"]

    async def in_flight(self, count: int) -> None:
        """Returns when so many requests are between their decision and their answer."""
        async with asyncio.timeout(SOON_S):
            while self.arm._in_flight != count:
                await asyncio.sleep(0.005)

    async def counted(self, *labels: str) -> dict[int, int]:
        """Code → requests, once there are any."""
        async with asyncio.timeout(SOON_S):
            while not (found := requests(self.writer, *labels)):
                await asyncio.sleep(0.005)
        return found

    def infer(self) -> Any:
        return self.channel.unary_unary(
            SERVICE + "ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )

    def stream(self) -> Any:
        return self.channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )

    def bytes_call(self, method: str) -> Any:
        """A call whose messages a test writes byte by byte."""
        return self.channel.unary_unary(SERVICE + method)


@asynccontextmanager
async def grpc_desk(*routes: Route, limits: Limits = Limits()) -> AsyncIterator[GrpcDesk]:  # noqa: B008 - frozen
    with ThreadPoolExecutor(4) as threads:
        desk = GrpcDesk(threads, limits, *routes)
        await desk.server.start()
        try:
            yield desk
        finally:
            if desk.engine.gate is not None:
                desk.engine.gate.set()
            await desk.channel.close()
            await desk.server.stop()


def digits(*values: float, id: str = "", **options: Any) -> pb.ModelInferRequest:
    """One row of these values, typed."""
    request = pb.ModelInferRequest(model_name="digits", id=id)
    given = request.inputs.add(name="x", datatype="FP32", shape=[1, len(values)])
    given.contents.fp32_contents.extend(values)
    for name, value in options.items():
        request.parameters[name].int64_param = value
    return request


async def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """(code, text, trailing metadata) of a call that fails."""
    try:
        answer = await call
    except aio.AioRpcError as error:
        return error.code(), error.details() or "", dict(error.trailing_metadata() or ())
    raise AssertionError(f"it was answered: {answer}")
