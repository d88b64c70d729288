"""How each server wants to be asked: pure functions from a row to a request, and from an answer to an array."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loadtests.bench.workloads import Array

KEYS = 512
"""Sticky keys that the requests of one wrk have in turn; a server that knows none ignores the header."""
KEY_HEADER = "turnout-key"
JSON_TYPE = "application/json"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, without the key."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("content-type", JSON_TYPE),)


@dataclass(frozen=True, kw_only=True)
class Answered:
    body: bytes
    headers: dict[str, str]
    """By lower-case name."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A wire format: `ask(model, row)`, and the array in an answer, None for a constant."""

    name: str
    ask: Callable[[str, Array], Ask]
    read: Callable[[Answered], Array | None]


def keyed(ask: Ask, number: int) -> Ask:
    """The request of the user of this number."""
    return replace(ask, headers=(*ask.headers, (KEY_HEADER, f"user-{number:04d}")))


def raw_requests(ask: Ask, host: str, keys: int = KEYS) -> list[bytes]:
    """The bytes of whole HTTP/1.1 requests on a connection that stays open, one for each key."""
    return [_raw(keyed(ask, number), host) for number in range(keys)]


def _raw(ask: Ask, host: str) -> bytes:
    head = [f"POST {ask.path} HTTP/1.1", f"host: {host}", f"content-length: {len(ask.body)}"]
    head += [f"{name}: {text}" for name, text in ask.headers]
    return "\r\n".join([*head, "", ""]).encode() + ask.body


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _plain(row: Array) -> list[float]:
    """Numbers as short as they were given: float32's own digits, not those of the nearest double."""
    return [float(str(number)) for number in row.ravel()]


def _nested(row: Array) -> Any:
    return np.array(_plain(row)).reshape(row.shape).tolist()


def _oip_json(model: str, row: Array) -> Ask:
    tensor = {"name": "input", "shape": list(row.shape), "datatype": "FP32", "data": _plain(row)}
    return Ask(path=f"/v2/models/{model}/infer", body=_json({"inputs": [tensor]}))


def _oip_binary(model: str, row: Array) -> Ask:
    raw = row.tobytes()
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": "input", "shape": list(row.shape), "datatype": "FP32", "parameters": parameters}
    header = _json({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = (
        ("content-type", "application/octet-stream"),
        ("inference-header-content-length", str(len(header))),
    )
    return Ask(path=f"/v2/models/{model}/infer", body=header + raw, headers=headers)


def _read_oip(answer: Answered) -> Array:
    length = answer.headers.get("inference-header-content-length")
    if length is not None:
        return np.frombuffer(answer.body[int(length) :], np.float32)
    return np.asarray(json.loads(answer.body)["outputs"][0]["data"], np.float32)


def _read_field(name: str | None) -> Callable[[Answered], Array]:
    def read(answer: Answered) -> Array:
        document = json.loads(answer.body)
        return np.asarray(document if name is None else document[name], np.float32)

    return read


def _read_mlflow(answer: Answered) -> Array:
    return np.asarray(json.loads(answer.body)["predictions"]["output"], np.float32)


OIP_JSON = Protocol(name="v2, JSON", ask=_oip_json, read=_read_oip)
OIP_BINARY = Protocol(name="v2, binary tensors", ask=_oip_binary, read=_read_oip)
KSERVE_V1 = Protocol(
    name="v1",
    ask=lambda model, row: Ask(path=f"/v1/models/{model}:predict", body=_json({"instances": _nested(row)})),
    read=_read_field("predictions"),
)
LITSERVE = Protocol(
    name="JSON",
    ask=lambda model, row: Ask(path="/predict", body=_json({"input": _nested(row)})),
    read=_read_field("output"),
)
BENTOML = Protocol(
    name="JSON",
    ask=lambda model, row: Ask(path="/predict", body=_json({"input": _nested(row)})),
    read=_read_field(None),
)
MLFLOW = Protocol(
    name="JSON",
    ask=lambda model, row: Ask(path="/invocations", body=_json({"inputs": {"input": _nested(row)}})),
    read=_read_mlflow,
)
CONSTANT = Protocol(name="a constant", ask=_oip_json, read=lambda answer: None)
"""The same request as the gateway's; the answer does not depend on it."""
