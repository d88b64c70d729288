"""Values without datatype or shape: the signature of the picked version tells the one, their nesting the other."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from gateway.serving.datatypes import BINARY_ONLY, DATATYPES
from gateway.serving.engine import Array, Signature, TensorSpec
from gateway.serving.tensors import InferenceError, InputTensor, OutputTensor, Untyped
from gateway.wire.oip_arrays import (
    array_from_numbers,
    binary_only,
    flatten,
    json_values,
    object_array,
    reject_not_finite,
    shaped,
)
from gateway.wire.oip_binary import Buffer
from gateway.wire.oip_json import INPUTS, why_no_number

RANK = 32
"""Dimensions that a tensor may have, as on `/v2`."""
_ABSENT = np.empty(0)
_KINDS = {bool: "a boolean", str: "a string", list: "a list", dict: "an object", type(None): "null"}
_encode = msgspec.json.Encoder().encode
_Text = Callable[[str, Array], list[Any]]


def decode_json(body: Buffer, decode: Callable[[Buffer], Any]) -> Any:
    """Raises `InferenceError` (400) for what is no JSON, or not of the decoder's type."""
    if not len(body):
        raise InferenceError(400, "the body is empty: a request is a JSON object")
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InferenceError(400, f"the request is not valid: {error}{why_no_number(body)}") from None
    except RecursionError:
        raise InferenceError(400, "the request is not valid: it is nested too deeply") from None


def from_rows(rows: list[Any]) -> Untyped:
    """One value or one object of named values for each row: `[1, 2]`, `[[1, 2], [3, 4]]`, `[{"a": 1, "b": 2}]`.

    Raises `InferenceError` (400) where the objects have not all the same names.
    """
    if not rows or not _is_object(rows[0]):
        return from_columns(rows)
    names = rows[0].keys()
    for index, row in enumerate(rows):
        if type(row) is not dict or row.keys() != names:
            raise InferenceError(
                400, f"row {index} does not have the same names as row 0: each needs them all"
            )
    return from_columns({name: [row[name] for row in rows] for name in names})


def from_columns(values: Any) -> Untyped:
    """The whole value of the model's only input, or an object of all inputs by name."""

    def inputs(signature: Signature) -> list[InputTensor]:
        if _is_object(values):
            return named_inputs(values, signature)
        if len(signature.inputs) != 1:
            names = ", ".join(repr(spec.name) for spec in signature.inputs)
            raise InferenceError(
                400, f"the model has {len(signature.inputs)} inputs ({names}): send objects that name them"
            )
        return named_inputs({signature.inputs[0].name: values}, signature)

    return inputs


def named_inputs(values: Mapping[str, Any], signature: Signature) -> list[InputTensor]:
    """What the signature does not have comes without a value, for `Checker` to refuse by its name.

    Raises `InferenceError` (400).
    """
    if len(values) > INPUTS:
        raise InferenceError(400, f"{len(values)} inputs are given, the limit is {INPUTS}")
    specs = {spec.name: spec for spec in signature.inputs}
    return [
        InputTensor(name=name, datatype=specs[name].datatype, array=_array(specs[name], value))
        if name in specs
        else InputTensor(name=name, datatype="", array=_ABSENT)
        for name, value in values.items()
    ]


def nested(output: OutputTensor, text: _Text) -> Any:
    """The output as nested lists; `text` makes JSON values of BYTES."""
    array = output.array
    if output.datatype == "BYTES":
        values = np.empty(array.size, dtype=object)
        values[:] = text(output.name, array)
        array = values.reshape(array.shape)
    elif output.datatype in BINARY_ONLY:
        raise binary_only("output", output.name, output.datatype)
    return array.tolist()


def plain_text(name: str, array: Array) -> list[Any]:
    """Strings. Raises `InferenceError` (400) for BYTES that are not UTF-8."""
    return json_values(name, "BYTES", array)


def row_count(outputs: Sequence[OutputTensor], remedy: str) -> int:
    """The first dimension, where all outputs share it. Raises `InferenceError` (400), which ends in `remedy`."""
    counts = {output.array.shape[:1] for output in outputs}
    if len(counts) != 1 or counts == {()}:
        shapes = ", ".join(f"{output.name!r} {list(output.array.shape)}" for output in outputs)
        raise InferenceError(
            400, f"the outputs have not one row for each row of the request ({shapes}): {remedy}"
        )
    return int(counts.pop()[0])


def encode_answer(document: Any, outputs: Sequence[OutputTensor]) -> bytes:
    """The JSON of `document`, which holds the values of `outputs`.

    Raises `InferenceError` (500) where they are not finite.
    """
    body = _encode(document)
    if b"null" in body:  # as msgspec writes NaN and infinity: see `encode_infer`
        for output in outputs:
            reject_not_finite(output.name, output.datatype, output.array)
    return body


def _is_object(value: Any) -> bool:
    return type(value) is dict and not _is_base64(value)


def _is_base64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and type(value.get("b64")) is str


def _array(spec: TensorSpec, value: Any) -> Array:
    if spec.datatype in BINARY_ONLY:
        raise binary_only("input", spec.name, spec.datatype)
    shape = _nesting(spec.name, value)
    elements = flatten(spec.name, shape, value) if shape else [value]
    if spec.datatype == "BYTES":
        return shaped(spec.name, object_array(_all_bytes(spec.name, elements)), shape)
    # numpy and struct take True for 1.
    allowed: set[type] = {bool} if spec.datatype == "BOOL" else {int, float}
    if not allowed.issuperset(map(type, elements)):
        raise _wrong_kind(spec, elements, allowed)
    if spec.datatype == "BOOL":
        return shaped(spec.name, np.array(elements, DATATYPES["BOOL"].dtype), shape)
    return array_from_numbers(spec.name, spec.datatype, shape, elements)


def _nesting(name: str, value: Any) -> list[int]:
    """The shape, by the first element of each list; `flatten` finds those that are not like them."""
    shape: list[int] = []
    while type(value) is list:
        if len(shape) == RANK:
            raise InferenceError(400, f"input {name!r} is nested more than {RANK} deep")
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _all_bytes(name: str, elements: list[Any]) -> list[bytes]:
    found = []
    for index, element in enumerate(elements):
        if type(element) is str:
            found.append(element.encode())
        elif type(element) is dict and _is_base64(element):
            found.append(_from_base64(name, index, element["b64"]))
        else:
            raise InferenceError(
                400,
                f"element {index} of input {name!r}, {_kind(element)}, is no BYTES: "
                'use a string, or {"b64": "…"} for what is not UTF-8',
            )
    return found


def _from_base64(name: str, index: int, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InferenceError(400, f"element {index} of input {name!r} is not valid base64") from None


def _wrong_kind(spec: TensorSpec, elements: list[Any], allowed: set[type]) -> InferenceError:
    index = next(index for index, element in enumerate(elements) if type(element) not in allowed)
    return InferenceError(
        400, f"element {index} of input {spec.name!r}, {_kind(elements[index])}, is no {spec.datatype}"
    )


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
