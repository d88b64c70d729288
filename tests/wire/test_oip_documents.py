"""Metadata, configuration, statistics and index, as clients of Triton and KServe read them."""

from gateway.serving.engine import Signature, TensorSpec
from gateway.wire import oip_documents as documents
from gateway.wire.oip_documents import BatchStatistics, Duration, IndexEntry, ModelStatistics

ROWS = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4), dimensions=("batch", "")),),
    outputs=(TensorSpec(name="y", datatype="BYTES", shape=(-1, -1), dimensions=("batch", "")),),
)
SCALAR = Signature(
    inputs=(TensorSpec(name="sr", datatype="INT64", shape=()),),
    outputs=(TensorSpec(name="y", datatype="BF16", shape=(-1,), dimensions=("",)),),
)


def test_server_metadata() -> None:
    document = documents.server_metadata("1.2.3")
    assert (document["name"], document["version"]) == ("turnout", "1.2.3")
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= set(document["extensions"])


def test_model_metadata() -> None:
    assert documents.model_metadata("m", ["1", "2"], "onnxruntime_onnx", ROWS) == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1, -1]}],
    }


def test_the_configuration_of_a_batchable_model_has_rows() -> None:
    config = documents.model_config("m", "onnxruntime_onnx", ROWS, 64)
    assert config["max_batch_size"] == 64 and config["backend"] == "onnxruntime"
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert "dynamic_batching" in config


def test_the_configuration_of_other_models_has_whole_shapes() -> None:
    off = documents.model_config("m", "onnxruntime_onnx", ROWS, 64, batching=False)
    assert off["max_batch_size"] == 0 and off["input"][0]["dims"] == [-1, 4]
    scalar = documents.model_config("m", "onnxruntime_onnx", SCALAR, 64)
    assert scalar["max_batch_size"] == 0 and "dynamic_batching" not in scalar
    assert scalar["input"] == [{"name": "sr", "data_type": "TYPE_INT64", "dims": []}]
    assert scalar["output"] == [{"name": "y", "data_type": "TYPE_BF16", "dims": [-1]}]


def test_the_index() -> None:
    entries = [
        IndexEntry(name="a", version="1", state="READY"),
        IndexEntry(name="a", version="2", state="UNAVAILABLE", reason="denied"),
    ]
    assert [row["version"] for row in documents.repository_index(entries)] == ["1", "2"]
    assert documents.repository_index(entries, ready_only=True) == [
        {"name": "a", "version": "1", "state": "READY", "reason": ""}
    ]


def test_statistics() -> None:
    model = ModelStatistics(
        name="m",
        version="1",
        last_inference_ms=5,
        inference_count=9,
        execution_count=2,
        success=Duration(count=3, ns=400),
        batches=[BatchStatistics(batch_size=4, compute_infer=Duration(count=2, ns=10))],
    )
    (document,) = documents.statistics([model])["model_stats"]
    assert document["inference_stats"]["success"] == {"count": 3, "ns": 400}
    assert set(document["inference_stats"]) == {
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    }
    assert document["batch_stats"][0]["compute_infer"] == {"count": 2, "ns": 10}
    assert (document["last_inference"], document["inference_count"], document["execution_count"]) == (5, 9, 2)
