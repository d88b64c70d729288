"""Triton's own HTTP client, unchanged: what it makes of every endpoint it knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.served import run_client
from tests.servers.gateway import Gateway

pytestmark = pytest.mark.clients

INPUTS = [{"name": "input", "datatype": "FP32", "shape": [-1, 16]}]
OUTPUTS = [{"name": "output", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.fixture(scope="module")
def triton(gateway: Gateway) -> dict[str, Any]:
    """Behaviour → what the client gave."""
    return run_client("triton_http.py", gateway.data.removeprefix("http://"))


def raised(status: int, text: str) -> dict[str, Any]:
    return {"exception": "InferenceServerException", "status": str(status), "text": text}


def test_server(triton: dict[str, Any]) -> None:
    assert triton["live"] is True
    assert triton["ready"] is True
    metadata = triton["server_metadata"]
    assert metadata["name"] == "turnout"
    assert {"binary_tensor_data", "classification", "model_repository", "statistics"} <= {
        *metadata["extensions"]
    }


def test_model_metadata(triton: dict[str, Any]) -> None:
    assert triton["model_metadata"] == {
        "name": "scores",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }
    # A version that no route declares is loaded for the asking.
    assert triton["version_metadata"]["inputs"] == INPUTS
    assert triton["version_metadata"]["versions"] == ["1", "2"]


def test_model_ready(triton: dict[str, Any]) -> None:
    assert triton["model_ready"] == {"declared": True, "version": True, "unknown": False}


def test_model_config(triton: dict[str, Any]) -> None:
    config = triton["model_config"]
    assert (config["name"], config["platform"]) == ("scores", "onnxruntime_onnx")
    assert config["max_batch_size"] > 1
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [16]}]
    assert config["output"] == [{"name": "output", "data_type": "TYPE_FP32", "dims": [4]}]


def test_statistics_add_up_over_all_workers(triton: dict[str, Any]) -> None:
    (model,) = triton["statistics"]["model"]["model_stats"]
    assert (model["name"], model["version"]) == ("sum", "1")
    (before,) = triton["statistics"]["before"]["model_stats"]
    assert model["inference_count"] - before["inference_count"] == 6
    counts = [stats["inference_stats"]["success"]["count"] for stats in (before, model)]
    assert counts[1] - counts[0] == 3
    assert model["inference_stats"]["success"]["ns"] > model["inference_stats"]["compute_infer"]["ns"] > 0
    assert sum(batch["compute_infer"]["count"] for batch in model["batch_stats"]) == model["execution_count"]
    assert triton["statistics"]["version"] == triton["statistics"]["model"]
    assert model in triton["statistics"]["all"]["model_stats"]


def test_repository_index(triton: dict[str, Any]) -> None:
    ready = {(entry["name"], entry["version"]): entry["state"] for entry in triton["repository_index"]}
    declared = {(name, "1"): "READY" for name in ("scores", "sum", "text", "half", "wide")}
    assert {key: state for key, state in ready.items() if key[1] == "1"} == declared


def test_a_load_and_an_unload_reach_every_worker(triton: dict[str, Any]) -> None:
    seen = triton["load_and_unload"]
    assert (set(seen["before"]), set(seen["loaded"]), set(seen["unloaded"])) == ({False}, {True}, {False})
    assert {"name": "scores", "version": "3", "state": "READY", "reason": ""} in seen["index"]
    assert seen["declared"] is True


def test_infer_in_json(triton: dict[str, Any]) -> None:
    response = triton["infer_json"]["response"]
    assert (response["model_name"], response["model_version"]) == ("scores", "1")
    assert np.round(response["outputs"][0]["data"], 4).tolist() == triton["infer_json"]["output"][0]


def test_infer_in_binary(triton: dict[str, Any]) -> None:
    (output,) = triton["infer_binary"]["response"]["outputs"]
    assert (output["shape"], output["parameters"]) == ([3, 4], {"binary_data_size": 48})
    assert triton["infer_binary"]["output"] == triton["infer_json"]["output"] * 3


def test_infer_without_outputs_answers_them_all_in_binary(triton: dict[str, Any]) -> None:
    (output,) = triton["infer_without_outputs"]["response"]["outputs"]
    assert output["parameters"] == {"binary_data_size": 16}
    assert triton["infer_without_outputs"]["output"] == triton["infer_json"]["output"]


def test_bytes_tensors(triton: dict[str, Any]) -> None:
    texts = ["snö", "", "a" * 300, "b"]
    assert triton["infer_bytes"] == {"True": texts, "False": texts}


def test_half_floats_travel_in_binary_only(triton: dict[str, Any]) -> None:
    assert triton["infer_half_floats"] == [[0.5, -2.0, 65504.0, 0.1]]
    refused = triton["infer_half_floats_as_json"]
    assert refused["status"] == "400"
    assert "output 'output' is FP16, which JSON cannot carry" in refused["text"]


def test_several_inputs_in_any_order(triton: dict[str, Any]) -> None:
    assert triton["infer_several_inputs"] == [[3.5] * 3] * 2


def test_compression_of_requests_and_responses(triton: dict[str, Any]) -> None:
    assert triton["compression"] == {
        "gzip True": True,
        "gzip False": True,
        "deflate True": True,
        "deflate False": True,
    }


def test_classification(triton: dict[str, Any]) -> None:
    for labels, values in zip(
        triton["classification"]["labels"], triton["classification"]["output"], strict=True
    ):
        ranked = sorted(range(4), key=lambda index: -values[index])[:2]
        assert [int(label.split(":")[1]) for label in labels] == ranked
        assert [round(float(label.split(":")[0]), 4) for label in labels] == [values[i] for i in ranked]


def test_an_explicit_version_answers_for_itself(triton: dict[str, Any]) -> None:
    assert triton["explicit_version"]["model_version"] == "2"


def test_request_id_is_echoed(triton: dict[str, Any]) -> None:
    assert triton["request_id"] == "request 7 ü"


def test_parameters_headers_and_asynchronous_calls(triton: dict[str, Any]) -> None:
    assert triton["parameters"] == "1"
    assert triton["own_headers"] == "scores"
    assert triton["asynchronous"] == [[1, 4], [2, 4], [3, 4]]


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("unknown_model", raised(404, "Request for unknown model: 'nobody' is not found")),
        ("unknown_model_metadata", raised(404, "Request for unknown model: 'nobody' is not found")),
        ("load_of_an_unknown_model", raised(404, "Request for unknown model: 'nobody' is not found")),
        ("unknown_version", raised(404, "'scores' version 99 is not found")),
        (
            "wrong_shape",
            raised(400, "unexpected shape for input 'input' for model 'scores'. Expected [-1,16], got [1,5]"),
        ),
        (
            "wrong_datatype",
            raised(400, "inference input 'input' data-type is 'INT64', but model 'scores' expects 'FP32'"),
        ),
        (
            "wrong_input_name",
            raised(
                400,
                "unexpected inference input 'inputs' for model 'scores': its inputs are 'input'",
            ),
        ),
        (
            "unknown_output",
            raised(400, "unexpected inference output 'nothing' for model 'scores': its outputs are 'output'"),
        ),
        ("deadline", raised(504, "the request's deadline has passed before its result was there")),
    ],
)
def test_errors(triton: dict[str, Any], behaviour: str, expected: dict[str, Any]) -> None:
    assert triton[behaviour] == expected
