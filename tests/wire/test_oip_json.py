"""Infer requests and responses as JSON: what is taken, what is refused, and with which words."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.serving.datatypes import DATATYPES
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse, OutputTensor
from gateway.wire.oip_json import Limits, decode_infer, encode_error, encode_infer


def decode(document: Any, **keys: Any) -> InferRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode_infer(body, None, **keys)


def one(data: Any, datatype: str = "FP32", shape: Any = None, **keys: Any) -> dict[str, Any]:
    shape = [len(data)] if shape is None else shape
    return {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}], **keys}


def refusal(document: Any, header_length: int | None = None, **keys: Any) -> InferenceError:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(InferenceError) as raised:
        decode_infer(body, header_length, **keys)
    return raised.value


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [0.5, -1, 3e38, 0]),
        ("FP64", [0.1, 1e308, 2**70]),
        ("UINT8", [0, 255]),
        ("INT8", [-128, 127]),
        ("UINT16", [0, 2**16 - 1]),
        ("INT16", [-(2**15), 2**15 - 1]),
        ("UINT32", [0, 2**32 - 1]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT64", [-(2**63), 2**63 - 1, 2**53 + 1]),
        ("BOOL", [True, False]),
    ],
)
def test_values_of_each_datatype(datatype: str, data: list[Any]) -> None:
    for shape, sent in (([len(data)], data), ([1, len(data)], [data]), ([len(data), 1], data)):
        (tensor,) = decode(one(sent, datatype, shape)).inputs
        assert tensor.array.dtype == DATATYPES[datatype].dtype
        assert tensor.array.shape == tuple(shape)
        assert tensor.array.reshape(-1).tolist() == np.array(data, tensor.array.dtype).tolist()


def test_strings_become_utf8() -> None:
    texts = ["", "a", "é€😀", "trailing\0"]
    array = decode(one(texts, "BYTES")).inputs[0].array
    assert array.tolist() == [text.encode() for text in texts]
    assert decode(one([texts], "BYTES", [1, 4])).inputs[0].array.shape == (1, 4)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([], [5]),
        ([0], []),
        ([0, 4], []),
        ([2, 0], [[], []]),
        ([1, 1, 2], [[[1, 2]]]),
        ([2, 1], [[1], [2]]),
        ([1] * 6, [[[[[[3]]]]]]),
    ],
    ids=str,
)
def test_shapes(shape: list[int], data: list[Any]) -> None:
    for datatype in ("FP32", "INT64"):
        assert decode(one(data, datatype, shape)).inputs[0].array.shape == tuple(shape)


@pytest.mark.parametrize("datatype", ["BOOL", "BYTES"])
def test_empty_data_of_no_numbers(datatype: str) -> None:
    assert decode(one([], datatype)).inputs[0].array.dtype == DATATYPES[datatype].dtype


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        ("UINT8", [1, 300], "element 1 of input 'x', 300, is out of range for UINT8"),
        ("UINT8", [-1], "element 0 of input 'x', -1, is out of range"),
        ("UINT64", [2**64], "is out of range for UINT64"),
        ("INT64", [2**63], "is out of range for INT64"),
        ("INT32", [1.5], "element 0 of input 'x', 1.5, is no integer for INT32"),
        ("INT32", [1.0], "is no integer"),
        ("FP32", [1e39], "element 0 of input 'x', 1e+39, is out of range for FP32"),
        ("FP32", [10**400], "is out of range for FP32"),
        ("FP64", [10**400], "is out of range for FP64"),
        ("FP32", [True], "Expected `int | float`, got `bool`"),
        ("FP32", ["1"], "got `str`"),
        ("FP32", [None], "got `null`"),
        ("FP32", [1, [2]], "element 1 of input 'x' is a list, not a number"),
        ("INT32", [True], "Expected `int`, got `bool`"),
        ("BOOL", [1, 0], "input 'x' is BOOL, but its data has numbers: use true and false"),
        ("BOOL", ["true"], "Expected `bool`, got `str`"),
        ("BYTES", [1], "input 'x' is BYTES, but its data has numbers: use strings"),
        ("FP16", [1.0], "input 'x' is FP16, which JSON cannot carry: send it as binary data"),
        ("BF16", [[1.0]], "input 'x' is BF16, which JSON cannot carry"),
        ("FP8", [1], "input 'x' has unknown data-type 'FP8': use BOOL"),
        ("FP8", ["a"], "input 'x' has unknown data-type 'FP8'"),
        ("", [], "unknown data-type ''"),
        ("x" * 5000, [1], "unknown data-type 'xxx"),
    ],
)
def test_values_that_do_not_fit_are_refused(datatype: str, data: list[Any], text: str) -> None:
    error = refusal(one(data, datatype))
    assert error.status == 400 and text in str(error) and len(str(error)) < 400


@pytest.mark.parametrize(
    ("shape", "data", "text"),
    [
        ([2], [1], "input 'x' has shape [2], which takes 2 elements, but its data has 1"),
        ([2, 2], [1, 2, 3], "takes 4 elements, but its data has 3"),
        ([0], [1], "takes 0 elements, but its data has 1"),
        ([2], [], "takes 2 elements, but its data has 0"),
        ([2, 2], [[1, 2], [3]], "does not have its shape [2,2]: dimension 1 is not 2 everywhere"),
        ([2, 3], [[1, 2], [3, 4], [5, 6]], "dimension 0 is not 2 everywhere"),
        ([4], [[1, 2, 3, 4]], "dimension 0 is not 4 everywhere"),
        ([1], [[1]], "element 0 of input 'x' is a list, not a number"),
        ([1, 1], [[[1]]], "element 0 of input 'x' is a list, not a number"),
        ([2, 1], [[1], 2], "dimension 1 is not 1 everywhere"),
        ([1] * 6, [[[[[[1, 2]]]]]], "dimension 5 is not 1 everywhere"),
        ([1] * 5, [[[[[[1]]]]]], "got `array`"),
        ([1, 1, 4], [[1, 2, 3, 4]], "dimension 1 is not 1 everywhere"),
        ([-1], [1], "Expected `int` >= 0 - at `$.inputs[0].shape[0]`"),
        ([2**31 + 1], [1], "Expected `int` <= 2147483648"),
        ([2**64], [1], "Expected `int`"),
        ([1.5], [1], "Expected `int`, got `float`"),
        ([1] * 33, [1], "length <= 32"),
        ([2**31] * 32, [1], "but its data has 1"),
        ([2**31] * 31 + [0], [], "which is too large"),
        ("4", [1], "Expected `array`"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: Any, data: list[Any], text: str) -> None:
    for datatype in ("FP32", "INT64"):
        error = refusal(one(data, datatype, shape))
        assert error.status == 400 and text in str(error)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is empty"),
        (b" ", "the request is not valid"),
        (b"[]", "Expected `object`"),
        (b"null", "Expected `object`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs":{}}', "Expected `array`"),
        (b'{"inputs":[{}]}', "missing required field"),
        (b'{"inputs":[],"id":5}', "Expected `str | null`, got `int`"),
        (b'{"inputs":[],"parameters":[]}', "at `$.parameters`"),
        (b'{"inputs":[],"parameters":{"a":null}}', "got `null`"),
        (b'{"inputs":[],"parameters":{"a":{}}}', "got `object`"),
        (b'{"inputs":[],"parameters":{"timeout":-1}}', "timeout must be in microseconds"),
        (b'{"inputs":[],"parameters":{"timeout":true}}', "timeout must be in microseconds"),
        (b'{"inputs":[],"parameters":{"timeout":"1"}}', "timeout must be in microseconds"),
        (b'{"inputs":[],"parameters":{"binary_data_output":1}}', "binary_data_output must be true or false"),
        (b'{"inputs":[],"outputs":[{}]}', "missing required field `name`"),
        (b'{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":-1}}]}', ">= 0"),
        (
            b'{"inputs":[],"outputs":[{"name":"y","parameters":{"shared_memory_region":"r"}}]}',
            "shared memory",
        ),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}', "input 'x' has no data"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":null}]}', "input 'x' has no data"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":1}]}', "Expected `array`"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "malformed"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[Infinity]}]}', "malformed"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1e999]}]}', "out of range"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\xff"]}]}', "utf-8"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}', "not valid"),
        (b'{"inputs":[{"name":"\xff","shape":[1],"datatype":"FP32","data":[1]}]}', "utf-8"),
        (b'{"inputs":[]} x', "trailing characters"),
        (b'{"inputs":[]', "truncated"),
        (b"\xef\xbb\xbf{}", "malformed"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 10_000, "not valid"),
        (b'{"other":' + b"[" * 10_000 + b"]" * 10_000 + b',"inputs":[]}', "nested too deeply"),
        (b"[" * 10_000, "not valid"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_bodies_that_are_not_requests(body: bytes, text: str) -> None:
    error = refusal(body)
    assert error.status == 400 and text in str(error)


def test_shared_memory_is_refused_not_ignored() -> None:
    document = one([1.0])
    document["inputs"][0]["parameters"] = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    assert "shared memory" in str(refusal(document))


def test_what_is_not_known_is_ignored() -> None:
    document = one([1.0], extra={"a": [None]})
    document["inputs"][0]["more"] = None
    document["inputs"][0]["parameters"] = {"content_type": "np"}
    assert decode(document).inputs[0].name == "x"


def test_null_stands_for_what_is_left_out() -> None:
    document = one([1.0], id=None, parameters=None, outputs=None)
    document["inputs"][0]["parameters"] = None
    request = decode(document)
    assert (request.id, request.parameters, request.outputs, request.timeout_us) == ("", {}, [], None)


def test_of_duplicate_keys_the_last_wins() -> None:
    body = b'{"inputs":[],"inputs":[{"name":"a","name":"b","shape":[1],"datatype":"FP32","data":[1]}]}'
    assert decode(body).inputs[0].name == "b"


def test_parameters_and_outputs() -> None:
    outputs = [
        {"name": "a"},
        {"name": "b", "parameters": {"binary_data": False, "classification": 3}},
        {"name": "c", "parameters": {"binary_data": True}},
    ]
    parameters = {"timeout": 1500, "binary_data_output": True, "priority": 1, "text": "t", "rate": 0.5}
    request = decode(one([1.0], id="42", parameters=parameters, outputs=outputs))
    assert (request.id, request.timeout_us, request.binary_default) == ("42", 1500, True)
    assert request.parameters == parameters
    assert [(o.name, o.binary, o.classification) for o in request.outputs] == [
        ("a", True, 0),
        ("b", False, 3),
        ("c", True, 0),
    ]


def test_numbers_and_strings_in_one_request() -> None:
    document = one([1.5])
    document["inputs"].append({"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]})
    document["inputs"].append({"name": "n", "shape": [1, 1], "datatype": "INT8", "data": [[-5]]})
    assert [tensor.array.reshape(-1).tolist() for tensor in decode(document).inputs] == [[1.5], [b"a"], [-5]]


def test_limits() -> None:
    body = json.dumps(one([1.0])).encode()
    assert refusal(body, limits=Limits(body_bytes=len(body) - 1)).status == 413
    decode(body, limits=Limits(body_bytes=len(body)))
    error = refusal(one([1.0]), limits=Limits(inputs=0))
    assert error.status == 400 and "1 inputs are given, the limit is 0" in str(error)


def test_a_memoryview_is_a_body() -> None:
    assert (
        decode_infer(memoryview(json.dumps(one([[1]], "INT8", [1, 1])).encode()), None).inputs[0].name == "x"
    )


def answer(array: Any, datatype: str, **keys: Any) -> InferResponse:
    tensor = OutputTensor(name="y", datatype=datatype, array=array)
    return InferResponse(route="m", version="3", outputs=[tensor], **keys)


def test_a_response() -> None:
    (body,), header_length = encode_infer(answer(np.array([[1, 2]], np.float32), "FP32", id="7"))
    assert header_length is None and isinstance(body, bytes)
    assert msgspec.json.decode(body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}],
    }


def test_without_an_id_there_is_none() -> None:
    (body,), _ = encode_infer(answer(np.zeros((0, 2), np.float32), "FP32"))
    assert isinstance(body, bytes) and b'"id"' not in body and b'"data":[]' in body


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_values_that_are_not_finite_are_the_models_failure(value: float, datatype: str) -> None:
    array = np.array([1, value], DATATYPES[datatype].dtype)
    with pytest.raises(InferenceError, match="output 'y' has values that are not finite") as raised:
        encode_infer(answer(array, datatype))
    assert raised.value.status == 500


def test_the_word_null_is_no_null() -> None:
    (body,), _ = encode_infer(answer(np.array([b"null"], object), "BYTES", id="null"))
    assert isinstance(body, bytes) and msgspec.json.decode(body)["outputs"][0]["data"] == ["null"]


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("FP16", np.zeros(1, "f2")),
        ("BF16", np.zeros(1, "u2")),
        ("BYTES", np.array([b"\xff"], object)),
    ],
)
def test_outputs_that_only_binary_data_carries(datatype: str, array: Any) -> None:
    with pytest.raises(InferenceError, match="parameter binary_data true") as raised:
        encode_infer(answer(array, datatype))
    assert raised.value.status == 400


def test_an_error_is_json() -> None:
    assert encode_error('no "x"') == b'{"error":"no \\"x\\""}'
