"""The classification extension: values with their indices, the highest first."""

import numpy as np
import pytest

from gateway.serving.classification import classify
from gateway.serving.tensors import InferenceError, OutputTensor


def output(values: object, datatype: str = "FP32", dtype: str = "f4") -> OutputTensor:
    return OutputTensor(name="y", datatype=datatype, array=np.array(values, dtype), binary=True)


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([[0.1, 0.7, 0.2]], 2, [[b"0.700000:1", b"0.200000:2"]]),
        ([[0.1, 0.9], [0.8, 0.2]], 1, [[b"0.900000:1"], [b"0.800000:0"]]),
        ([[0.5, 0.5, 0.5]], 2, [[b"0.500000:0", b"0.500000:1"]]),  # equal: the first index is first
        ([[np.nan, 1.0, np.inf]], 3, [[b"inf:2", b"1.000000:1", b"nan:0"]]),
        ([[1.0, 2.0]], 9, [[b"2.000000:1", b"1.000000:0"]]),  # more than there are
        ([[[1.0, 2.0], [4.0, 3.0]]], 2, [[b"4.000000:2", b"3.000000:3"]]),  # indices into the flat row
    ],
)
def test_rows_of_a_batch(values: object, count: int, expected: object) -> None:
    result = classify(output(values), count, batched=True)
    assert result.array.tolist() == expected
    assert (result.datatype, result.name, result.binary) == ("BYTES", "y", True)


def test_a_model_without_a_batch_is_one_row() -> None:
    result = classify(output([[1.0, 2.0], [4.0, 3.0]]), 1, batched=False)
    assert result.array.tolist() == [b"4.000000:2"]


def test_integers_have_no_decimals() -> None:
    result = classify(output([[3, 200, 7]], "UINT8", "u1"), 2, batched=True)
    assert result.array.tolist() == [[b"200:1", b"7:2"]]


def test_an_empty_batch() -> None:
    assert classify(output(np.zeros((0, 3))), 2, batched=True).array.shape == (0, 2)


@pytest.mark.parametrize("datatype", ["BYTES", "BF16", "BOOL"])
def test_what_has_no_order_is_refused(datatype: str) -> None:
    with pytest.raises(InferenceError, match=f"output 'y' is {datatype}") as raised:
        classify(output([1], datatype), 1, batched=True)
    assert raised.value.status == 400
