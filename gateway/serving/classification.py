"""The classification extension: an output's highest entries instead of the output."""

from __future__ import annotations

from math import prod

import numpy as np

from gateway.serving.engine import Array
from gateway.serving.tensors import InferenceError, OutputTensor


def classify(output: OutputTensor, count: int, *, batched: bool) -> OutputTensor:
    """The `count` highest entries of `output`, the highest first, as BYTES `value:index`.

    With `batched` (`Signature.batchable`) each row of the first dimension is ranked for itself and the shape
    is [rows, n], else the whole tensor is one row and the shape is [n]; n is `count`, or all the entries
    where there are fewer. Floats have six decimals, as in Triton; of equal entries the first index is first.
    Raises `InferenceError` (400) for datatypes that have no order.
    """
    if output.datatype in ("BYTES", "BF16", "BOOL"):
        raise InferenceError(400, f"output {output.name!r} is {output.datatype}, which cannot be classified")
    array = output.array
    rows = array.shape[0] if batched and array.ndim else 1
    entries = prod(array.shape[1:]) if batched and array.ndim else array.size
    top = min(count, entries)
    labels = np.empty((rows, top), dtype=object)
    for row, values in enumerate(array.reshape(rows, entries)):
        labels[row] = _labels(values, top)
    return OutputTensor(
        name=output.name,
        datatype="BYTES",
        array=labels if batched and array.ndim else labels.reshape(top),
        binary=output.binary,
    )


def _labels(values: Array, top: int) -> list[bytes]:
    # NaN sorts behind everything, and a stable sort of the reversed order keeps the first of equals first.
    order = (len(values) - 1 - np.argsort(values[::-1], kind="stable"))[::-1]
    if values.dtype.kind == "f":
        order = np.concatenate((order[~np.isnan(values[order])], order[np.isnan(values[order])]))
        return [f"{float(values[index]):f}:{index}".encode() for index in order[:top]]
    return [f"{int(values[index])}:{index}".encode() for index in order[:top]]
