"""Triton's own gRPC client, unchanged: what it makes of every call it knows, and whether its stubs are ours."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from gateway.wire.grpc import inference_pb2
from tests.conformance.served import run_client
from tests.servers.gateway import Gateway

pytestmark = pytest.mark.clients

# 64-bit integers are strings in the JSON of protobuf.
INPUTS = [{"name": "input", "datatype": "FP32", "shape": ["-1", "16"]}]
OUTPUTS = [{"name": "output", "datatype": "FP32", "shape": ["-1", "4"]}]
OURS_ALONE = (
    "inference.ModelMetadataResponse.properties",
    "inference.ModelMetadataResponse.PropertiesEntry",
)
"""Of the protocol, and unknown to Triton."""


@pytest.fixture(scope="module")
def triton(gateway: Gateway) -> dict[str, Any]:
    """Behaviour → what the client gave."""
    return run_client("triton_grpc.py", gateway.grpc)


def raised(code: str, text: str) -> dict[str, Any]:
    return {"exception": "InferenceServerException", "status": f"StatusCode.{code}", "text": text}


def fields(messages: list[Descriptor]) -> dict[str, list[Any]]:
    """Field → (number, type, repeated), of the messages and of those inside of them."""
    found = {
        field.full_name: [field.number, field.type, field.is_repeated]
        for message in messages
        for field in message.fields
    }
    nested = [inner for message in messages for inner in message.nested_types]
    return found | fields(nested) if nested else found


def test_our_messages_are_a_part_of_its_stubs(triton: dict[str, Any]) -> None:
    theirs = {f"{name}.{field}": row for name, rows in triton["stubs"].items() for field, row in rows.items()}
    ours = fields(list(inference_pb2.DESCRIPTOR.message_types_by_name.values()))
    ours = {name: row for name, row in ours.items() if not name.startswith(OURS_ALONE)}
    assert len(ours) > 100
    assert ours == {name: theirs.get(name) for name in ours}


def test_our_calls_and_datatypes_are_a_part_of_its_stubs(triton: dict[str, Any]) -> None:
    (service,) = inference_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        types = [method.input_type.full_name, method.output_type.full_name]
        assert triton["stubs"][service.full_name][method.name] == types
    assert dict(inference_pb2.DataType.items()) == triton["stubs"]["inference.DataType"]


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
    assert triton["version_metadata"]["inputs"] == INPUTS
    assert "2" in triton["version_metadata"]["versions"]


def test_model_ready(triton: dict[str, Any]) -> None:
    assert triton["model_ready"] == {"declared": True, "version": True, "unknown": False}


def test_model_config(triton: dict[str, Any]) -> None:
    config = triton["model_config"]["config"]
    assert (config["name"], config["platform"]) == ("scores", "onnxruntime_onnx")
    assert config["max_batch_size"] > 1
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": ["16"]}]
    assert config["output"] == [{"name": "output", "data_type": "TYPE_FP32", "dims": ["4"]}]
    assert "dynamic_batching" in config


def test_statistics(triton: dict[str, Any]) -> None:
    (model,) = triton["statistics"]["model"]["model_stats"]
    # A model that nobody has asked yet has no counts to show.
    before = triton["statistics"]["before"].get("model_stats", [{"inference_stats": {"success": {}}}])[0]
    assert (model["name"], model["version"]) == ("sum", "1")
    assert int(model["inference_count"]) - int(before.get("inference_count", 0)) == 6
    counts = [int(stats["inference_stats"]["success"].get("count", 0)) for stats in (before, model)]
    assert counts[1] - counts[0] == 3
    runs = sum(int(batch["compute_infer"]["count"]) for batch in model["batch_stats"])
    assert runs == int(model["execution_count"])
    assert triton["statistics"]["version"] == triton["statistics"]["model"]
    assert model in triton["statistics"]["all"]["model_stats"]


def test_repository_index(triton: dict[str, Any]) -> None:
    states = {
        (entry["name"], entry["version"]): entry["state"] for entry in triton["repository_index"]["models"]
    }
    declared = {(name, "1"): "READY" for name in ("scores", "sum", "text", "half", "wide")}
    assert {key: state for key, state in states.items() if key[1] == "1"} == declared


def test_a_load_and_an_unload(triton: dict[str, Any]) -> None:
    assert triton["load_and_unload"] == {
        "before": False,
        "loaded": True,
        "unloaded": False,
        "declared": True,
    }


def test_infer_answers_raw_bytes_with_raw_bytes(triton: dict[str, Any]) -> None:
    response = triton["infer"]["response"]
    assert (response["model_name"], response["model_version"]) == ("scores", "1")
    assert response["outputs"] == [{"name": "output", "datatype": "FP32", "shape": ["3", "4"]}]
    assert len(response["raw_output_contents"]) == 1
    assert triton["infer"]["output"] == triton["infer_without_outputs"] * 3


def test_infer_answers_typed_contents_with_typed_contents(triton: dict[str, Any]) -> None:
    (output,) = triton["infer_without_outputs"]
    assert triton["infer_typed"] == {"id": "typed", "raw": 0, "output": output}


def test_bytes_and_half_floats(triton: dict[str, Any]) -> None:
    assert triton["infer_bytes"] == ["snö", "", "a" * 300, "b"]
    assert triton["infer_half_floats"] == [[0.5, -2.0, 65504.0, 0.1]]


def test_several_inputs_in_any_order(triton: dict[str, Any]) -> None:
    assert triton["infer_several_inputs"] == [[3.5] * 3] * 2


def test_compression_of_messages(triton: dict[str, Any]) -> None:
    assert triton["compression"] == {"gzip": True, "deflate": True}


def test_classification(triton: dict[str, Any]) -> None:
    for labels, values in zip(
        triton["classification"]["labels"], triton["classification"]["output"], strict=True
    ):
        ranked = sorted(range(4), key=lambda index: -values[index])[:2]
        assert [int(label.split(":")[1]) for label in labels] == ranked


def test_versions_ids_parameters_and_metadata(triton: dict[str, Any]) -> None:
    assert triton["explicit_version"] == "2"
    assert triton["request_id"] == "request 7 ü"
    assert triton["parameters"] == "1"
    assert triton["own_headers"] == "scores"


def test_asynchronous_calls(triton: dict[str, Any]) -> None:
    assert triton["asynchronous"] == [[1, 4], [2, 4], [3, 4]]
    assert triton["asyncio_client"] == triton["infer_without_outputs"] * 2


def test_a_stream_goes_on_behind_an_error(triton: dict[str, Any]) -> None:
    assert triton["stream"] == [
        {"id": "0", "shape": [1, 4], "variant": "stable"},
        "Request for unknown model: 'nobody' is not found",
        {"id": "2", "shape": [3, 4], "variant": "stable"},
    ]


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("unknown_model", raised("NOT_FOUND", "Request for unknown model: 'nobody' is not found")),
        ("load_of_an_unknown_model", raised("NOT_FOUND", "Request for unknown model: 'nobody' is not found")),
        ("unknown_version", raised("NOT_FOUND", "'scores' version 99 is not found")),
        (
            "wrong_shape",
            raised(
                "INVALID_ARGUMENT",
                "unexpected shape for input 'input' for model 'scores'. Expected [-1,16], got [1,5]",
            ),
        ),
        (
            "wrong_datatype",
            raised(
                "INVALID_ARGUMENT",
                "inference input 'input' data-type is 'INT64', but model 'scores' expects 'FP32'",
            ),
        ),
        (
            "unknown_output",
            raised(
                "INVALID_ARGUMENT",
                "unexpected inference output 'nothing' for model 'scores': its outputs are 'output'",
            ),
        ),
        (
            "deadline",
            raised("DEADLINE_EXCEEDED", "the request's deadline has passed before its result was there"),
        ),
        (
            "shared_memory",
            raised("UNIMPLEMENTED", "there is no such call: server reflection lists those that there are"),
        ),
    ],
)
def test_errors(triton: dict[str, Any], behaviour: str, expected: dict[str, Any]) -> None:
    assert triton[behaviour] == expected
