"""Arrays in and out of ONNX Runtime, where they differ from the gateway's: strings and bfloat16."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnxruntime as ort

from gateway.serving.datatypes import DATATYPES
from gateway.serving.engine import Array, EngineError, Signature, TensorSpec
from gateway.serving.tensors import InferenceError

_ONNX_BFLOAT16 = 16
"""TensorProto.BFLOAT16."""
_WARM_ELEMENTS = 2**26


def zeros(spec: TensorSpec, size: int) -> Array:
    """An input of zeros: its first dynamic dimension, mostly the batch, is 1, the further ones are `size`.

    Raises `EngineError` where that is too much to allocate for a trial.
    """
    first = spec.shape.index(-1) if -1 in spec.shape else -1
    shape = tuple(
        fixed if fixed >= 0 else 1 if axis == first else size for axis, fixed in enumerate(spec.shape)
    )
    if prod(shape) > _WARM_ELEMENTS:
        raise EngineError(f"input {spec.name!r} of shape {list(shape)} is too large for a warm-up")
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, DATATYPES[spec.datatype].dtype)


def same(one: Array, other: Array) -> bool:
    """Equal to the bit, NaNs too."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()


def bytes_to_str(name: str, array: Array) -> Array:
    """BYTES as ONNX Runtime takes strings. Raises `InferenceError` (400)."""
    texts = np.empty(array.shape, dtype=object)
    try:
        texts.reshape(-1)[:] = [item.decode() for item in array.flat]
    except UnicodeDecodeError as error:
        raise InferenceError(
            400, f"input {name!r} has an element that is not UTF-8, which this model's strings are: {error}"
        ) from None
    return texts


def str_to_bytes(array: Array) -> Array:
    raws = np.empty(array.shape, dtype=object)
    raws.reshape(-1)[:] = [item.encode() for item in array.flat]
    return raws


def run_with_bfloat16(
    session: ort.InferenceSession,
    run_options: ort.RunOptions,
    signature: Signature,
    outputs: Sequence[str],
    inputs: Mapping[str, Array],
) -> list[Array]:
    """A run with tensors that numpy has no type for: they pass as `OrtValue`, with uint16 on this side."""
    datatypes = {spec.name: spec.datatype for spec in signature.inputs}
    feed = {name: _ort_value(array, datatypes[name]) for name, array in inputs.items()}
    return [_from_ort_value(value) for value in session.run_with_ort_values(outputs, feed, run_options)]


def _ort_value(array: Array, datatype: str) -> Any:
    if datatype == "BF16":
        # The value borrows the memory of a contiguous array.
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _ONNX_BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_ort_value(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()  # type: ignore[no-any-return]
    if value.device_name() != "cpu":
        raise EngineError(f"a BF16 output on {value.device_name()} cannot be read: cast it in the model")
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))
    return np.frombuffer(raw, "<u2").reshape(shape)
