"""Infer requests and responses of the Open Inference Protocol over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from gateway.serving.tensors import (
    InferenceError,
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    RequestedOutput,
)
from gateway.wire.oip_arrays import (
    Numbers,
    array_from_json,
    array_from_numbers,
    json_values,
    reject_not_finite,
)
from gateway.wire.oip_binary import BinaryReader, Buffer, encode_tensor, raw_request

BODY_BYTES = 64 * 1024 * 1024
INPUTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may hold. Past `body_bytes` the status is 413, past the other 400."""

    body_bytes: int = BODY_BYTES
    """Of the body, after its Content-Encoding is undone."""
    inputs: int = INPUTS


DEFAULT_LIMITS = Limits()

_Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
_Shape = Annotated[list[_Dimension], msgspec.Meta(max_length=32)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class _InputParameters(msgspec.Struct):
    """Keys of other names are ignored, as Triton does."""

    binary_data_size: _Size | None = None
    shared_memory_region: str | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: Annotated[int, msgspec.Meta(ge=0, le=2**31)] | None = None
    shared_memory_region: str | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


_ABSENT = msgspec.Raw()


class _NumbersInput(msgspec.Struct):
    """An input whose data, if any, is numbers: most of them, decoded in one pass."""

    name: str
    shape: _Shape
    datatype: str
    data: Numbers | None = None
    parameters: _InputParameters | None = None


class _AnyInput(msgspec.Struct):
    """An input whose data is looked at once its datatype is known: bools, strings, deeper nesting."""

    name: str
    shape: _Shape
    datatype: str
    data: msgspec.Raw = _ABSENT
    parameters: _InputParameters | None = None


class _Request(msgspec.Struct):
    """Null stands for what is left out: MLServer's client sends it so."""

    id: str | None = None
    parameters: dict[str, str | int | float | bool] | None = None
    outputs: list[_Output] | None = None


class _NumbersRequest(_Request, kw_only=True):
    inputs: list[_NumbersInput]


class _AnyRequest(_Request, kw_only=True):
    inputs: list[_AnyInput]


decode_numbers = msgspec.json.Decoder(_NumbersRequest).decode
_decode_any = msgspec.json.Decoder(_AnyRequest).decode
_encode = msgspec.json.Encoder().encode


def decode_infer(body: Buffer, header_length: int | None, limits: Limits = DEFAULT_LIMITS) -> InferRequest:
    """The request in `body`; `header_length` is Inference-Header-Content-Length, None where it was not sent.

    Arrays may be read-only views of `body`. Numbers that do not fit their datatype are refused, never wrapped
    or rounded to infinity; BOOL takes true and false only, integers no 1.0; of duplicate keys the last wins.
    Raises `InferenceError`: 400, or 413 past the limit.
    """
    total = len(body)
    if total > limits.body_bytes:
        raise InferenceError(413, f"the body has {total} bytes, the limit is {limits.body_bytes}")
    header, binary = body, None
    if header_length is not None:
        if header_length == 0:
            return raw_request(body)
        if not 0 < header_length <= total:
            raise InferenceError(
                400,
                f"Inference-Header-Content-Length {header_length} is not in 0..{total}, the size of the body",
            )
        header, binary = memoryview(body)[:header_length], BinaryReader(body, header_length)
    if not header:
        raise InferenceError(400, "the body is empty: an infer request is a JSON object with inputs")
    return _decode(header, binary, limits)


def _decode(header: Buffer, binary: BinaryReader | None, limits: Limits) -> InferRequest:
    try:
        try:
            request: _NumbersRequest | _AnyRequest = decode_numbers(header)
        except msgspec.ValidationError:
            request = _decode_any(header)
        if len(request.inputs) > limits.inputs:
            raise InferenceError(400, f"{len(request.inputs)} inputs are given, the limit is {limits.inputs}")
        inputs = [_input(tensor, binary) for tensor in request.inputs]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InferenceError(400, f"the request is not valid: {error}{why_no_number(header)}") from None
    except RecursionError:
        raise InferenceError(400, "the request is not valid: it is nested too deeply") from None
    if binary is not None:
        binary.finish()
    decoded = InferRequest(inputs=inputs, id=request.id or "")
    if request.parameters:
        _take_parameters(decoded, request.parameters)
    if request.outputs:
        decoded.outputs = [_requested(output, decoded.binary_default) for output in request.outputs]
    return decoded


def why_no_number(header: Buffer) -> str:
    """What msgspec does not say of a text that it refused: that Python's `json` wrote something else than JSON."""
    text = bytes(header)
    literal = next((word for word in (b"NaN", b"Infinity") if word in text), None)
    return "" if literal is None else f" ({literal.decode()} is no JSON number: send it as binary data)"


def _input(tensor: _NumbersInput | _AnyInput, binary: BinaryReader | None) -> InputTensor:
    parameters = tensor.parameters
    if parameters is not None and parameters.shared_memory_region is not None:
        raise no_shared_memory("input", tensor.name)
    size = None if parameters is None else parameters.binary_data_size
    data = _given(tensor.data) if isinstance(tensor, _AnyInput) else tensor.data
    if (size is None) == (data is None):
        raise InferenceError(
            400,
            f"input {tensor.name!r} has {'no data' if data is None else 'both data and binary_data_size'}: "
            "give it either data or the parameter binary_data_size",
        )
    if size is not None:
        if binary is None:
            binary = BinaryReader(b"", 0)  # which tells what is missing
        array = binary.read(tensor.name, tensor.datatype, tensor.shape, size)
    elif isinstance(data, memoryview):
        try:
            array = array_from_json(tensor.name, tensor.datatype, tensor.shape, data)
        except msgspec.MsgspecError as error:
            raise InferenceError(
                400, f"the data of input {tensor.name!r} are no {tensor.datatype} tensor: {error}"
            ) from None
    else:
        assert data is not None
        array = array_from_numbers(tensor.name, tensor.datatype, tensor.shape, data)
    return InputTensor(name=tensor.name, datatype=tensor.datatype, array=array)


def _given(data: msgspec.Raw) -> memoryview | None:
    text = memoryview(data)
    return None if len(text) in (0, 4) and bytes(text) in (b"", b"null") else text


def _requested(output: _Output, binary_default: bool) -> RequestedOutput:
    parameters = output.parameters
    if parameters is None:
        return RequestedOutput(name=output.name, binary=binary_default)
    if parameters.shared_memory_region is not None:
        raise no_shared_memory("output", output.name)
    return RequestedOutput(
        name=output.name,
        binary=binary_default if parameters.binary_data is None else parameters.binary_data,
        classification=parameters.classification or 0,
    )


def _take_parameters(request: InferRequest, parameters: dict[str, str | int | float | bool]) -> None:
    request.parameters = parameters
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InferenceError(400, "the parameter binary_data_output must be true or false")
    request.binary_default = binary
    request.timeout_us = timeout_us(parameters)


def timeout_us(parameters: Mapping[str, Any]) -> int | None:
    """The reserved parameter. Raises `InferenceError` (400)."""
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise InferenceError(400, "the parameter timeout must be in microseconds, an integer of 0 or more")
    return timeout


def no_shared_memory(kind: str, name: str) -> InferenceError:
    return InferenceError(
        400,
        f"{kind} {name!r} names a shared memory region, which is not supported here: use binary data",
    )


def encode_infer(response: InferResponse) -> tuple[list[Buffer], int | None]:
    """The body of `response` in buffers to write one behind the other, and its Inference-Header-Content-Length.

    Without binary outputs there is one buffer, and no such length; with them it is the length of the first,
    the JSON. Buffers may be views of the outputs' arrays.
    Raises `InferenceError` where JSON cannot carry an output: 400 for FP16, BF16 and BYTES that are not
    UTF-8, 500 for values that are not finite.
    """
    buffers: list[Buffer] = []
    document: dict[str, Any] = {"model_name": response.route, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    document["outputs"] = [_output(output, buffers) for output in response.outputs]
    body = _encode(document)
    # msgspec writes null for what is not finite, and no other null is in this document but in strings: to
    # look for the word is far cheaper than to test every number.
    if b"null" in body:
        for output in response.outputs:
            if not output.binary:
                reject_not_finite(output.name, output.datatype, output.array)
    if not buffers:
        return [body], None
    return [body, *buffers], len(body)


def _output(output: OutputTensor, buffers: list[Buffer]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": output.name,
        "datatype": output.datatype,
        "shape": output.array.shape,
    }
    if output.binary:
        raw = encode_tensor(output.datatype, output.array)
        buffers.append(raw)
        document["parameters"] = {"binary_data_size": len(raw)}
    else:
        document["data"] = json_values(output.name, output.datatype, output.array)
    return document


def encode_error(message: str) -> bytes:
    """`{"error": …}`, the body of every `/v2` error."""
    return _encode({"error": message})
