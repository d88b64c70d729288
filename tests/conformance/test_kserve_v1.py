"""KServe's own REST client with its v1 protocol, unchanged: what it makes of every endpoint it knows."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conformance.served import run_client
from tests.servers.gateway import Gateway

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def kserve(gateway: Gateway) -> dict[str, Any]:
    """Behaviour → what the client gave."""
    return run_client("kserve_v1.py", gateway.data)


def test_server_and_models(kserve: dict[str, Any]) -> None:
    assert kserve["live"] is True
    assert kserve["model_ready"] is True
    assert kserve["unknown_model_ready"]["status"] == 404


def test_predictions_are_those_of_v2(gateway: Gateway, kserve: dict[str, Any]) -> None:
    tensor = {"name": "input", "shape": [2, 16], "datatype": "FP32", "data": [1.0] * 32}
    v2 = httpx.post(f"{gateway.data}/v2/models/scores/infer", json={"inputs": [tensor]}, timeout=20).json()
    flat = v2["outputs"][0]["data"]
    assert kserve["predict"] == {"predictions": [flat[:4], flat[4:]]}


def test_named_inputs_and_text(kserve: dict[str, Any]) -> None:
    assert kserve["predict_named"] == {"predictions": [[3.5] * 3]}
    assert kserve["predict_text"] == {"predictions": [["snö", ""], ["a" * 300, "b"]]}


def test_response_headers_name_the_version(kserve: dict[str, Any]) -> None:
    headers = kserve["response_headers"]
    assert (headers["turnout-version"], headers["turnout-variant"]) == ("1", "stable")
    assert headers["turnout-revision"] == "1.1"


@pytest.mark.parametrize(
    ("behaviour", "status", "text"),
    [
        ("unknown_model", 404, "Request for unknown model: 'nobody' is not found"),
        ("wrong_shape", 400, "Expected [-1,16], got [1,5]"),
        ("explain", 400, "has no signature for :explain"),
    ],
)
def test_errors(kserve: dict[str, Any], behaviour: str, status: int, text: str) -> None:
    raised = kserve[behaviour]
    assert (raised["exception"], raised["status"]) == ("HTTPStatusError", status)
    assert text in raised["text"]
