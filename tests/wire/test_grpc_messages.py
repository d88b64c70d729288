"""gRPC's messages to requests and back: what is sent comes back unchanged, what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.datatypes import BINARY_ONLY, DATATYPES
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse, OutputTensor
from gateway.wire.grpc import inference_pb2 as pb
from gateway.wire.grpc.contents import FIELDS
from gateway.wire.grpc.infer_messages import decode_infer, decode_names, encode_infer, parse_infer
from gateway.wire.oip_json import Limits
from tests.wire.test_codec_properties import arrays, assert_same

PROTO = Path(pb.__file__).parent


def decode(message: pb.ModelInferRequest) -> InferRequest:
    """As a server does it: from the bytes on."""
    return decode_infer(parse_infer(message.SerializeToString()), Limits())


def round_trip(datatype: str, array: np.ndarray, binary: bool) -> np.ndarray:
    """A response, with its outputs called inputs."""
    output = OutputTensor(name="x", datatype=datatype, array=array, binary=binary)
    answer = encode_infer(InferResponse(route="m", version="1", outputs=[output]))
    assert len(answer.raw_output_contents) == binary
    inputs = [pb.ModelInferRequest.InferInputTensor.FromString(answer.outputs[0].SerializeToString())]
    request = pb.ModelInferRequest(inputs=inputs, raw_input_contents=answer.raw_output_contents)
    decoded = decode(request)
    assert decoded.binary_default is binary
    (tensor,) = decoded.inputs
    assert (tensor.name, tensor.datatype) == ("x", datatype)
    return tensor.array


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_raw_contents_come_back_unchanged(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, binary=True))
    assert_same(round_trip(datatype, array, binary=True), array)


@pytest.mark.parametrize("datatype", FIELDS)
@given(data=st.data())
def test_typed_contents_come_back_unchanged(datatype: str, data: st.DataObject) -> None:
    # Protobuf keeps a NaN, but not which of them it was: so numbers only.
    array = data.draw(arrays(datatype, binary=datatype == "BYTES"))
    assert_same(round_trip(datatype, array, binary=False), array)


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_what_is_not_finite_travels_both_ways(datatype: str) -> None:
    array = np.array([np.nan, np.inf, -np.inf], DATATYPES[datatype].dtype)
    for binary in (True, False):
        np.testing.assert_array_equal(round_trip(datatype, array, binary), array)


def test_every_datatype_has_a_field_or_is_raw_only() -> None:
    assert FIELDS.keys() | BINARY_ONLY == DATATYPES.keys()
    fields = pb.InferTensorContents.DESCRIPTOR.fields_by_name
    assert set(FIELDS.values()) == set(fields)


def test_raw_contents_are_not_copied() -> None:
    message = tensors(raw=[bytes(16)])
    (tensor,) = decode_infer(message, Limits()).inputs
    assert not tensor.array.flags.owndata and not tensor.array.flags.writeable


@given(st.binary(max_size=200))
def test_whatever_arrives_is_a_request_or_an_error(body: bytes) -> None:
    try:
        message = parse_infer(body)
        decode_names(message)
        decode_infer(message, Limits())
    except InferenceError as error:
        assert error.status == 400
    try:
        pb.ModelInferRequest.FromString(body)
    except DecodeError:
        with pytest.raises(InferenceError, match="no valid ModelInferRequest"):
            parse_infer(body)


def test_outputs_are_raw_where_one_of_them_has_no_typed_contents() -> None:
    outputs = [
        OutputTensor(name="a", datatype="FP32", array=np.zeros(2, np.float32)),
        OutputTensor(name="b", datatype="FP16", array=np.zeros(2, np.float16)),
    ]
    answer = encode_infer(InferResponse(route="m", version="1", outputs=outputs))
    assert [len(raw) for raw in answer.raw_output_contents] == [8, 4]
    assert not any(output.HasField("contents") for output in answer.outputs)


def test_parameters_outputs_and_names() -> None:
    message = tensors(raw=[bytes(16)])
    message.model_name, message.model_version, message.id = "m", "7", "id"
    message.parameters["timeout"].int64_param = 1500
    message.parameters["user"].string_param = "u"
    message.parameters["unset"].SetInParent()
    message.outputs.add(name="y").parameters["classification"].int64_param = 3
    decoded = decode(message)
    assert decode_names(message) == ("m", "7")
    assert (decoded.id, decoded.timeout_us) == ("id", 1500)
    assert decoded.parameters == {"timeout": 1500, "user": "u", "unset": ""}
    (output,) = decoded.outputs
    assert (output.name, output.classification, output.binary) == ("y", 3, True)


def tensors(
    *,
    raw: list[bytes] | None = None,
    count: int = 1,
    datatype: str = "FP32",
    shape: Any = (4,),
    **contents: Any,
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(raw_input_contents=raw or [])
    for index in range(count):
        message.inputs.add(name=f"x{index}", datatype=datatype, shape=shape, contents=contents or None)
    return message


def with_parameter(name: str, **value: Any) -> pb.ModelInferRequest:
    message = tensors(raw=[bytes(16)])
    message.parameters[name].CopyFrom(pb.InferParameter(**value))
    return message


def with_output(name: str, **value: Any) -> pb.ModelInferRequest:
    message = tensors(raw=[bytes(16)])
    message.outputs.add(name="y").parameters[name].CopyFrom(pb.InferParameter(**value))
    return message


def with_input_parameter() -> pb.ModelInferRequest:
    message = tensors()
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    return message


BAD = {
    "raw beside typed": (
        tensors(raw=[bytes(16)], fp32_contents=[1.0]),
        "input 'x0' has contents beside the raw_input_contents: send all inputs one way",
    ),
    "raw for one of two": (
        tensors(raw=[bytes(16)], count=2),
        "2 inputs are given, but 1 raw_input_contents: each input needs one",
    ),
    "raw and no inputs": (tensors(raw=[b""], count=0), "0 inputs are given, but 1 raw_input_contents"),
    "raw of another size": (
        tensors(raw=[bytes(15)]),
        "input 'x0' of shape [4] and data-type FP32 takes 16 bytes, but its raw_input_contents have 15",
    ),
    "no data": (tensors(), "input 'x0' has shape [4], which takes 4 elements, but its data has 0"),
    "too few": (tensors(fp32_contents=[1.0]), "takes 4 elements, but its data has 1"),
    "too few bools": (tensors(datatype="BOOL", bool_contents=[True]), "takes 4 elements, but its data has 1"),
    "too many bytes": (
        tensors(datatype="BYTES", shape=[], bytes_contents=[b"a", b"b"]),
        "takes 1 elements, but its data has 2",
    ),
    "another field": (
        tensors(datatype="INT64", int_contents=[1] * 4),
        "input 'x0' is INT64, but it has int_contents: its elements belong into int64_contents",
    ),
    "two fields": (
        tensors(fp32_contents=[1.0] * 4, fp64_contents=[1.0]),
        "input 'x0' is FP32, but it has fp64_contents",
    ),
    "128 in an INT8": (
        tensors(datatype="INT8", shape=[2], int_contents=[127, 128]),
        "element 1 of input 'x0', 128, is out of range for INT8",
    ),
    "65536 in a UINT16": (
        tensors(datatype="UINT16", shape=[1], uint_contents=[65536]),
        "element 0 of input 'x0', 65536, is out of range for UINT16",
    ),
    "typed FP16": (
        tensors(datatype="FP16", fp32_contents=[1.0] * 4),
        "input 'x0' is FP16, which has no typed contents: send it as raw_input_contents",
    ),
    "typed BF16": (tensors(datatype="BF16"), "input 'x0' is BF16, which has no typed contents"),
    "unknown datatype": (tensors(datatype="FLOAT", raw=[b""]), "input 'x0' has unknown data-type 'FLOAT'"),
    "a bool of 2": (tensors(datatype="BOOL", shape=[1], raw=[b"\2"]), "has bytes other than 0 and 1"),
    "negative dimension": (tensors(shape=[-1]), "input 'x0' has a dimension of -1: use 0 to 2147483648"),
    "huge dimension": (tensors(shape=[2**40]), "input 'x0' has a dimension of 1099511627776"),
    "product past 2^64": (tensors(shape=[2**31] * 3, raw=[b""]), f"takes {4 * 2**93} bytes, but"),
    "40 dimensions": (tensors(shape=[1] * 40), "input 'x0' has 40 dimensions, the limit is 32"),
    "300 inputs": (tensors(count=300), "300 inputs are given, the limit is 256"),
    "shared memory": (with_input_parameter(), "input 'x0' names a shared memory region"),
    "shared memory out": (
        with_output("shared_memory_region", string_param="r"),
        "output 'y' names a shared memory region",
    ),
    "classification of -1": (
        with_output("classification", int64_param=-1),
        "the parameter classification of output 'y' must be an integer of 0 or more",
    ),
    "classification of true": (with_output("classification", bool_param=True), "must be an integer"),
    "timeout of a text": (with_parameter("timeout", string_param="1s"), "the parameter timeout must be in"),
    "timeout below 0": (with_parameter("timeout", int64_param=-1), "the parameter timeout must be in"),
}


@pytest.mark.parametrize(("message", "text"), BAD.values(), ids=BAD.keys())
def test_bad_messages(message: pb.ModelInferRequest, text: str) -> None:
    with pytest.raises(InferenceError) as raised:
        decode(message)
    assert raised.value.status == 400
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({}, "the request has no model_name"),
        ({"model_name": "../x"}, "'../x' is no name"),
        ({"model_name": "m", "model_version": "a/b"}, "'a/b' is no name"),
        ({"model_name": "a" * 300}, "is no name"),
    ],
)
def test_bad_names(names: dict[str, str], text: str) -> None:
    with pytest.raises(InferenceError, match=text):
        decode_names(pb.ModelInferRequest(**names))


def test_a_flood_of_empty_inputs_is_refused_before_it_is_parsed() -> None:
    one_empty_input = b"\x2a\x00"
    with pytest.raises(InferenceError, match="more than 4096 inputs, outputs and parameters"):
        parse_infer(one_empty_input * 100_000)
    # As many bytes in one large input are no flood, and neither is a request whose end is missing.
    assert parse_infer(tensors(raw=[bytes(200_000)]).SerializeToString()).inputs
    with pytest.raises(InferenceError, match="no valid ModelInferRequest"):
        parse_infer(tensors(raw=[bytes(200_000)]).SerializeToString()[:-1])


def test_the_generated_code_is_current(tmp_path: Path) -> None:
    options = [f"-I{PROTO}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "inference.proto"]
    assert protoc.main(["protoc", *options]) == 0
    for made in tmp_path.iterdir():
        assert (PROTO / made.name).read_text() == made.read_text(), "run: make proto"
    assert len(list(tmp_path.iterdir())) == 2
