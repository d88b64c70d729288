"""The protocol's datatypes, beside what numpy and ONNX call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Datatype:
    """One row of the table.

    `dtype` is little-endian, as on the wire. BF16 has no numpy type: its arrays are `uint16` that hold the
    bit patterns, the upper halves of float32 values. BYTES arrays are of dtype object and hold `bytes`.
    """

    name: str
    dtype: np.dtype[Any]
    size_bytes: int
    """Of one element; 0 for BYTES, whose elements differ."""
    onnx: str
    """As `NodeArg.type` of ONNX Runtime writes it."""
    triton: str
    """As a Triton model configuration writes it."""
    minimum: int = 0
    maximum: int = 0
    """The range of an integer type; both 0 for the others."""


def _integer(name: str, code: str, onnx: str) -> Datatype:
    info = np.iinfo(code)
    return Datatype(
        name=name,
        dtype=np.dtype(code),
        size_bytes=info.bits // 8,
        onnx=f"tensor({onnx})",
        triton=f"TYPE_{name}",
        minimum=int(info.min),
        maximum=int(info.max),
    )


def _other(name: str, code: str, onnx: str, triton: str = "") -> Datatype:
    dtype = np.dtype(code)
    return Datatype(
        name=name,
        dtype=dtype,
        size_bytes=0 if dtype.hasobject else dtype.itemsize,
        onnx=f"tensor({onnx})",
        triton=f"TYPE_{triton or name}",
    )


DATATYPES: Mapping[str, Datatype] = MappingProxyType(
    {
        row.name: row
        for row in (
            _other("BOOL", "?", "bool"),
            _integer("UINT8", "u1", "uint8"),
            _integer("UINT16", "<u2", "uint16"),
            _integer("UINT32", "<u4", "uint32"),
            _integer("UINT64", "<u8", "uint64"),
            _integer("INT8", "i1", "int8"),
            _integer("INT16", "<i2", "int16"),
            _integer("INT32", "<i4", "int32"),
            _integer("INT64", "<i8", "int64"),
            _other("FP16", "<f2", "float16"),
            _other("FP32", "<f4", "float"),
            _other("FP64", "<f8", "double"),
            _other("BYTES", "O", "string", "STRING"),
            _other("BF16", "<u2", "bfloat16"),
        )
    }
)
"""By the protocol's name."""

BY_ONNX: Mapping[str, Datatype] = MappingProxyType({row.onnx: row for row in DATATYPES.values()})

BINARY_ONLY = frozenset({"FP16", "BF16"})
"""What JSON cannot carry: the protocol has them as binary data only."""

RAW = "RAW"
"""The datatype of an input that came as a bare body, without name and shape: `Checker` supplies them."""
