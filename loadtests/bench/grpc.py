"""How many predictions a second one worker makes over gRPC, beside HTTP in the same run.

    python -m loadtests.bench.grpc [--seconds 5] [--concurrency 1 16]

Starts a gateway with one worker and a tiny model (16 floats in, 2 out) on free ports. The clients are processes
of their own that speak the protocols with as little around them as can be had: gRPC's by grpcio with prepared
bytes, HTTP's by a kept-alive socket. Each asks, waits, and asks again, over a connection of its own; `stream` is
ModelStreamInfer. `worker us` is the CPU time that the worker took for a request, and does not depend on how much
of the machine the clients leave it: compare that.

On two cores with Python 3.11, which had other work to do as well:

                  clients  requests/s  worker us
    HTTP, JSON           1        4263        178
    gRPC, raw            1        1457        562
    gRPC, typed          1        1246        563
    gRPC, stream         1        1885        344
    HTTP, JSON          16        7319        106
    gRPC, raw           16        1290        620
    gRPC, typed         16        1428        593
    gRPC, stream        16        2690        247

What a call is made of, of 850 us in another such hour: 400 are gRPC's, for a call that does nothing and answers
what it was asked; 70 the metadata that says which version answered, a step of its own; the rest is our decoding,
the data plane and the engine. HTTP's tick batching gains from many clients, gRPC's hand-over is paid by each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from gateway.wire.grpc import inference_pb2 as pb
from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for
from tests.servers.grpc_load import OWN_CONNECTION, SERVICE

MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  tiny: {variants: {stable: {model: local/tiny@champion}}}
"""
FLOATS = 16
CHUNK = 25
"""Requests between two looks at the clock."""
_INPUT = pb.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=[1, FLOATS])
RAW = pb.ModelInferRequest(
    model_name="tiny", inputs=[_INPUT], raw_input_contents=[bytes(4 * FLOATS)]
).SerializeToString()
_TYPED = pb.ModelInferRequest(model_name="tiny", inputs=[_INPUT])
_TYPED.inputs[0].contents.fp32_contents.extend([0.5] * FLOATS)
TYPED = _TYPED.SerializeToString()
Ask = Callable[[], None]


def over_http(address: str) -> Ask:
    data = {"name": "input", "shape": [1, FLOATS], "datatype": "FP32", "data": [0.5] * FLOATS}
    body = json.dumps({"inputs": [data]}).encode()
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: {address}\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> None:
        connection.sendall(request)
        # A tiny answer comes in one or two pieces, and its body ends with the only such brackets.
        answer = connection.recv(65536)
        while not answer.endswith(b"]}]}"):
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer

    return ask


def over_grpc(message: bytes) -> Callable[[str], Ask]:
    def connect(address: str) -> Ask:
        channel = grpc.insecure_channel(address, options=OWN_CONNECTION)
        infer = channel.unary_unary(SERVICE + "ModelInfer")
        return lambda: infer(message) and None

    return connect


def over_stream(address: str) -> Ask:
    channel = grpc.insecure_channel(address, options=OWN_CONNECTION)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    answers = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter(waiting.get, b""))

    def ask() -> None:
        waiting.put(RAW)
        next(answers)

    return ask


WAYS: dict[str, Callable[[str], Ask]] = {
    "HTTP, JSON": over_http,
    "gRPC, raw": over_grpc(RAW),
    "gRPC, typed": over_grpc(TYPED),
    "gRPC, stream": over_stream,
}


def client(
    way: str, address: str, seconds: float, together: Barrier, asked: multiprocessing.Queue[int]
) -> None:
    ask = WAYS[way](address)
    ask()
    together.wait()
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(CHUNK):
            ask()
        count += CHUNK
    asked.put(count)
    together.wait()


def measure(way: str, address: str, pid: int, concurrency: int, seconds: float) -> tuple[float, float]:
    """(requests a second, µs of the worker's CPU a request)."""
    # Nothing of gRPC runs in this process, which alone makes a fork safe; sixteen imports would take a minute.
    start = multiprocessing.get_context("fork")
    together, asked = start.Barrier(concurrency + 1), start.Queue()
    clients = [
        start.Process(target=client, args=(way, address, seconds, together, asked), daemon=True)
        for _ in range(concurrency)
    ]
    for one in clients:
        one.start()
    together.wait()
    before_s, started = cpu_s(pid), time.monotonic()
    counts = [asked.get() for _ in clients]
    took_s, used_s = time.monotonic() - started, cpu_s(pid) - before_s
    together.wait()
    for one in clients:
        one.join(10)
    return sum(counts) / took_s, used_s / sum(counts) * 1e6


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnout-grpc-") as scratch:
        gateway = Gateway(Path(scratch), MANIFEST, "--workers", "1")
        source = models.save(models.mlp(FLOATS, 8, 2), Path(scratch) / "tiny" / "model.onnx")
        publish(Path(scratch) / "models", "tiny", source, version="1", aliases=["champion"])
        try:
            gateway.start()
            wait_for(lambda: gateway.ready_workers() == 1, 30, lambda: gateway.log)
            (pid,) = gateway.worker_pids()
            print(f"{'':<14}{'clients':>8}{'requests/s':>12}{'worker us':>11}")
            for concurrency in arguments.concurrency:
                for way in WAYS:
                    address = urlsplit(gateway.data).netloc if way.startswith("HTTP") else gateway.grpc
                    rate, used_us = measure(way, address, pid, concurrency, arguments.seconds)
                    print(f"{way:<14}{concurrency:>8}{rate:>12.0f}{used_us:>11.0f}", flush=True)
        finally:
            gateway.kill()


if __name__ == "__main__":
    main()
