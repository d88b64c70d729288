"""Whatever bytes arrive, a request or an `InferenceError` comes out; what is sent comes back unchanged."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.extra.numpy as hnp
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.datatypes import BINARY_ONLY, DATATYPES
from gateway.serving.tensors import InferenceError, InferResponse, OutputTensor
from gateway.wire.compression import decompress
from gateway.wire.oip_json import decode_infer, encode_infer

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def elements(datatype: str, binary: bool) -> st.SearchStrategy[Any]:
    row = DATATYPES[datatype]
    if datatype == "BYTES":
        return st.binary(max_size=9) if binary else st.text(max_size=5).map(str.encode)
    return hnp.from_dtype(row.dtype, allow_nan=binary, allow_infinity=binary)


@st.composite
def arrays(draw: st.DrawFn, datatype: str, binary: bool) -> np.ndarray:
    shape = draw(SHAPES)
    count = int(np.prod(shape))
    values = draw(st.lists(elements(datatype, binary), min_size=count, max_size=count))
    array = np.empty(count, DATATYPES[datatype].dtype)
    array[:] = values
    return array.reshape(shape)


def as_request(body: bytes | list[Any], header_length: int | None) -> tuple[bytes, int | None]:
    """A response's body with its outputs called inputs."""
    buffers = body if isinstance(body, list) else [body]
    document = msgspec.json.decode(buffers[0])
    header = msgspec.json.encode({"inputs": document["outputs"]})
    return b"".join([header, *buffers[1:]]), None if header_length is None else len(header)


def round_trip(datatype: str, array: np.ndarray, binary: bool) -> np.ndarray:
    output = OutputTensor(name="x", datatype=datatype, array=array, binary=binary)
    encoded = encode_infer(InferResponse(route="m", version="1", outputs=[output]))
    (tensor,) = decode_infer(*as_request(*encoded)).inputs
    assert tensor.datatype == datatype
    return tensor.array


def assert_same(got: np.ndarray, sent: np.ndarray) -> None:
    assert got.dtype == sent.dtype and got.shape == sent.shape
    if sent.dtype == object:
        assert got.tolist() == sent.tolist()
    else:
        assert got.tobytes() == sent.tobytes()


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_binary_data_comes_back_unchanged(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, binary=True))
    assert_same(round_trip(datatype, array, binary=True), array)


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - BINARY_ONLY))
@given(data=st.data())
def test_json_comes_back_unchanged(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, binary=False))
    assert_same(round_trip(datatype, array, binary=False), array)


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - BINARY_ONLY - {"BYTES"}))
@given(data=st.data())
def test_nested_is_the_same_as_flat(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, binary=False))
    if array.ndim < 1:
        array = array.reshape(1)
    tensor = {"name": "x", "datatype": datatype, "shape": array.shape, "data": array.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert_same(decode_infer(body, None).inputs[0].array, array)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*DATATYPES]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size", "id"]),
            inner,
        )
    ),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.text(max_size=3) | JSON, "datatype": st.sampled_from([*DATATYPES, "FP8"]) | JSON},
    optional={
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data": st.lists(st.integers() | st.floats() | st.booleans() | JSON, max_size=4) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 20) | JSON})
        | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=3) | JSON},
    optional={"id": JSON, "parameters": JSON, "outputs": st.lists(TENSOR, max_size=2) | JSON},
)


def decodes_or_refuses(body: bytes, header_length: int | None) -> None:
    try:
        request = decode_infer(body, header_length)
    except InferenceError as error:
        assert error.status == 400 and str(error).isprintable()
        return
    for tensor in request.inputs:
        assert isinstance(tensor.array, np.ndarray)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 250))
def test_no_bytes_break_the_decoder(body: bytes, header_length: int | None) -> None:
    decodes_or_refuses(body, header_length)


@given(REQUEST, st.binary(max_size=40), st.booleans())
def test_no_document_breaks_the_decoder(document: dict[str, Any], tail: bytes, with_tail: bool) -> None:
    header = json.dumps(document).encode()
    decodes_or_refuses(header + tail if with_tail else header, len(header) if with_tail else None)


@given(st.data())
def test_no_damage_to_a_request_breaks_the_decoder(data: st.DataObject) -> None:
    whole = bytearray(
        b'{"id":"1","parameters":{"timeout":5},"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32",'
        b'"data":[[1.5,2]]},{"name":"b","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":11}}],'
        b'"outputs":[{"name":"y","parameters":{"classification":1}}]}'
    )
    header_length = len(whole)
    whole += b"\x01\0\0\0a\x02\0\0\0bc"
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                whole[at] = data.draw(st.integers(0, 255))
            case 1:
                del whole[at : at + data.draw(st.integers(1, 5))]
            case _:
                whole[at:at] = data.draw(st.binary(min_size=1, max_size=5))
        if not whole:
            break
    decodes_or_refuses(bytes(whole), header_length)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_no_bytes_break_the_decompressor(body: bytes, encoding: str) -> None:
    try:
        assert len(decompress(body, encoding, 1000)) <= 1000
    except InferenceError as error:
        assert error.status in (400, 413)
