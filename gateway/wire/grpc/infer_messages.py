"""ModelInferRequest → InferRequest, and InferResponse → ModelInferResponse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.routing.names import NAME
from gateway.serving.datatypes import BINARY_ONLY
from gateway.serving.engine import Array
from gateway.serving.tensors import (
    InferenceError,
    InferRequest,
    InferResponse,
    InputTensor,
    RequestedOutput,
)
from gateway.wire.grpc import inference_pb2 as pb
from gateway.wire.grpc.calls import parsed
from gateway.wire.grpc.contents import array_from_contents, contents_of
from gateway.wire.oip_binary import decode_tensor, encode_tensor
from gateway.wire.oip_json import Limits, no_shared_memory, timeout_us

_SHOWN_CHARS = 200
_DIMENSIONS = 32
_LARGEST_DIMENSION = 2**31
_SCANNED_FROM_BYTES = 64 * 1024
_FIELDS = 4096


def parse_infer(body: bytes) -> pb.ModelInferRequest:
    """The message in `body`. Raises `InferenceError` (400)."""
    if len(body) >= _SCANNED_FROM_BYTES and _fields_of(body) > _FIELDS:
        raise InferenceError(400, f"the request has more than {_FIELDS} inputs, outputs and parameters")
    return parsed(pb.ModelInferRequest, body)


def decode_names(message: pb.ModelInferRequest) -> tuple[str, str | None]:
    """(route, version), None where the route's split decides. Raises `InferenceError` (400)."""
    for name in filter(None, (message.model_name, message.model_version)):
        if not NAME.fullmatch(name):
            text = f"{name[:_SHOWN_CHARS]!r} is no name: models and versions match {NAME.pattern}"
            raise InferenceError(400, text)
    if not message.model_name:
        raise InferenceError(400, "the request has no model_name")
    return message.model_name, message.model_version or None


def decode_infer(message: pb.ModelInferRequest, limits: Limits) -> InferRequest:
    """The request that a message is, its tensors raw or typed, not both.

    Arrays are read-only views of the message's bytes where they lie aligned. Outputs are wanted raw, as
    Triton answers them, unless the request's own tensors are typed. Raises `InferenceError` (400).
    """
    given, raws = message.inputs, message.raw_input_contents
    if len(given) > limits.inputs:
        raise InferenceError(400, f"{len(given)} inputs are given, the limit is {limits.inputs}")
    if raws and len(raws) != len(given):
        raise InferenceError(
            400, f"{len(given)} inputs are given, but {len(raws)} raw_input_contents: each input needs one"
        )
    if raws:
        inputs = [_raw(tensor, raw) for tensor, raw in zip(given, raws, strict=True)]
    else:
        inputs = [_typed(tensor) for tensor in given]
    binary = bool(raws) or not inputs
    parameters = {name: _value(parameter) for name, parameter in message.parameters.items()}
    return InferRequest(
        inputs=inputs,
        outputs=[_requested(output, binary) for output in message.outputs],
        id=message.id,
        parameters=parameters,
        binary_default=binary,
        timeout_us=timeout_us(parameters),
    )


def encode_infer(response: InferResponse) -> pb.ModelInferResponse:
    """The message for a response: all outputs raw, or all typed where every one of them can be."""
    message = pb.ModelInferResponse(model_name=response.route, model_version=response.version, id=response.id)
    raw = any(output.binary or output.datatype in BINARY_ONLY for output in response.outputs)
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.array.shape)
        if raw:
            message.raw_output_contents.append(bytes(encode_tensor(output.datatype, output.array)))
        else:
            tensor.contents.CopyFrom(contents_of(output.datatype, output.array))
    return message


def _raw(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes) -> InputTensor:
    if tensor.HasField("contents") and tensor.contents.ByteSize():
        raise InferenceError(
            400, f"input {tensor.name!r} has contents beside the raw_input_contents: send all inputs one way"
        )
    array = decode_tensor(tensor.name, tensor.datatype, _shape(tensor), raw, "its raw_input_contents have")
    return _input(tensor, array)


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> InputTensor:
    array = array_from_contents(tensor.name, tensor.datatype, _shape(tensor), tensor.contents)
    return _input(tensor, array)


def _input(tensor: pb.ModelInferRequest.InferInputTensor, array: Array) -> InputTensor:
    return InputTensor(name=tensor.name, datatype=tensor.datatype, array=array)


def _shape(tensor: pb.ModelInferRequest.InferInputTensor) -> list[int]:
    """The shape, after what else would keep the input from being read."""
    if "shared_memory_region" in tensor.parameters:
        raise no_shared_memory("input", tensor.name)
    shape = list(tensor.shape)
    if len(shape) > _DIMENSIONS:
        raise InferenceError(
            400, f"input {tensor.name!r} has {len(shape)} dimensions, the limit is {_DIMENSIONS}"
        )
    for size in shape:
        if not 0 <= size <= _LARGEST_DIMENSION:
            raise InferenceError(
                400, f"input {tensor.name!r} has a dimension of {size}: use 0 to {_LARGEST_DIMENSION}"
            )
    return shape


def _requested(output: pb.ModelInferRequest.InferRequestedOutputTensor, binary: bool) -> RequestedOutput:
    parameters: Mapping[str, pb.InferParameter] = output.parameters
    if "shared_memory_region" in parameters:
        raise no_shared_memory("output", output.name)
    count = _value(parameters["classification"]) if "classification" in parameters else 0
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _LARGEST_DIMENSION:
        raise InferenceError(
            400, f"the parameter classification of output {output.name!r} must be an integer of 0 or more"
        )
    return RequestedOutput(name=output.name, binary=binary, classification=count)


def _value(parameter: pb.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return "" if choice is None else getattr(parameter, choice)


def _fields_of(body: bytes) -> int:
    """How many fields the outermost message has; stops counting past the limit, and at what is no message.

    An empty input takes two bytes on the wire and forty times as many in memory once it is parsed: whoever
    sends nothing else must be noticed before.
    """
    fields, at, end = 0, 0, len(body)
    while at < end and fields <= _FIELDS:
        tag, at = _varint(body, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(body, at)
            at += size
        elif kind == 0:
            _, at = _varint(body, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        fields += 1
    return fields


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends; 0 and the end of `body` where it has none."""
    value = shift = 0
    while at < len(body) and shift < 64:
        byte = body[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, len(body)
