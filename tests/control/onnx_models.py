"""Small ONNX models, as files."""

from __future__ import annotations

import hashlib

import onnx
from onnx import TensorProto, helper


def tiny(*locations: str, inside: str = "graph") -> bytes:
    """y = x + w, where each location names a file that holds a tensor of `inside` (graph, node, branch)."""
    tensors = [_external(f"w{n}", location) for n, location in enumerate(locations)]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    initializers = tensors if inside == "graph" else []
    if inside == "node":
        nodes += [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
    if inside == "branch":
        branch = helper.make_graph([], "branch", [], [_float("z")], initializer=tensors)
        nodes.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    graph = helper.make_graph(nodes, "tiny", [_float("x")], [_float("y")], initializer=initializers)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that look like weights: the same for the same seed."""
    return hashlib.shake_256(seed.to_bytes(4, "big")).digest(size_bytes)


def _external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _float(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
