"""The binary tensor data extension: tensors as little-endian bytes behind the JSON, in its order."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod

import numpy as np

from gateway.serving.datatypes import DATATYPES, RAW
from gateway.serving.engine import Array
from gateway.serving.tensors import InferenceError, InferRequest, InputTensor
from gateway.wire.oip_arrays import known_datatype, object_array, shaped, shown_shape

Buffer = bytes | memoryview

_LENGTH = struct.Struct("<I")


class BinaryReader:
    """Hands out the bytes behind the JSON, and knows whether all of them were claimed."""

    def __init__(self, body: Buffer, offset: int) -> None:
        self._body = body
        self._offset = offset

    def read(self, name: str, datatype: str, shape: Sequence[int], size_bytes: int) -> Array:
        """The next tensor: read-only and without a copy, where the bytes lie aligned for their type.

        Raises `InferenceError` (400) where the size does not match the shape, or passes the body's end.
        """
        offset, end = self._offset, self._offset + size_bytes
        if size_bytes < 0 or end > len(self._body):
            raise InferenceError(
                400,
                f"input {name!r} has a binary_data_size of {size_bytes} bytes, "
                f"but {len(self._body) - offset} bytes of binary data are left in the body",
            )
        self._offset = end
        return decode_tensor(
            name, datatype, shape, memoryview(self._body)[offset:end], "its binary_data_size is"
        )

    def finish(self) -> None:
        """Raises `InferenceError` (400) where bytes are left over."""
        left = len(self._body) - self._offset
        if left:
            raise InferenceError(
                400,
                f"{left} bytes are left over behind the inputs: their binary_data_size is too small",
            )


def decode_tensor(name: str, datatype: str, shape: Sequence[int], raw: Buffer, given: str) -> Array:
    """The tensor that `raw` is: read-only and without a copy, where the bytes lie aligned for their type.

    `given` says in an error what the size was given by. Raises `InferenceError` (400).
    """
    row = known_datatype(name, datatype)
    if row.size_bytes == 0:
        return decode_bytes_tensor(name, shape, raw)
    count = prod(shape)
    if count * row.size_bytes != len(raw):
        raise InferenceError(
            400,
            f"input {name!r} of shape {shown_shape(shape)} and data-type {datatype} takes "
            f"{count * row.size_bytes} bytes, but {given} {len(raw)}",
        )
    array: Array = np.frombuffer(raw, row.dtype, count)
    if datatype == "BOOL":
        check_bools(name, array)
    # ONNX Runtime reads the buffer in place, and its kernels may assume the alignment of the type.
    return shaped(name, array if array.flags.aligned else array.copy(), shape)


def check_bools(name: str, array: Array) -> None:
    """A byte other than 0 and 1 behind a bool makes numpy and compiled kernels disagree on its value."""
    if array.size and array.view("u1").max() > 1:
        raise InferenceError(400, f"input {name!r} is BOOL, but its data has bytes other than 0 and 1")


def decode_bytes_tensor(name: str, shape: Sequence[int], raw: Buffer) -> Array:
    """BYTES elements, each behind its length of four bytes. Raises `InferenceError` (400)."""
    count = prod(shape)
    if count * _LENGTH.size > len(raw):
        raise InferenceError(
            400,
            f"input {name!r} of shape {shown_shape(shape)} takes {count} BYTES elements, "
            f"more than its {len(raw)} bytes can hold",
        )
    view = bytes(raw)
    elements: list[bytes] = []
    offset = 0
    for index in range(count):
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(view, offset)[0] if start <= len(view) else start
        if offset > len(view):
            raise InferenceError(
                400,
                f"element {index} of input {name!r} passes the end of its {len(view)} bytes",
            )
        elements.append(view[start:offset])
    if offset != len(view):
        raise InferenceError(
            400, f"input {name!r} has {len(view) - offset} bytes left over behind its {count} BYTES elements"
        )
    return shaped(name, object_array(elements), shape)


def encode_bytes_tensor(array: Array) -> bytes:
    """The elements of a BYTES array in row-major order, each behind its length."""
    parts: list[bytes] = []
    for element in array.reshape(-1).tolist():
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def encode_tensor(datatype: str, array: Array) -> Buffer:
    """The array's bytes as they travel; a view of it where that is possible."""
    row = DATATYPES[datatype]
    if row.size_bytes == 0:
        return encode_bytes_tensor(array)
    flat = np.ascontiguousarray(array, row.dtype).reshape(-1)
    return flat.view("u1").data


def raw_request(body: Buffer) -> InferRequest:
    """A request of header length 0: the body is the model's only input, and `Checker` gives it a name."""
    tensor = InputTensor(name="", datatype=RAW, array=np.frombuffer(body, "u1"))
    return InferRequest(inputs=[tensor], binary_default=True)
