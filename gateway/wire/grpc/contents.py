"""Typed contents: a tensor's elements in the one repeated field that is its datatype's."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from gateway.serving.datatypes import BINARY_ONLY
from gateway.serving.engine import Array
from gateway.serving.tensors import InferenceError
from gateway.wire.grpc.inference_pb2 import InferTensorContents
from gateway.wire.oip_arrays import array_from_numbers, known_datatype, object_array, shaped, wrong_count

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool_contents",
        "INT8": "int_contents",
        "INT16": "int_contents",
        "INT32": "int_contents",
        "INT64": "int64_contents",
        "UINT8": "uint_contents",
        "UINT16": "uint_contents",
        "UINT32": "uint_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        "BYTES": "bytes_contents",
    }
)
"""Datatype → field. FP16 and BF16 have none: they are raw bytes only."""


def array_from_contents(name: str, datatype: str, shape: list[int], contents: InferTensorContents) -> Array:
    """Raises `InferenceError` (400) where the field, the count or a number does not fit the datatype."""
    known_datatype(name, datatype)
    if datatype in BINARY_ONLY:
        raise InferenceError(
            400, f"input {name!r} is {datatype}, which has no typed contents: send it as raw_input_contents"
        )
    field = FIELDS[datatype]
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InferenceError(
                400,
                f"input {name!r} is {datatype}, but it has {other.name}: its elements belong into {field}",
            )
    elements = list(getattr(contents, field))
    if datatype not in ("BOOL", "BYTES"):
        return array_from_numbers(name, datatype, shape, elements)
    if len(elements) != prod(shape):
        raise wrong_count(name, shape, len(elements))
    array = object_array(elements) if datatype == "BYTES" else np.array(elements, dtype="?")
    return shaped(name, array, shape)


def contents_of(datatype: str, array: Array) -> InferTensorContents:
    """The elements of an array whose datatype has a field."""
    field: dict[str, Any] = {FIELDS[datatype]: array.reshape(-1).tolist()}
    return InferTensorContents(**field)
