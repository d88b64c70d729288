"""The binary tensor data extension: sizes, lengths, left-overs, alignment."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from gateway.serving.datatypes import RAW
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse, OutputTensor
from gateway.wire.oip_json import decode_infer, encode_infer

BYTES_ABC = struct.pack("<I", 1) + b"a" + struct.pack("<I", 2) + b"bc"


def tensor(size: Any, datatype: str = "FP32", shape: Any = (4,), **keys: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": "x", "shape": list(shape), "datatype": datatype, "parameters": parameters, **keys}


def body_of(tail: bytes, *inputs: dict[str, Any], pad: int = 0) -> tuple[bytes, int]:
    header = json.dumps({"inputs": list(inputs)}).encode() + b" " * pad
    return header + tail, len(header)


def decode(tail: bytes, *inputs: dict[str, Any]) -> InferRequest:
    return decode_infer(*body_of(tail, *inputs))


@pytest.mark.parametrize("pad", range(8))
def test_a_tensor_behind_the_json_is_aligned_wherever_it_starts(pad: int) -> None:
    raw = np.arange(4, dtype="<f8").tobytes()
    body, header_length = body_of(raw, tensor(32, "FP64"), pad=pad)
    array = decode_infer(body, header_length).inputs[0].array
    assert array.tolist() == [0, 1, 2, 3] and array.flags.aligned


def test_several_tensors_and_json_among_them() -> None:
    request = decode(
        np.arange(4, dtype="<f4").tobytes() + BYTES_ABC + b"\x01\x00",
        tensor(16),
        {"name": "j", "shape": [1], "datatype": "INT8", "data": [5]},
        tensor(len(BYTES_ABC), "BYTES", (2, 1)),
        tensor(2, "BOOL", (2,)),
    )
    assert [item.array.reshape(-1).tolist() for item in request.inputs] == [
        [0, 1, 2, 3],
        [5],
        [b"a", b"bc"],
        [True, False],
    ]


def test_empty_tensors() -> None:
    request = decode(b"", tensor(0, "FP32", (0, 4)), tensor(0, "BYTES", (0,)))
    assert [item.array.shape for item in request.inputs] == [(0, 4), (0,)]


@pytest.mark.parametrize(
    ("tail", "sent", "text"),
    [
        (bytes(16), tensor(12), "takes 16 bytes, but its binary_data_size is 12"),
        (bytes(12), tensor(16), "binary_data_size of 16 bytes, but 12 bytes of binary data are left"),
        (bytes(17), tensor(16), "1 bytes are left over behind the inputs"),
        (bytes(16), tensor(16, shape=(2**31,) * 32), "but its binary_data_size is 16"),
        (b"", tensor(0, shape=(2**31,) * 31 + (0,)), "which is too large"),
        (bytes(4), tensor(4, "FP8", (1,)), "unknown data-type 'FP8'"),
        (bytes(4), tensor(-4), ">= 0"),
        (bytes(4), tensor(2**60), "<="),
        (bytes(4), tensor("4"), "got `str`"),
        (bytes(4), tensor(True), "got `bool`"),
        (bytes(4), tensor(4, data=[1]), "has both data and binary_data_size"),
        (b"\x02", tensor(1, "BOOL", (1,)), "bytes other than 0 and 1"),
        (BYTES_ABC, tensor(len(BYTES_ABC), "BYTES", (1,)), "6 bytes left over behind its 1 BYTES elements"),
        (BYTES_ABC, tensor(len(BYTES_ABC), "BYTES", (3,)), "takes 3 BYTES elements, more than its 11 bytes"),
        (BYTES_ABC[:-1], tensor(10, "BYTES", (2,)), "element 1 of input 'x' passes the end of its 10 bytes"),
        (b"\xff" * 4, tensor(4, "BYTES", (1,)), "element 0 of input 'x' passes the end of its 4 bytes"),
        (b"\x01\0\0\0aaaa\0", tensor(9, "BYTES", (2,)), "passes the end"),
        (b"\x02\0\0\0aa\0\0", tensor(8, "BYTES", (2,)), "passes the end"),
        (b"", tensor(0, "BYTES", (2**31,) * 32), "more than its 0 bytes can hold"),
    ],
)
def test_sizes_that_do_not_match(tail: bytes, sent: dict[str, Any], text: str) -> None:
    with pytest.raises(InferenceError) as raised:
        decode(tail, sent)
    assert raised.value.status == 400 and text in str(raised.value)


@pytest.mark.parametrize("header_length", [-1, 1000, 2**63])
def test_a_header_length_outside_of_the_body(header_length: int) -> None:
    with pytest.raises(InferenceError, match=r"Inference-Header-Content-Length -?\d+ is not in 0\.\.2"):
        decode_infer(b"{}", header_length)


def test_binary_data_without_the_header_is_json_with_rubbish() -> None:
    body, _ = body_of(bytes(16), tensor(16))
    with pytest.raises(InferenceError, match="not valid"):
        decode_infer(body, None)
    with pytest.raises(InferenceError, match="0 bytes of binary data are left"):
        decode_infer(body[:-16], None)


def test_header_length_0_is_a_raw_request() -> None:
    request = decode_infer(b"abcd", 0)
    (raw,) = request.inputs
    assert raw.datatype == RAW and raw.array.tobytes() == b"abcd" and request.binary_default
    assert decode_infer(b"", 0).inputs[0].array.size == 0


def test_a_response_of_both_kinds() -> None:
    outputs = [
        OutputTensor(name="a", datatype="FP16", array=np.arange(4, dtype="f2").reshape(2, 2), binary=True),
        OutputTensor(name="b", datatype="INT8", array=np.array([5], "i1")),
        OutputTensor(name="c", datatype="BYTES", array=np.array([b"a", b"bc"], object), binary=True),
        OutputTensor(name="d", datatype="FP32", array=np.zeros((0, 3), "f4"), binary=True),
        OutputTensor(name="e", datatype="FP32", array=np.arange(6, dtype="f4").reshape(2, 3).T, binary=True),
        OutputTensor(name="f", datatype="FP32", array=np.array(np.nan, "f4"), binary=True),
    ]
    buffers, header_length = encode_infer(InferResponse(route="m", version="1", outputs=outputs))

    assert isinstance(buffers, list) and header_length == len(buffers[0])
    sent = [document.get("parameters") for document in json.loads(bytes(buffers[0]))["outputs"]]
    assert sent == [
        {"binary_data_size": size} if size is not None else None for size in (8, None, 11, 0, 24, 4)
    ]
    tail = b"".join(buffers[1:])
    transposed = np.arange(6, dtype="f4").reshape(2, 3).T.tobytes()
    assert (
        tail == np.arange(4, dtype="f2").tobytes() + BYTES_ABC + transposed + np.array(np.nan, "f4").tobytes()
    )
