"""TensorFlow Serving's REST API, which is KServe's v1 protocol, too.

The formats are those of https://www.tensorflow.org/tfx/serving/api_rest, and the paths beside `:predict` those
of https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.serving.engine import Array, TensorSpec
from gateway.serving.live import LiveRoute
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse
from gateway.wire import oip_documents as documents
from gateway.wire.codec import JSON_HEADERS, Encode, HeaderMap, Headers
from gateway.wire.infer import InferEndpoint
from gateway.wire.model_handlers import json_response
from gateway.wire.models import Models, checked_name
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
from gateway.wire.oip_json import encode_error

SIGNATURE = "serving_default"
"""The only signature that a model has here."""
DTYPES = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
    "BF16": "DT_BFLOAT16",
}
_OTHER_VERBS = ("classify", "regress", "explain")
_BINARY_SUFFIX = "_bytes"
"""Outputs of such names hold what is no text: TensorFlow Serving's own convention."""


class _Request(msgspec.Struct):
    """`{"instances": [row, …]}` or `{"inputs": …}`; other keys are passed over."""

    instances: list[Any] | msgspec.UnsetType = msgspec.UNSET
    inputs: Any = msgspec.UNSET
    signature_name: str | None = None


_decode = msgspec.json.Decoder(_Request).decode


class PredictCodec:
    """Rows in, rows out; columns in, columns out."""

    def decode(self, body: Buffer, headers: HeaderMap) -> tuple[InferRequest, Encode]:
        request: _Request = decode_json(body, _decode)
        if request.signature_name not in (None, "", SIGNATURE):
            raise InferenceError(
                400, f"there is no signature {request.signature_name[:140]!r}: the only one is {SIGNATURE!r}"
            )
        if (request.instances is msgspec.UNSET) == (request.inputs is msgspec.UNSET):
            raise InferenceError(
                400, "the request needs either 'instances' (rows) or 'inputs' (columns), and not both"
            )
        if isinstance(request.instances, list):
            return InferRequest(inputs=[], untyped=from_rows(request.instances)), _encode_rows
        return InferRequest(inputs=[], untyped=from_columns(request.inputs)), _encode_columns

    def encode_error(self, error: InferenceError) -> bytes:
        return encode_error(str(error))


class Predict:
    """The ASGI application of `:predict`, under Starlette's routes."""

    def __init__(self, endpoint: InferEndpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        named = {key: checked_name(key, value) for key, value in scope["path_params"].items()}
        await self._endpoint(
            scope, receive, send, named["model"], named.get("version"), variant=named.get("label")
        )


class ModelPages:
    """What clients may ask of models. Each raises `InferenceError`."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def alive(self, _: Request) -> Response:
        """KServe's v1 liveness."""
        return json_response({"status": "alive"})

    async def names(self, _: Request) -> Response:
        """KServe's list."""
        return json_response({"models": self._models.names()})

    async def status(self, request: Request) -> Response:
        """TensorFlow Serving's status of versions, with the `name` and `ready` of KServe beside it."""
        route = self._route(request)
        version = _version(route, request)
        entries = [entry for entry in self._models.entries(route) if version in (None, entry.version)]
        if not entries:
            raise InferenceError(
                404, f"'{route.entry.name}' version {version} is not loaded: ask it for a prediction"
            )
        ready = route.ready if version is None else entries[0].state == documents.READY
        document = {
            "name": route.entry.name,
            "ready": ready,
            "model_version_status": [_version_status(entry) for entry in entries],
        }
        return json_response(document, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        route = self._route(request)
        version = _version(route, request)
        loaded = await self._models.loaded(route, version)
        if version is None and route.entry.fallback is not None:
            version = route.entry.fallback.pin.version
        signature = loaded.engine.signature
        definition = {
            "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
            "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
            "method_name": "tensorflow/serving/predict",
            "defaults": {},
        }
        return json_response(
            {
                "model_spec": {"name": route.entry.name, "signature_name": "", "version": version},
                "metadata": {"signature_def": {"signature_def": {SIGNATURE: definition}}},
            }
        )

    async def refused(self, request: Request) -> Response:
        """`:classify`, `:regress` and `:explain`: what TensorFlow Serving says of a model that has no signature
        for them is a 400, too."""
        route = self._route(request)
        verb = request.scope["path"].rpartition(":")[2]
        raise InferenceError(
            400, f"'{route.entry.name}' has no signature for :{verb}: its only one is for :predict"
        )

    def _route(self, request: Request) -> LiveRoute:
        return self._models.route(checked_name("model", request.path_params["model"]))


def tensorflow_routes(endpoint: InferEndpoint, models: Models) -> list[Route]:
    """`endpoint` is one with a `PredictCodec`."""
    predict, pages = Predict(endpoint), ModelPages(models)
    model = "/v1/models/{model}"
    routes = [Route("/", pages.alive), Route("/v1/models", pages.names)]
    for at in (model, model + "/versions/{version}", model + "/labels/{label}"):
        routes += [
            # Before the paths without a verb: a name there would have one in it.
            Route(at + ":predict", predict),
            *(Route(f"{at}:{verb}", pages.refused, methods=["POST"]) for verb in _OTHER_VERBS),
            Route(at + "/metadata", pages.metadata),
            Route(at, pages.status),
        ]
    return routes


def _encode_rows(response: InferResponse) -> tuple[Headers, list[bytes]]:
    outputs = response.outputs
    row_count(outputs, "send columns, as 'inputs'")
    columns = [nested(output, _text) for output in outputs]
    names = [output.name for output in outputs]
    rows = (
        columns[0]
        if len(columns) == 1
        else [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    )
    return JSON_HEADERS, [encode_answer({"predictions": rows}, outputs)]


def _encode_columns(response: InferResponse) -> tuple[Headers, list[bytes]]:
    outputs = response.outputs
    columns = {output.name: nested(output, _text) for output in outputs}
    document = {"outputs": columns if len(columns) > 1 else columns[outputs[0].name]}
    return JSON_HEADERS, [encode_answer(document, outputs)]


def _text(name: str, array: Array) -> list[Any]:
    if name.endswith(_BINARY_SUFFIX):
        return [{"b64": base64.b64encode(value).decode()} for value in array.reshape(-1).tolist()]
    return plain_text(name, array)


def _version(route: LiveRoute, request: Request) -> str | None:
    """The version of the path, or that of its label: to look at a variant needs no permission."""
    version, label = request.path_params.get("version"), request.path_params.get("label")
    if label is None:
        return None if version is None else checked_name("version", version)
    arm = route.entry.arms.get(label)
    if arm is None:
        known = ", ".join(route.entry.arms)
        raise InferenceError(
            404, f"route '{route.entry.name}' has no variant '{label[:140]}' (it has: {known})"
        )
    return arm.pin.version


def _version_status(entry: documents.IndexEntry) -> documents.Document:
    if entry.state == documents.READY:
        state, code = "AVAILABLE", "OK"
    else:
        state, code = "END", "UNAVAILABLE"
    return {
        "version": entry.version,
        "state": state,
        "status": {"error_code": code, "error_message": entry.reason},
    }


def _tensor_info(spec: TensorSpec) -> documents.Document:
    dimensions = [{"size": str(size), "name": ""} for size in spec.shape]
    return {
        "dtype": DTYPES[spec.datatype],
        "tensor_shape": {"dim": dimensions, "unknown_rank": False},
        "name": spec.name,
    }
