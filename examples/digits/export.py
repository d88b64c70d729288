"""A network as an ONNX file that says the same on every version of onnx."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from examples.digits.data import CLASSES, PIXELS
from examples.digits.network import Network

# Opset 17 and its own IR version, not the newest: onnxruntimes from 2022 on load these files.
_OPSET = 17
_IR_VERSION = 8


def onnx_bytes(network: Network) -> bytes:
    """Input `image` FP32 [-1, 64]; outputs `label` INT64 [-1] and `probabilities` FP32 [-1, 10].

    The same network gives the same bytes.
    """
    graph = helper.make_graph(
        _nodes(network),
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", PIXELS])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
        ],
        [
            numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), f"{name}_{number}")
            for number, layer in enumerate(network)
            for name, values in zip(("weights", "bias"), layer, strict=True)
        ],
    )
    # Neither the date nor onnx's version is written: both would change the digest and nothing else.
    model: ModelProto = helper.make_model(
        graph,
        producer_name="turnout-quickstart",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _nodes(network: Network) -> list[NodeProto]:
    nodes: list[NodeProto] = []
    entering, last = "image", len(network) - 1
    for number in range(len(network)):
        leaving = "logits" if number == last else f"sum_{number}"
        nodes.append(helper.make_node("Gemm", [entering, f"weights_{number}", f"bias_{number}"], [leaving]))
        if number != last:
            entering = f"hidden_{number}"
            nodes.append(helper.make_node("Relu", [leaving], [entering]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    return nodes
