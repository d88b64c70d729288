"""ONNX models through the engine: every datatype, what does not load, and what its error says."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from gateway.routing.state import EngineOptions
from gateway.serving.datatypes import BY_ONNX, DATATYPES
from gateway.serving.engine import EngineError, TensorSpec
from gateway.serving.engines.onnx import OnnxEngine, load_onnx
from gateway.serving.tensors import InferenceError
from tests import models


def load(model: onnx.ModelProto, directory: Path, options: EngineOptions | None = None) -> OnnxEngine:
    return load_onnx(models.save(model, directory), options or EngineOptions())


def sample(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        array = np.empty((2, 4), dtype=object)
        array[:] = [[b"", b"a", "é€😀".encode(), b"\0"], [b"1", b"2", b"3", b"trailing\0"]]
        return array
    if datatype == "BOOL":
        return np.array([[True, False, True, False]] * 2)
    row = DATATYPES[datatype]
    if row.maximum:
        return np.array([[row.minimum, row.maximum, 0, 1]] * 2, row.dtype)
    return np.array([[1, 2, 3, 4]] * 2).astype(row.dtype)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_passes_unchanged(datatype: str, tmp_path: Path) -> None:
    engine = load(models.identity(datatype), tmp_path)
    array = sample(datatype)

    (result,) = engine.run({"input": array}, ["output"])

    assert result.dtype == array.dtype and result.shape == array.shape
    assert (result == array).all()
    assert engine.signature.inputs[0].datatype == datatype


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_warms_up(datatype: str, tmp_path: Path) -> None:
    load(models.identity(datatype), tmp_path).warm()


def test_the_table_of_datatypes_is_one_to_one() -> None:
    assert len(BY_ONNX) == len(DATATYPES) == len(models.ONNX_TYPES)


def test_the_signature_keeps_names_of_dynamic_dimensions(tmp_path: Path) -> None:
    engine = load(models.identity("INT64", ("batch", None, 3, "tokens")), tmp_path)
    assert engine.signature.inputs == (
        TensorSpec(
            name="input", datatype="INT64", shape=(-1, -1, 3, -1), dimensions=("batch", "", "", "tokens")
        ),
    )


@pytest.mark.parametrize(
    ("model", "batchable"),
    [
        (models.mlp(), True),
        (models.two_inputs(), True),
        (models.two_inputs(second="other"), False),
        (models.scalar_and_state(), False),
        (models.identity(shape=(1, 4)), False),
        (models.identity(shape=(None, 4)), False),  # unnamed: nothing says that both are the same
        (models.identity(shape=()), False),
    ],
    ids=["mlp", "two-inputs", "two-names", "state", "fixed", "unnamed", "scalar"],
)
def test_what_can_be_batched(model: onnx.ModelProto, batchable: bool, tmp_path: Path) -> None:
    assert load(model, tmp_path).signature.batchable is batchable


def test_scalars_and_states(tmp_path: Path) -> None:
    engine = load(models.scalar_and_state(), tmp_path)
    inputs = {
        "input": np.full((1, 3), 2, np.float32),
        "state": np.zeros((2, 1, 8), np.float32),
        "sr": np.array(7, np.int64),
    }
    mean, state = engine.run(inputs, ["output", "stateN"])
    assert mean.tolist() == [[2.0]] and (state == 7).all()


def test_outputs_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    engine = load(models.scalar_and_state(), tmp_path)
    engine.warm()
    inputs = {
        "input": np.ones((1, 3), np.float32),
        "state": np.zeros((2, 1, 8), np.float32),
        "sr": np.array(7, np.int64),
    }
    assert [array.ndim for array in engine.run(inputs, ["stateN", "output"])] == [3, 2]
    assert [array.ndim for array in engine.run(inputs, ["stateN"])] == [3]


def test_strings_that_are_not_utf8_are_the_clients_error(tmp_path: Path) -> None:
    engine = load(models.identity("BYTES", ("batch",)), tmp_path)
    array = np.array([b"ok", b"\xff"], dtype=object)
    with pytest.raises(InferenceError, match="input 'input' has an element that is not UTF-8") as raised:
        engine.run({"input": array}, ["output"])
    assert raised.value.status == 400


def test_read_only_inputs_are_taken(tmp_path: Path) -> None:
    engine = load(models.identity(), tmp_path)
    array = np.frombuffer(bytes(16), np.float32).reshape(1, 4)
    assert engine.run({"input": array}, ["output"])[0].tolist() == [[0.0] * 4]


def test_a_batch_answers_as_its_rows_do(tmp_path: Path) -> None:
    engine = load(models.mlp(16, 32, 2), tmp_path)
    rows = np.random.default_rng(1).standard_normal((8, 16), dtype=np.float32)
    (batch,) = engine.run({"input": rows}, ["output"])
    singles = [engine.run({"input": row[None]}, ["output"])[0][0] for row in rows]
    np.testing.assert_allclose(batch, np.array(singles), rtol=1e-5)


def test_several_threads_run_one_engine(tmp_path: Path) -> None:
    engine = load(models.mlp(), tmp_path)
    rows = np.random.default_rng(1).standard_normal((64, 1, 16), dtype=np.float32)
    expected = [engine.run({"input": row}, ["output"])[0] for row in rows]
    barrier = threading.Barrier(4)

    def work() -> bool:
        barrier.wait()
        return all(
            np.array_equal(engine.run({"input": row}, ["output"])[0], answer)
            for row, answer in zip(rows, expected, strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(job.result() for job in [pool.submit(work) for _ in range(4)])


def damaged(kind: str) -> bytes:
    model = models.identity()
    match kind:
        case "empty":
            return b""
        case "text":
            return b"this is no model"
        case "truncated":
            return models.mlp().SerializeToString()[:-100]
        case "ir":
            model.ir_version = 99
        case "opset":
            model.opset_import[0].version = 99
        case "operator":
            model.graph.node[0].op_type = "NoSuchOperator"
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "No graph was found"),
        ("text", "Protobuf parsing failed"),
        ("truncated", "Protobuf parsing failed"),
        ("ir", "Unsupported model IR version: 99"),
        ("opset", "Opset 99"),
        ("operator", "No Op registered for NoSuchOperator"),
    ],
)
def test_what_does_not_load_says_why(
    kind: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secret-place" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(damaged(kind))

    with pytest.raises(EngineError, match=reason) as raised:
        load_onnx(path, EngineOptions())

    text = str(raised.value)
    assert "secret-place" not in text and "onnxruntime_src" not in text and "\n" not in text
    assert capfd.readouterr() == ("", "")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="File doesn't exist") as raised:
        load_onnx(tmp_path / "model.onnx", EngineOptions())
    assert str(tmp_path) not in str(raised.value)


def test_a_failed_run_says_why_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = load(models.needs_even_rows(), tmp_path)
    with pytest.raises(EngineError, match="cannot be reshaped") as raised:
        engine.run({"input": np.zeros((3, 3), np.float32)}, ["output"])
    assert "onnxruntime_src" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_warm_up_on_sizes_that_are_not_legal_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="warm-up run failed on zeros with dynamic dimensions of 1, 256"):
        load(models.needs_even_rows(), tmp_path).warm()


def test_types_that_the_protocol_does_not_have_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"input 'items' is of type seq\(tensor\(float\)\)"):
        load(models.sequence_input(), tmp_path)


@pytest.mark.parametrize("providers", [("NoSuchProvider",), ("NoSuchProvider", "CPUExecutionProvider"), ()])
def test_a_provider_that_is_not_there_is_an_error_not_the_cpu(
    providers: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"available: .*CPUExecutionProvider"):
        load(models.identity(), tmp_path, EngineOptions(providers=providers))


@pytest.mark.parametrize("level", ["disabled", "basic", "extended", "all"])
def test_each_level_of_optimization_loads(level: str, tmp_path: Path) -> None:
    options = EngineOptions(graph_optimization=level, threads=2)  # type: ignore[arg-type]
    load(models.mlp(), tmp_path, options).warm()


def test_external_data_lies_beside_the_model(tmp_path: Path) -> None:
    inputs = {"input": np.ones((1, 16), np.float32)}
    whole = load(models.mlp(), tmp_path / "whole").run(inputs, ["output"])[0]
    path = models.save_with_external_data(models.mlp(), tmp_path / "split")
    assert np.array_equal(load_onnx(path, EngineOptions()).run(inputs, ["output"])[0], whole)


@pytest.mark.parametrize("how", ["missing", "short", "symlink", "location"])
def test_external_data_from_elsewhere_is_refused(how: str, tmp_path: Path) -> None:
    path = models.save_with_external_data(models.mlp(), tmp_path / "secret-place")
    weights = path.parent / "weights.bin"
    outside = tmp_path / "outside.bin"
    outside.write_bytes(weights.read_bytes())
    match how:
        case "missing":
            weights.unlink()
        case "short":
            weights.write_bytes(b"1234")
        case "symlink":
            weights.unlink()
            weights.symlink_to(outside)
        case "location":
            model = onnx.load(str(path), load_external_data=False)
            for tensor in model.graph.initializer:
                for entry in tensor.external_data:
                    entry.value = "../outside.bin" if entry.key == "location" else entry.value
            path.write_bytes(model.SerializeToString())

    with pytest.raises(EngineError) as raised:
        load_onnx(path, EngineOptions())
    assert str(tmp_path) not in str(raised.value) and "secret-place" not in str(raised.value)


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    engine = load(models.identity(), tmp_path)
    engine.close()
    with pytest.raises(EngineError, match="has been unloaded"):
        engine.warm()
