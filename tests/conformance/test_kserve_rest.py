"""KServe's own REST client, unchanged: what it makes of every endpoint it knows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.served import run_client
from tests.servers.gateway import Gateway

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def kserve(gateway: Gateway) -> dict[str, Any]:
    """Behaviour → what the client gave."""
    return run_client("kserve_rest.py", gateway.data)


def test_server_and_models(kserve: dict[str, Any]) -> None:
    assert kserve["live"] is True
    assert kserve["ready"] is True
    assert kserve["model_ready"] == {"scores": True, "nobody": False}


def test_infer_in_json(kserve: dict[str, Any]) -> None:
    told = kserve["infer_json"]
    assert (told["id"], told["model_name"]) == ("seven", "scores")
    assert len(told["outputs"]["output"][0]) == 4


@pytest.mark.parametrize(
    ("behaviour", "rows"),
    [
        ("infer_dict", 1),
        ("infer_binary", 2),
        ("infer_binary_in_json_out", 2),
        ("infer_requested_output", 1),
    ],
)
def test_every_way_to_infer_gives_the_same(kserve: dict[str, Any], behaviour: str, rows: int) -> None:
    assert kserve[behaviour]["outputs"]["output"] == kserve["infer_json"]["outputs"]["output"] * rows


def test_half_floats(kserve: dict[str, Any]) -> None:
    assert kserve["infer_half_floats"]["outputs"]["output"] == [[0.5, -2.0, 65504.0, 0.0]]


def test_bytes_tensors(kserve: dict[str, Any]) -> None:
    texts = ["snö", "", "a" * 300, "b"]
    assert kserve["infer_bytes"] == {"True": texts, "False": texts}


def test_several_inputs(kserve: dict[str, Any]) -> None:
    assert kserve["infer_several_inputs"]["outputs"]["sum"] == [[3.5] * 3] * 2


def test_response_headers_name_the_version(kserve: dict[str, Any]) -> None:
    headers = kserve["response_headers"]
    assert (headers["turnout-version"], headers["turnout-variant"]) == ("1", "stable")
    assert headers["turnout-revision"] == "1.1"
    assert len(headers["turnout-digest"]) == 64


@pytest.mark.parametrize(
    ("behaviour", "status", "text"),
    [
        ("unknown_model", 404, "Request for unknown model: 'nobody' is not found"),
        ("wrong_shape", 400, "Expected [-1,16], got [1,5]"),
        ("wrong_datatype", 400, "data-type is 'INT32', but model 'scores' expects 'FP32'"),
    ],
)
def test_errors(kserve: dict[str, Any], behaviour: str, status: int, text: str) -> None:
    raised = kserve[behaviour]
    assert (raised["exception"], raised["status"]) == ("HTTPStatusError", status)
    assert text in raised["text"]
