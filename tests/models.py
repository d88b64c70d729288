"""Small real ONNX models, each from a function: what the tests serve.

Each returns a `ModelProto`; `save` writes one to a directory as `model.onnx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None] | None

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}


def save(model: onnx.ModelProto, directory: Path, name: str = "model.onnx") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_bytes(model.SerializeToString())
    return path


def identity(
    datatype: str = "FP32", shape: Shape = ("batch", 4), *, output: str = "output"
) -> onnx.ModelProto:
    """`output = input`, of any datatype of the protocol."""
    return _model(
        [helper.make_node("Identity", ["input"], [output])],
        [tensor("input", datatype, shape)],
        [tensor(output, datatype, shape)],
    )


def mlp(
    *sizes: int, seed: int = 0, bias: float = 0.0, input_name: str = "input", output_name: str = "output"
) -> onnx.ModelProto:
    """A perceptron: `mlp(16, 32, 2)` is FP32 [-1,16] → [-1,2]. A `bias` tells two versions apart."""
    sizes = sizes or (16, 32, 2)
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], input_name
    last = len(sizes) - 2
    for layer, (rows, columns) in enumerate(pairwise(sizes)):
        w = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(rows))
        b = np.full(columns, bias if layer == last else 0.0, np.float32)
        weights += [numpy_helper.from_array(w, f"w{layer}"), numpy_helper.from_array(b, f"b{layer}")]
        result = output_name if layer == last else f"h{layer}"
        nodes += [
            helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Add", [f"m{layer}", f"b{layer}"], [result if layer == last else f"a{layer}"]),
        ]
        if layer != last:
            nodes.append(helper.make_node("Relu", [f"a{layer}"], [result]))
        value = result
    return _model(
        nodes,
        [tensor(input_name, "FP32", ["batch", sizes[0]])],
        [tensor(output_name, "FP32", ["batch", sizes[-1]])],
        weights,
    )


def constant(value: float, width: int = 1) -> onnx.ModelProto:
    """FP32 [-1,4] → [-1,width] of `value`, whatever the input: tells which version answered."""
    return mlp_of(np.zeros((4, width), np.float32), np.full(width, value, np.float32))


def mlp_of(weights: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """One linear layer of these weights, FP32 [-1,rows] → [-1,columns]."""
    rows, columns = weights.shape
    return _model(
        [
            helper.make_node("MatMul", ["input", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["output"]),
        ],
        [tensor("input", "FP32", ["batch", rows])],
        [tensor("output", "FP32", ["batch", columns])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )


def scalar_and_state() -> onnx.ModelProto:
    """Like silero-vad: a scalar INT64 `sr`, and a `state` with the batch in its second place; not batchable.

    `output` [-1,1] is the mean of `input` [-1,-1]; `stateN` is `state` + `sr`.
    """
    return _model(
        [
            helper.make_node("ReduceMean", ["input"], ["output"], axes=[1], keepdims=1),
            helper.make_node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["state", "rate"], ["stateN"]),
        ],
        [
            tensor("input", "FP32", ["batch", "samples"]),
            tensor("state", "FP32", [2, "batch", 8]),
            tensor("sr", "INT64", []),
        ],
        [tensor("output", "FP32", ["batch", 1]), tensor("stateN", "FP32", [2, "batch", 8])],
    )


def two_inputs(second: str = "batch") -> onnx.ModelProto:
    """`sum = a + b`, FP32 [batch,3]; `second` names the first dimension of `b`."""
    return _model(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [tensor("a", "FP32", ["batch", 3]), tensor("b", "FP32", [second, 3])],
        [tensor("sum", "FP32", ["batch", 3])],
    )


def named_columns() -> onnx.ModelProto:
    """Like a converted pipeline: `age` FP32 [-1,1] and `town` BYTES [-1,1], passed through as `a` and `t`."""
    return _model(
        [helper.make_node("Identity", ["age"], ["a"]), helper.make_node("Identity", ["town"], ["t"])],
        [tensor("age", "FP32", ["batch", 1]), tensor("town", "BYTES", ["batch", 1])],
        [tensor("a", "FP32", ["batch", 1]), tensor("t", "BYTES", ["batch", 1])],
    )


def mean() -> onnx.ModelProto:
    """FP32 `input` [-1,2] → `mean` [], of all its rows."""
    return _model(
        [helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0)],
        [tensor("input", "FP32", ["batch", 2])],
        [tensor("mean", "FP32", [])],
    )


def two_outputs() -> onnx.ModelProto:
    """Like a classifier: FP32 `input` [-1,2] → `total` [-1,1], the sum of each row, and `same` [-1,2]."""
    return _model(
        [
            helper.make_node("MatMul", ["input", "ones"], ["total"]),
            helper.make_node("Identity", ["input"], ["same"]),
        ],
        [tensor("input", "FP32", ["batch", 2])],
        [tensor("total", "FP32", ["batch", 1]), tensor("same", "FP32", ["batch", 2])],
        [numpy_helper.from_array(np.ones((2, 1), np.float32), "ones")],
    )


def bfloat16_and_text() -> onnx.ModelProto:
    """Passes a BF16 and a BYTES tensor through."""
    return _model(
        [helper.make_node("Identity", ["a"], ["x"]), helper.make_node("Identity", ["b"], ["y"])],
        [tensor("a", "BF16", ["n"]), tensor("b", "BYTES", ["n"])],
        [tensor("x", "BF16", ["n"]), tensor("y", "BYTES", ["n"])],
    )


def slow(rounds: int = 4000) -> onnx.ModelProto:
    """FP32 [-1,4] → [-1,1] of zeros, behind `rounds` products of 512 x 512: 4000 of them take about 50 ms."""
    width = 512
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["value", "square"], ["next"]),
            helper.make_node("Identity", ["going"], ["goes_on"]),
        ],
        "round",
        [tensor("round", "INT64", []), tensor("going", "BOOL", []), tensor("value", "FP32", None)],
        [tensor("goes_on", "BOOL", []), tensor("next", "FP32", None)],
    )
    return _model(
        [
            helper.make_node("MatMul", ["input", "wide"], ["start"]),
            helper.make_node("Loop", ["rounds", "", "start"], ["end"], body=body),
            helper.make_node("ReduceMean", ["end"], ["output"], axes=[1], keepdims=1),
        ],
        [tensor("input", "FP32", ["batch", 4])],
        [tensor("output", "FP32", ["batch", 1])],
        [
            numpy_helper.from_array(np.zeros((4, width), np.float32), "wide"),
            numpy_helper.from_array(np.zeros((width, width), np.float32), "square"),
            numpy_helper.from_array(np.array(rounds, np.int64), "rounds"),
        ],
    )


def not_a_number() -> onnx.ModelProto:
    """FP32 [-1,2] → its logarithm: NaN below zero, -infinity at it."""
    return _model(
        [helper.make_node("Log", ["input"], ["output"])],
        [tensor("input", "FP32", ["batch", 2])],
        [tensor("output", "FP32", ["batch", 2])],
    )


def needs_even_rows(width: int = 3) -> onnx.ModelProto:
    """Reshapes its rows to pairs: one row, a warm-up's input, is not legal."""
    return _model(
        [helper.make_node("Reshape", ["input", "pairs"], ["output"])],
        [tensor("input", "FP32", ["batch", width])],
        [tensor("output", "FP32", ["half", 2, width])],
        [numpy_helper.from_array(np.array([-1, 2, width], np.int64), "pairs")],
    )


def sequence_input() -> onnx.ModelProto:
    """Takes a sequence of tensors, which the protocol has no datatype for."""
    return _model(
        [helper.make_node("SequenceLength", ["items"], ["length"])],
        [helper.make_tensor_sequence_value_info("items", TensorProto.FLOAT, None)],
        [tensor("length", "INT64", [])],
    )


def big_weights(size_mb: int = 100) -> onnx.ModelProto:
    """About `size_mb` megabytes of weights: FP32 [-1,1024] → [-1,columns]."""
    rng = np.random.default_rng(0)
    columns = size_mb * 1024 * 1024 // (1024 * 4)
    return mlp_of(rng.random((1024, columns), dtype=np.float32), np.zeros(columns, np.float32))


def save_with_external_data(model: onnx.ModelProto, directory: Path, location: str = "weights.bin") -> Path:
    """Writes the model with all its weights in the file `location` beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


def tensor(name: str, datatype: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], shape)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # onnx writes its newest by default, which older runtimes refuse
    return model
