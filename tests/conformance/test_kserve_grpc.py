"""KServe's own gRPC client, unchanged: what it makes of every call it knows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.served import run_client
from tests.servers.gateway import Gateway

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def kserve(gateway: Gateway) -> dict[str, Any]:
    """Behaviour → what the client gave."""
    return run_client("kserve_grpc.py", gateway.grpc)


def test_server_and_models(kserve: dict[str, Any]) -> None:
    assert kserve["live"] is True
    assert kserve["ready"] is True
    assert kserve["model_ready"] == {"scores": True, "nobody": False}


def test_infer_typed(kserve: dict[str, Any]) -> None:
    told = kserve["infer_typed"]
    assert (told["id"], told["model_name"]) == ("seven", "scores")
    assert len(told["outputs"]["output"][0]) == 4


def test_raw_gives_the_same(kserve: dict[str, Any]) -> None:
    assert kserve["infer_raw"]["outputs"]["output"] == kserve["infer_typed"]["outputs"]["output"] * 2


def test_half_floats(kserve: dict[str, Any]) -> None:
    assert kserve["infer_half_floats"]["outputs"]["output"] == [[0.5, -2.0, 65504.0, 0.0]]


def test_bytes_tensors(kserve: dict[str, Any]) -> None:
    texts = ["snö", "", "a" * 300, "b"]
    assert kserve["infer_bytes"] == {"True": texts, "False": texts}


def test_several_inputs(kserve: dict[str, Any]) -> None:
    assert kserve["infer_several_inputs"]["outputs"]["sum"] == [[3.5] * 3] * 2


@pytest.mark.parametrize(
    ("behaviour", "code", "text"),
    [
        ("unknown_model", "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        ("wrong_shape", "INVALID_ARGUMENT", "Expected [-1,16], got [1,5]"),
        ("mixed", "INVALID_ARGUMENT", "2 inputs are given, but 1 raw_input_contents"),
    ],
)
def test_errors(kserve: dict[str, Any], behaviour: str, code: str, text: str) -> None:
    raised = kserve[behaviour]
    assert (raised["exception"], raised["status"]) == ("RpcError", f"StatusCode.{code}")
    assert text in raised["text"]
