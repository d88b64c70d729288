"""Tables as pandas writes them: columns of values, one row for each prediction."""

from __future__ import annotations

from typing import Any

from gateway.serving.engine import Signature, TensorSpec
from gateway.serving.tensors import InferenceError, InputTensor, Untyped
from gateway.wire.neighbours.values import named_inputs


def from_records(records: list[dict[str, Any]]) -> Untyped:
    """Rows as objects; the first one's order is the columns'. Raises `InferenceError` (400)."""
    names = list(records[0]) if records else []
    for index, record in enumerate(records):
        if record.keys() != records[0].keys():
            raise InferenceError(
                400, f"record {index} does not have the same columns as record 0: each needs them all"
            )
    return from_table(names, [[record[name] for name in names] for record in records])


def from_table(names: list[str] | None, rows: list[list[Any]]) -> Untyped:
    """Rows as lists, and the names of their columns, which a matrix does without.

    A model with one input takes all columns as its matrix, in their order, unless the only column has the
    input's name. Otherwise each column is the input of its name. A column of single values fills an input of
    shape [-1,1], too. Raises `InferenceError` (400).
    """
    width = len(names) if names is not None else len(rows[0]) if rows else 0
    for index, row in enumerate(rows):
        if len(row) != width:
            raise InferenceError(400, f"row {index} has {len(row)} values, but there are {width} columns")
    shown = [str(index) for index in range(width)] if names is None else names

    def inputs(signature: Signature) -> list[InputTensor]:
        specs = {spec.name: spec for spec in signature.inputs}
        if len(specs) == 1 and shown != list(specs):
            return named_inputs(dict.fromkeys(specs, rows), signature)
        if len(set(shown)) != width:
            repeated = next(name for name in shown if shown.count(name) > 1)
            raise InferenceError(400, f"column {repeated!r} is given more than once")
        columns = zip(*rows, strict=True) if rows else iter([()] * width)
        by_name = {
            name: _column(specs.get(name), values) for name, values in zip(shown, columns, strict=True)
        }
        return named_inputs(by_name, signature)

    return inputs


def _column(spec: TensorSpec | None, values: tuple[Any, ...]) -> list[Any]:
    if (
        spec is not None
        and len(spec.shape) == 2
        and spec.shape[1] == 1
        and not isinstance(_first(values), list)
    ):
        return [[value] for value in values]
    return list(values)


def _first(values: tuple[Any, ...]) -> Any:
    return values[0] if values else None
