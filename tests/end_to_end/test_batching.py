"""Tick batching in a real worker: who shares a run, and whom a bad request takes along (nobody)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway

MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  sums: {variants: {stable: {model: local/sums@champion}}}
  stateful: {variants: {stable: {model: local/stateful@champion}}}
"""
CONNECTIONS = 32

Answer = tuple[int, Any]


@pytest.fixture
def gateway(gateways: Callable[..., Gateway]) -> Gateway:
    made = gateways(MANIFEST, "--workers", "1")
    for name, model in (("sums", models.two_inputs()), ("stateful", models.scalar_and_state())):
        source = models.save(model, made.directory / "sources" / name / "model.onnx")
        publish(made.directory / "models", name, source, version="1", aliases=["champion"])
    return made.start()


def sums(row: float, shape: Sequence[int] = (1, 3)) -> Any:
    count = shape[0] * shape[1]
    return {
        "inputs": [
            {"name": name, "shape": shape, "datatype": "FP32", "data": [row] * count} for name in ("a", "b")
        ]
    }


def stateful(sample: float) -> Any:
    return {
        "inputs": [
            {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [sample, sample]},
            {"name": "state", "shape": [2, 1, 8], "datatype": "FP32", "data": [0.0] * 16},
            {"name": "sr", "shape": [], "datatype": "INT64", "data": [3]},
        ]
    }


@contextmanager
def connected(gateway: Gateway, count: int) -> Iterator[list[socket.socket]]:
    parts = urlsplit(gateway.data)
    address = (parts.hostname or "", parts.port or 0)
    connections = [socket.create_connection(address, timeout=20) for _ in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def at_once(connections: list[socket.socket], route: str, documents: Sequence[Any]) -> list[Answer]:
    """Writes every request before it reads any answer; answers in the order of the connections."""
    for connection, document in zip(connections, documents, strict=True):
        body = json.dumps(document).encode()
        head = f"POST /v2/models/{route}/infer HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
    answers = []
    for connection in connections:
        response = HTTPResponse(connection)
        response.begin()
        answers.append((response.status, json.loads(response.read())))
    return answers


def batches(gateway: Gateway, route: str) -> tuple[float, float]:
    """Runs, and runs of one row alone."""
    samples = gateway.metrics()
    of_route = {
        name: value
        for name, value in samples.items()
        if name.startswith("turnout_batch_size") and f'route="{route}"' in name
    }
    runs = sum(value for name, value in of_route.items() if name.startswith("turnout_batch_size_count"))
    alone = sum(value for name, value in of_route.items() if 'le="1.0"' in name)
    return runs, alone


def test_requests_of_one_tick_share_a_run(gateway: Gateway) -> None:
    with connected(gateway, CONNECTIONS) as connections:
        for _ in range(20):
            answers = at_once(connections, "sums", [sums(float(row)) for row in range(CONNECTIONS)])
            for row, (status, document) in enumerate(answers):
                assert status == 200
                assert document["outputs"][0]["data"] == [2.0 * row] * 3
    runs, alone = batches(gateway, "sums")
    assert runs < 20 * CONNECTIONS
    assert runs > alone, "no run had more than one row"


def test_requests_of_several_rows_get_their_own_rows_back(gateway: Gateway) -> None:
    with connected(gateway, 8) as connections:
        for _ in range(10):
            documents = [sums(float(index), (index % 3, 3)) for index in range(8)]
            for index, (status, document) in enumerate(at_once(connections, "sums", documents)):
                assert status == 200
                output = document["outputs"][0]
                assert (output["shape"], output["data"]) == ([index % 3, 3], [2.0 * index] * 3 * (index % 3))


def test_a_wrong_shape_in_the_tick_fails_alone(gateway: Gateway) -> None:
    with connected(gateway, CONNECTIONS) as connections:
        for _ in range(10):
            documents = [sums(1.0, (1, 4) if index % 8 == 3 else (1, 3)) for index in range(CONNECTIONS)]
            for index, (status, document) in enumerate(at_once(connections, "sums", documents)):
                assert status == (400 if index % 8 == 3 else 200), document
                if status == 400:
                    assert "unexpected shape for input 'a'" in document["error"]


def test_a_model_that_is_not_batchable_answers_each_for_itself(gateway: Gateway) -> None:
    with connected(gateway, CONNECTIONS) as connections:
        documents = [stateful(float(sample)) for sample in range(CONNECTIONS)]
        for sample, (status, document) in enumerate(at_once(connections, "stateful", documents)):
            assert status == 200
            outputs = {output["name"]: output["data"] for output in document["outputs"]}
            assert outputs == {"output": [float(sample)], "stateN": [3.0] * 16}
    runs, alone = batches(gateway, "stateful")
    assert runs == alone == CONNECTIONS
