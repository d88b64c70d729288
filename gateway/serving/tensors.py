"""Tensors between the wire and the engines: requests, answers and their errors, free of any protocol.

Structs of msgspec, which are made in a fifth of the time that a dataclass takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.serving.engine import Array, Signature


class InferenceError(Exception):
    """Why a request gets no answer. `status` is the Open Inference Protocol's HTTP status; gRPC maps it on.

    The text names the thing, the limit it broke and what to do; it goes to the client as it is.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class InputTensor(msgspec.Struct, kw_only=True):
    """One input as it was sent: the array has the shape and datatype that the client named."""

    name: str
    datatype: str
    array: Array


Untyped = Callable[[Signature], list[InputTensor]]
"""Makes the inputs of a request that names neither datatypes nor shapes, for the signature of the version that
was picked. An input that the signature does not have is left to `Checker`. Raises `InferenceError` (400)."""


class RequestedOutput(msgspec.Struct, kw_only=True):
    name: str
    binary: bool = False
    classification: int = 0
    """0: the tensor itself; N: the N highest entries as `value:index`."""


class InferRequest(msgspec.Struct, kw_only=True):
    """One prediction to make, decoded and not yet checked against a model's signature."""

    inputs: list[InputTensor]
    untyped: Untyped | None = None
    """In place of `inputs`, where only the version that is picked can tell what the request's values are."""
    outputs: list[RequestedOutput] = []
    """Empty: all of the model's outputs."""
    id: str = ""
    parameters: dict[str, Any] = {}
    binary_default: bool = False
    """Whether outputs that are not asked for by name travel as binary data."""
    timeout_us: int | None = None


class OutputTensor(msgspec.Struct, kw_only=True):
    name: str
    datatype: str
    array: Array
    binary: bool = False


class InferResponse(msgspec.Struct, kw_only=True):
    """The answer. `route` is the name that the client used, `version` the resolved one."""

    route: str
    version: str
    outputs: list[OutputTensor]
    id: str = ""
