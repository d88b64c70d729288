"""Requests against signatures: a table of what is wrong and the text that clients of other servers know."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.serving.datatypes import DATATYPES, RAW
from gateway.serving.engine import Signature, TensorSpec
from gateway.serving.tensors import InferenceError, InferRequest, InputTensor, RequestedOutput
from gateway.serving.validation import Checker


def spec(name: str, datatype: str, *dimensions: int | str) -> TensorSpec:
    return TensorSpec(
        name=name,
        datatype=datatype,
        shape=tuple(size if isinstance(size, int) else -1 for size in dimensions),
        dimensions=tuple(size if isinstance(size, str) else "" for size in dimensions),
    )


ONE = Signature(inputs=(spec("x", "FP32", "b", 4),), outputs=(spec("y", "FP32", "b", 2),))
TWO = Signature(
    inputs=(spec("ids", "INT64", "b", "tokens"), spec("mask", "INT64", "b", "tokens")),
    outputs=(spec("y", "FP32", "b", 2), spec("z", "FP32", "b", 2)),
)
SQUARE = Signature(inputs=(spec("x", "FP32", "n", "n"),), outputs=(spec("y", "FP32", "n", "n"),))
SCALAR = Signature(inputs=(spec("x", "INT64"),), outputs=(spec("y", "INT64"),))


def tensor(name: str, *shape: int, datatype: str = "FP32") -> InputTensor:
    return InputTensor(name=name, datatype=datatype, array=np.zeros(shape, DATATYPES[datatype].dtype))


def ints(name: str, *shape: int) -> InputTensor:
    return tensor(name, *shape, datatype="INT64")


def request(*inputs: InputTensor, outputs: tuple[str, ...] = ()) -> InferRequest:
    return InferRequest(inputs=list(inputs), outputs=[RequestedOutput(name=name) for name in outputs])


REFUSED = [
    (ONE, request(tensor("q", 1, 4)), "unexpected inference input 'q' for model 'm': its inputs are 'x'"),
    (ONE, request(), "expected 1 inputs but got 0 inputs for model 'm'. Missing required input(s) 'x'"),
    (TWO, request(ints("ids", 1, 3)), "expected 2 inputs but got 1 inputs for model 'm'. Missing"),
    (
        ONE,
        request(tensor("x", 1, 4), tensor("q", 1)),
        "expected 1 inputs but got 2 inputs for model 'm'. Unex",
    ),
    (ONE, request(tensor("x", 1, 4), tensor("x", 1, 4)), "input 'x' for model 'm' is given more than once"),
    (TWO, request(ints("ids", 1, 3), ints("ids", 1, 3)), "input 'ids' for model 'm' is given more than once"),
    (
        ONE,
        request(tensor("x", 1, 4, datatype="FP64")),
        "inference input 'x' data-type is 'FP64', but model 'm' expects 'FP32'",
    ),
    (
        ONE,
        request(tensor("x", 1, 5)),
        "unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [1,5]",
    ),
    (ONE, request(tensor("x", 4)), "unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [4]"),
    (ONE, request(tensor("x")), "unexpected shape for input 'x' for model 'm'. Expected [-1,4], got []"),
    (SCALAR, request(ints("x", 1)), "unexpected shape for input 'x' for model 'm'. Expected [], got [1]"),
    (
        TWO,
        request(ints("ids", 1, 3), ints("mask", 1, 4)),
        "unexpected shape for input 'mask' for model 'm': its dimension 'tokens' is 4, "
        "but that of input 'ids' is 3",
    ),
    (SQUARE, request(tensor("x", 2, 3)), "its dimension 'n' is 3, but that of input 'x' is 2"),
    (
        ONE,
        request(tensor("x", 1, 4), outputs=("q",)),
        "unexpected inference output 'q' for model 'm': its outputs are 'y'",
    ),
    (
        ONE,
        request(tensor("x", 1, 4), outputs=("y", "y")),
        "inference output 'y' is requested more than once",
    ),
]


@pytest.mark.parametrize(("signature", "sent", "text"), REFUSED, ids=[text[:60] for _, _, text in REFUSED])
def test_what_does_not_fit_is_a_400_that_names_it(
    signature: Signature, sent: InferRequest, text: str
) -> None:
    with pytest.raises(InferenceError) as raised:
        Checker(signature).check("m", sent)
    assert raised.value.status == 400
    assert text in str(raised.value)


def test_all_outputs_where_none_is_named() -> None:
    arrays, outputs = Checker(TWO).check("m", request(ints("ids", 2, 3), ints("mask", 2, 3)))
    assert outputs == ("y", "z") and list(arrays) == ["ids", "mask"]


def test_outputs_in_the_order_of_the_request() -> None:
    sent = request(ints("ids", 2, 3), ints("mask", 2, 3), outputs=("z", "y"))
    assert Checker(TWO).check("m", sent)[1] == ("z", "y")


def test_inputs_in_the_order_of_the_model() -> None:
    arrays, _ = Checker(TWO).check("m", request(ints("mask", 2, 3), ints("ids", 2, 3)))
    assert list(arrays) == ["ids", "mask"]


def test_a_model_without_inputs() -> None:
    signature = Signature(inputs=(), outputs=(spec("y", "FP32", 1),))
    assert Checker(signature).check("m", request()) == ({}, ("y",))


def test_thousands_of_wrong_names_make_a_short_error() -> None:
    sent = request(tensor("x", 1, 4), *(tensor(f"input-{n}", 1) for n in range(5000)))
    with pytest.raises(InferenceError) as raised:
        Checker(ONE).check("m", sent)
    assert len(str(raised.value)) < 1000


def raw(body: bytes) -> InferRequest:
    return InferRequest(inputs=[InputTensor(name="", datatype=RAW, array=np.frombuffer(body, "u1"))])


@pytest.mark.parametrize(
    ("inputs", "size", "shape"),
    [
        (spec("x", "FP32", "b", 4), 16, (1, 4)),
        (spec("x", "INT16", "b", "n"), 6, (1, 3)),
        (spec("x", "UINT8", "b", 2, "n"), 6, (1, 2, 3)),
        (spec("x", "BYTES", "b", 1), 7, (1, 1)),
        (spec("x", "BYTES", "b"), 0, (1,)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_raw_body_is_one_row(inputs: TensorSpec, size: int, shape: tuple[int, ...]) -> None:
    signature = Signature(inputs=(inputs,), outputs=(spec("y", "FP32", "b"),))
    arrays, _ = Checker(signature).check("m", raw(bytes(range(size))))
    assert arrays["x"].shape == shape
    got = arrays["x"].flat[0] if inputs.datatype == "BYTES" else arrays["x"].tobytes()
    assert got == bytes(range(size))


@pytest.mark.parametrize(
    ("signature", "size", "text"),
    [
        (ONE, 15, "15 bytes, which is no multiple of the 4"),
        (ONE, 32, "8 elements of FP32 do not fill shape [-1,4]"),
        (ONE, 0, "0 elements of FP32 do not fill"),
        (TWO, 8, "Raw binary requests need a model with exactly one input"),
        (SQUARE, 16, "at most one"),
        (
            Signature(inputs=(spec("x", "INT8", "", "", 0),), outputs=(spec("y", "INT8", 1),)),
            4,
            "one dynamic dimension",
        ),
        (
            Signature(inputs=(spec("x", "INT8", "n", 0),), outputs=(spec("y", "INT8", 1),)),
            4,
            "do not fill shape",
        ),
    ],
    ids=["bytes", "two-rows", "nothing", "two-inputs", "square", "two-dynamic", "zero-sized"],
)
def test_raw_bodies_that_do_not_fit(signature: Signature, size: int, text: str) -> None:
    with pytest.raises(InferenceError) as raised:
        Checker(signature).check("m", raw(bytes(size)))
    if signature is not SQUARE:
        assert text in str(raised.value)
    assert raised.value.status == 400


def test_untyped_inputs_are_made_for_the_signature_and_checked_like_others() -> None:
    asked: list[Signature] = []

    def untyped(signature: Signature) -> list[InputTensor]:
        asked.append(signature)
        return [tensor("x", 2, 4)]

    arrays, outputs = Checker(ONE).check("m", InferRequest(inputs=[], untyped=untyped))
    assert (list(arrays), arrays["x"].shape, outputs) == (["x"], (2, 4), ("y",))
    with pytest.raises(InferenceError, match="Missing required input"):
        Checker(TWO).check("m", InferRequest(inputs=[], untyped=untyped))
    assert asked == [ONE, TWO]
