"""Tables as pandas writes them: columns of values, one row for each prediction."""

from __future__ import annotations

from collections import Counter
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
            ((repeated, _),) = Counter(shown).most_common(1)
            raise InferenceError(400, f"column {repeated[:140]!r} is given more than once")
        columns = zip(*rows, strict=True) if rows else iter([()] * width)
        by_name = zip(shown, columns, strict=True)
        return named_inputs({name: _column(specs.get(name), cells) for name, cells in by_name}, signature)

    return inputs


def _column(spec: TensorSpec | None, cells: tuple[Any, ...]) -> list[Any]:
    single = not cells or type(cells[0]) is not list
    if spec is not None and len(spec.shape) == 2 and spec.shape[1] == 1 and single:
        return [[cell] for cell in cells]
    return list(cells)
