"""JSON `data` to arrays and back, without ever changing a value: what does not fit is refused."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import chain
from math import prod
from types import GenericAlias
from typing import Any

import msgspec
import numpy as np

from gateway.serving.datatypes import BINARY_ONLY, DATATYPES, Datatype
from gateway.serving.engine import Array
from gateway.serving.tensors import InferenceError

_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
"""For `struct`, which checks each number's range where numpy would wrap, truncate or round to infinity, and
takes half numpy's time to convert a list (3.8 against 7.4 µs for 256 floats)."""
PLAIN = {name: (code, DATATYPES[name].dtype) for name, code in _CODES.items()}
"""Datatypes whose elements are numbers in JSON as well."""

_Number = int | float
Numbers = list[_Number | list[_Number | list[_Number | list[_Number]]]]
"""Flat, or nested up to four deep: msgspec decodes all of them in one pass, as fast as a flat list alone."""

_SHOWN_CHARS = 40
_TWO_BRACKETS = re.compile(rb"\s*\[\s*\[")


def known_datatype(name: str, datatype: str) -> Datatype:
    """Raises `InferenceError` (400) where the protocol has no such datatype."""
    known = DATATYPES.get(datatype)
    if known is None:
        raise InferenceError(
            400,
            f"input {name!r} has unknown data-type {datatype[:_SHOWN_CHARS]!r}: use {', '.join(DATATYPES)}",
        )
    return known


def array_from_numbers(name: str, datatype: str, shape: list[int], data: Numbers) -> Array:
    """Numbers, flat or nested as the shape says. msgspec has checked that no bools or strings are among them.

    Raises `InferenceError` (400) where the count does not match the shape, or a number the datatype.
    """
    if data and type(data[0]) is list:
        data = flatten(name, shape, data)
    code = _CODES.get(datatype)
    if code is None:
        return _array_of_no_numbers(name, datatype, shape, data)
    # math.prod's integers do not overflow, so no product of dimensions passes for a small one.
    if len(data) != prod(shape):
        raise wrong_count(name, shape, len(data))
    row = DATATYPES[datatype]
    try:
        return np.ndarray(shape, row.dtype, _packer(len(data), code)(*data))
    except (struct.error, OverflowError):
        raise _does_not_fit(name, row, data) from None
    except ValueError:
        raise _too_large(name, shape) from None


def array_from_json(name: str, datatype: str, shape: list[int], data: bytes | memoryview) -> Array:
    """The text of `data`, of any datatype, flat or nested as the shape says.

    Raises `InferenceError` (400), and what msgspec raises for a text of other types.
    """
    row = known_datatype(name, datatype)
    if datatype in BINARY_ONLY:
        raise binary_only("input", name, datatype)
    nested = _is_nested(data) and len(shape) > 1
    elements = _decoder(_leaf(row), len(shape) if nested else 1).decode(data)
    if nested:
        elements = flatten(name, shape, elements)
    if datatype in _CODES:
        return array_from_numbers(name, datatype, shape, elements)
    if len(elements) != prod(shape):
        raise wrong_count(name, shape, len(elements))
    if datatype == "BYTES":
        return shaped(name, object_array([text.encode() for text in elements]), shape)
    return shaped(name, np.array(elements, row.dtype), shape)


@lru_cache(1024)
def _packer(count: int, code: str) -> Callable[..., bytes]:
    return struct.Struct(f"<{count}{code}").pack


def object_array(elements: Sequence[bytes]) -> Array:
    """Of one dimension, without numpy's own idea of what a sequence of bytes is."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    """Raises `InferenceError` (400) for an empty tensor with dimensions that numpy cannot hold."""
    try:
        return array.reshape(tuple(shape))
    except ValueError:
        raise _too_large(name, shape) from None


def shown_shape(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def json_values(name: str, datatype: str, array: Array) -> list[Any]:
    """An output's elements, flat and row-major, as JSON can carry them; for floats see `reject_not_finite`.

    FP32 keeps the digits of the double that equals it (0.10000000149011612), as Triton and KServe send it:
    exact, and no slower to write. Raises `InferenceError` (400) where only binary data can carry them.
    """
    if datatype in BINARY_ONLY:
        raise binary_only("output", name, datatype)
    values: list[Any] = array.reshape(-1).tolist()
    if datatype != "BYTES":
        return values
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        raise InferenceError(
            400,
            f"output {name!r} has an element that is not UTF-8, which JSON cannot carry: "
            "request it with the parameter binary_data true",
        ) from None


def reject_not_finite(name: str, datatype: str, array: Array) -> None:
    """JSON has no NaN. A null in its place would reach clients as missing data, so the model's failure shows.

    Raises `InferenceError` (500): a canary that computes NaN must count as one that fails.
    """
    if datatype in ("FP32", "FP64") and not np.isfinite(array).all():
        raise InferenceError(
            500,
            f"output {name!r} has values that are not finite (NaN or infinity), which JSON cannot carry: "
            "request it with the parameter binary_data true to see them",
        )


def binary_only(kind: str, name: str, datatype: str) -> InferenceError:
    how = "send it as" if kind == "input" else "request it with the parameter binary_data true, as"
    return InferenceError(400, f"{kind} {name!r} is {datatype}, which JSON cannot carry: {how} binary data")


def _array_of_no_numbers(name: str, datatype: str, shape: list[int], data: Numbers) -> Array:
    row = known_datatype(name, datatype)
    if datatype in BINARY_ONLY:
        raise binary_only("input", name, datatype)
    if data:
        wanted = "true and false" if datatype == "BOOL" else "strings"
        raise InferenceError(400, f"input {name!r} is {datatype}, but its data has numbers: use {wanted}")
    if prod(shape):
        raise wrong_count(name, shape, 0)
    return shaped(name, np.empty(0, row.dtype), shape)


def _too_large(name: str, shape: Sequence[int]) -> InferenceError:
    return InferenceError(400, f"input {name!r} has shape {shown_shape(shape)}, which is too large")


def wrong_count(name: str, shape: list[int], got: int) -> InferenceError:
    return InferenceError(
        400,
        f"input {name!r} has shape {shown_shape(shape)}, which takes {prod(shape)} elements, "
        f"but its data has {got}",
    )


def _does_not_fit(name: str, row: Datatype, data: Numbers) -> InferenceError:
    """Names the first number that the datatype has no room for."""
    for index, value in enumerate(data):
        try:
            struct.pack(f"<{_CODES[row.name]}", value)
        except (struct.error, OverflowError):
            if isinstance(value, list):
                return InferenceError(400, f"element {index} of input {name!r} is a list, not a number")
            why = "is no integer" if row.maximum and isinstance(value, float) else "is out of range"
            shown = str(value)[:_SHOWN_CHARS]
            return InferenceError(400, f"element {index} of input {name!r}, {shown}, {why} for {row.name}")
    return InferenceError(400, f"the data of input {name!r} does not fit {row.name}")


def _is_nested(data: bytes | memoryview) -> bool:
    return _TWO_BRACKETS.match(data) is not None


def _leaf(row: Datatype) -> Any:
    if row.name == "BOOL":
        return bool
    if row.name == "BYTES":
        return str
    return int if row.maximum else int | float


@cache
def _decoder(leaf: Any, depth: int) -> msgspec.json.Decoder[Any]:
    """Built on first use: a few leaves times at most 32 depths."""
    nested = leaf
    for _ in range(depth):
        nested = GenericAlias(list, (nested,))
    return msgspec.json.Decoder(nested)


def flatten(name: str, shape: list[int], nested: list[Any]) -> list[Any]:
    """The elements, row-major. Raises `InferenceError` (400) where the lists are not as long as the shape says."""
    level: list[Any] = [nested]
    for axis, size in enumerate(shape):
        if any(type(row) is not list or len(row) != size for row in level):
            raise InferenceError(
                400,
                f"the nested data of input {name!r} does not have its shape {shown_shape(shape)}: "
                f"dimension {axis} is not {size} everywhere",
            )
        level = list(chain.from_iterable(level))
    return level
