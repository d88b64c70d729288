"""The protocol of MLflow's scoring server: `/invocations`, `/ping`, `/health`, `/version`.

As of MLflow 3: `mlflow.pyfunc.scoring_server`, with the answers of its ONNX flavour.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from gateway.serving.live import Live
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse, OutputTensor, Untyped
from gateway.wire.codec import JSON_HEADERS, Encode, HeaderMap, Headers
from gateway.wire.infer import InferEndpoint
from gateway.wire.models import checked_name
from gateway.wire.neighbours.frames import from_records, from_table
from gateway.wire.neighbours.values import (
    decode_json,
    encode_answer,
    from_columns,
    from_rows,
    nested,
    plain_text,
    row_count,
)
from gateway.wire.oip_binary import Buffer

ROUTE_HEADER = b"turnout-route"
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_ERROR_CODES = {
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""By MLflow's table of statuses; every other is its BAD_REQUEST."""
_SHOWN = 16
"""Routes that an error lists."""


class _Split(msgspec.Struct, forbid_unknown_fields=True):
    data: list[list[Any]]
    columns: list[str | int] | None = None
    index: list[Any] | None = None


class _Request(msgspec.Struct):
    """Exactly one of `FORMATS`; other keys are passed over, as MLflow does."""

    dataframe_split: _Split | msgspec.UnsetType = msgspec.UNSET
    dataframe_records: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    instances: list[Any] | msgspec.UnsetType = msgspec.UNSET
    inputs: Any = msgspec.UNSET
    params: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Request).decode


class InvocationsCodec:
    """A table is answered by one record for each row, tensors by an object of the outputs."""

    def decode(self, body: Buffer, headers: HeaderMap) -> tuple[InferRequest, Encode]:
        _check_content_type(headers.get(b"content-type"))
        request: _Request = decode_json(body, _decode)
        given = [name for name in FORMATS if getattr(request, name) is not msgspec.UNSET]
        if len(given) != 1:
            raise InferenceError(
                400,
                f"the request has {' and '.join(given) or 'none'} of {', '.join(FORMATS)}: send exactly one",
            )
        table = given[0].startswith("dataframe")
        return (
            InferRequest(inputs=[], untyped=_untyped(request), parameters=_scalars(request.params or {})),
            _encode_records if table else _encode_outputs,
        )

    def encode_error(self, error: InferenceError) -> bytes:
        code = _ERROR_CODES.get(error.status, "BAD_REQUEST")
        return msgspec.json.encode({"error_code": code, "message": str(error)})


class Invocations:
    """The ASGI application of `/invocations`: its path names no route, so a header does, or there is only one."""

    def __init__(self, endpoint: InferEndpoint, live: Live) -> None:
        """`endpoint` is one with an `InvocationsCodec`."""
        self._endpoint = endpoint
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        try:
            route = self._route(dict(scope["headers"]).get(ROUTE_HEADER))
        except InferenceError as error:
            await self._endpoint.refuse(scope, receive, send, "", error)
        else:
            await self._endpoint(scope, receive, send, route, None)

    def _route(self, named: bytes | None) -> str:
        if named is not None:
            return checked_name("turnout-route", named.decode("latin-1"))
        routes = list(self._live.snapshot.routes)
        if len(routes) == 1:
            return routes[0]
        listed = ", ".join(routes[:_SHOWN]) + (" …" if len(routes) > _SHOWN else "")
        raise InferenceError(
            400,
            f"there are {len(routes)} routes: name one in the header turnout-route ({listed})"
            if routes
            else "there is no route yet: turnout apply makes one",
        )


def _untyped(request: _Request) -> Untyped:
    if isinstance(request.dataframe_split, _Split):
        split = request.dataframe_split
        return from_table(
            None if split.columns is None else [str(name) for name in split.columns], split.data
        )
    if isinstance(request.dataframe_records, list):
        return from_records(request.dataframe_records)
    if isinstance(request.instances, list):
        return from_rows(request.instances)
    return from_columns(request.inputs)


def _scalars(params: dict[str, Any]) -> dict[str, Any]:
    """ONNX models have no parameters of their own: what is left to know them for is the sticky key."""
    return {name: value for name, value in params.items() if isinstance(value, str | int | float | bool)}


def _check_content_type(header: bytes | None) -> None:
    """Raises `InferenceError` (415) for another than JSON in UTF-8."""
    if header is None:
        return
    kind, *parameters = (part.strip().lower() for part in header.decode("latin-1").split(";"))
    if kind != "application/json" or any(given not in ("", "charset=utf-8") for given in parameters):
        raise InferenceError(
            415,
            f"content-type {header.decode('latin-1')[:140]!r} is not taken: send application/json in UTF-8 "
            "(a CSV file's rows go as dataframe_split)",
        )


def _encode_records(response: InferResponse) -> tuple[Headers, list[bytes]]:
    outputs = response.outputs
    rows = row_count(outputs, "send tensors, as inputs")
    columns = [nested(_cells(output, rows), plain_text) for output in outputs]
    names = [output.name for output in outputs]
    records = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return JSON_HEADERS, [encode_answer({"predictions": records}, outputs)]


def _cells(output: OutputTensor, rows: int) -> OutputTensor:
    """One value for each row is no list of one. MLflow makes one column of whatever there is, and so mixes rows
    up where they have several values: here each row keeps its list."""
    if output.array.size != rows:
        return output
    return OutputTensor(name=output.name, datatype=output.datatype, array=output.array.reshape(rows))


def _encode_outputs(response: InferResponse) -> tuple[Headers, list[bytes]]:
    outputs = response.outputs
    document = {"predictions": {output.name: nested(output, plain_text) for output in outputs}}
    return JSON_HEADERS, [encode_answer(document, outputs)]
