"""gRPC with two workers: the port, and what a kill and a drain cost."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from gateway.wire.grpc import inference_pb2 as pb
from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for
from tests.servers.grpc_load import OWN_CONNECTION, GrpcLoad, infer_call
from tests.servers.load import connections_of

MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  number: {variants: {stable: {model: local/number@champion}}}
"""
REQUEST = pb.ModelInferRequest(
    model_name="number",
    inputs=[pb.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=[1, 4])],
    raw_input_contents=[bytes(16)],
)
CLIENTS = 8

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel shares out the connections")


@pytest.fixture
def made(gateways: Callable[..., Gateway]) -> Gateway:
    """Not started yet."""
    gateway = gateways(MANIFEST, "--workers", "2")
    source = models.save(models.constant(1.0), gateway.directory / "1" / "model.onnx")
    publish(gateway.directory / "models", "number", source, version="1", aliases=["champion"])
    return gateway


@pytest.fixture
def gateway(made: Gateway) -> Gateway:
    made.start()
    wait_for(lambda: made.ready_workers() == 2, 30, lambda: made.log)
    return made


def answers(load: GrpcLoad, more: int) -> None:
    target = load.answers + more
    wait_for(lambda: load.answers >= target, 30, lambda: f"lost {load.lost}, refused {load.refused}")


def counted(gateway: Gateway) -> float:
    return sum(v for name, v in gateway.metrics().items() if name.startswith("turnout_requests_total"))


def grpc_connections(gateway: Gateway, pid: int) -> int:
    return connections_of(pid, int(gateway.grpc.rpartition(":")[2]))


def test_a_drain_under_load_answers_every_call(gateway: Gateway) -> None:
    with GrpcLoad(gateway.grpc, REQUEST, clients=CLIENTS) as load:
        answers(load, 200)
        assert gateway.stop() == 0
    assert not load.lost
    assert load.refused > 0
    assert "Traceback" not in gateway.log


def test_health_is_not_serving_while_draining(gateway: Gateway) -> None:
    assert gateway.process is not None
    with grpc.insecure_channel(gateway.grpc) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            HealthCheckRequest.SerializeToString,
            HealthCheckResponse.FromString,
        )
        told = watch(HealthCheckRequest(), timeout=30)
        assert next(told).status == HealthCheckResponse.SERVING
        gateway.process.send_signal(signal.SIGTERM)
        assert next(told).status == HealthCheckResponse.NOT_SERVING
        # Until the drain is over it answers whoever has not heard of it.
        assert infer_call(channel)(REQUEST, timeout=10).model_version == "1"
        with pytest.raises(grpc.RpcError) as ended:
            next(told)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert gateway.process.wait(20) == 0


def test_a_killed_worker_is_replaced_and_takes_its_share(gateway: Gateway) -> None:
    with GrpcLoad(gateway.grpc, REQUEST, clients=CLIENTS) as load:
        answers(load, 200)
        victim, survivor = gateway.worker_pids()
        held = grpc_connections(gateway, victim)
        os.kill(victim, signal.SIGKILL)
        (replacement,) = wait_for(partial(newcomers, gateway, victim, survivor), 20, lambda: gateway.log)
        answers(load, 100)
        # What was in flight, and once more what came back at once and waited in the dead worker's own queue.
        assert sum(load.lost.values()) <= 2 * held + 1
    # An answer is counted once it was handed over: of each connection one may have been, when the worker was killed.
    assert counted(gateway) >= load.answers - held
    # A connection stays where it is: new ones reach the newcomer, too.
    with ExitStack() as channels:
        opened = 0
        while not grpc_connections(gateway, replacement):
            channel = channels.enter_context(grpc.insecure_channel(gateway.grpc, options=OWN_CONNECTION))
            assert infer_call(channel)(REQUEST, timeout=10).model_version == "1"
            opened += 1
            assert opened < 64, "64 connections, and none of them reached the new worker"
    assert "Traceback" not in gateway.log


def newcomers(gateway: Gateway, victim: int, survivor: int) -> set[int] | None:
    pids = set(gateway.worker_pids())
    ready = gateway.ready_workers() == 2 and victim not in pids and len(pids) == 2
    return pids - {survivor} if ready else None


def test_one_address_for_all_workers(gateway: Gateway) -> None:
    with ExitStack() as channels:
        for _ in range(64):
            channel = channels.enter_context(grpc.insecure_channel(gateway.grpc, options=OWN_CONNECTION))
            infer_call(channel)(REQUEST, timeout=10)
            if all(grpc_connections(gateway, pid) for pid in gateway.worker_pids()):
                return
    pytest.fail("64 connections went to one worker")


@pytest.mark.parametrize("shares", [False, True], ids=["another server", "one that shares ports"])
def test_a_port_in_use_is_an_error_at_the_start(made: Gateway, shares: bool) -> None:
    with socket.socket() as other:
        if shares:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        made.options = ("--grpc-port", str(port))
        made.start(wait=False)
        assert made.process is not None
        assert made.process.wait(30) == 1
    assert (
        f"127.0.0.1:{port} cannot be bound (Address already in use): choose another --grpc-port" in made.log
    )


def test_two_gateways_do_not_share_a_port(gateway: Gateway, gateways: Callable[..., Gateway]) -> None:
    port = gateway.grpc.rpartition(":")[2]
    second = gateways(MANIFEST, "--grpc-port", port).start(wait=False)
    assert second.process is not None
    assert second.process.wait(30) == 1
    assert "choose another --grpc-port" in second.log


def test_a_port_is_free_again_behind_a_gateway_that_ended(gateway: Gateway) -> None:
    port = gateway.grpc.rpartition(":")[2]
    with GrpcLoad(gateway.grpc, REQUEST, clients=2) as load:
        answers(load, 20)
        assert gateway.stop() == 0
    gateway.options = (*gateway.options, "--grpc-port", port)
    gateway.start()
    assert gateway.grpc.endswith(f":{port}")


def test_without_grpc(made: Gateway) -> None:
    made.options = ("--workers", "1", "--grpc-port", "off")
    made.start()
    assert made.grpc == ""
    assert "  grpc " not in made.log
    assert httpx.get(f"{made.data}/v2/health/ready").json() == {"ready": True}
    (pid,) = made.worker_pids()
    assert "cygrpc" not in Path(f"/proc/{pid}/maps").read_text()
