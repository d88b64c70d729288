"""One infer request: from a message's bytes to the data plane and back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gateway.serving.answer import Answer
from gateway.serving.inference import Header, Inference
from gateway.serving.tensors import InferenceError, InferRequest
from gateway.wire.grpc.infer_messages import decode_infer, decode_names, encode_infer, parse_infer
from gateway.wire.grpc.inference_pb2 import ModelInferResponse
from gateway.wire.oip_json import Limits

OFF_LOOP_BYTES = 256 * 1024
"""Messages of this size may take milliseconds to decode: longer than a thread costs, and others wait."""


class Asked:
    """A request that the data plane has, or that never got there. `finish` it once, whatever happens."""

    def __init__(self, started_ns: int, deadline_ns: int | None) -> None:
        self.started_ns = started_ns
        self._deadline_ns = deadline_ns
        self._arrived = asyncio.get_running_loop().create_future()
        self.answer: Answer
        self.id = ""
        self.model = ""

    def done(self, _: Answer) -> None:
        if not self._arrived.done():
            self._arrived.set_result(None)

    def bounded(self, request: InferRequest) -> None:
        """gRPC's own deadline counts as the parameter `timeout` does: the smaller one wins."""
        if self._deadline_ns is not None:
            left_us = max(0, self._deadline_ns - self.started_ns) // 1000
            given = request.timeout_us
            request.timeout_us = left_us if given is None else min(given, left_us)

    async def response(self) -> ModelInferResponse:
        """Waits for the answer. Raises `InferenceError`."""
        if not self._arrived.done():
            await self._arrived
        if self.answer.error is not None:
            raise self.answer.error
        assert self.answer.response is not None
        return encode_infer(self.answer.response)

    def origin(self) -> list[tuple[str, str]]:
        """Which version answered, as far as it is known."""
        served = self.answer.served
        found = [("turnout-revision", self.answer.revision)]
        if served is not None:
            found += (
                ("turnout-version", served.pin.version),
                ("turnout-variant", served.labels.variant),
                ("turnout-digest", served.digest),
            )
        return found

    def finish(self, status: int | None) -> None:
        """The client has its answer, with this status of HTTP, or None: it went before."""
        if status is None:
            late = self._deadline_ns is not None and time.perf_counter_ns() >= self._deadline_ns
            status = 504 if late else 499
            self.answer.cancel()
        self.answer.finish(status)


class InferMessages:
    """Asks the data plane what messages ask."""

    def __init__(self, inference: Inference, limits: Limits) -> None:
        self._inference = inference
        self._limits = limits

    async def ask(self, body: bytes, header: Header, started_ns: int, timeout_s: float | None) -> Asked:
        """`timeout_s` is what is left of the call's deadline, None where it has none."""
        deadline_ns = None if timeout_s is None else started_ns + int(timeout_s * 1e9)
        asked = Asked(started_ns, deadline_ns)
        route = ""
        try:
            if len(body) < OFF_LOOP_BYTES:
                message = parse_infer(body)
            else:
                message = await asyncio.to_thread(parse_infer, body)
            asked.id, asked.model = message.id, message.model_name
            route, version = decode_names(message)
            if len(body) < OFF_LOOP_BYTES:
                request = decode_infer(message, self._limits)
            else:
                request = await asyncio.to_thread(decode_infer, message, self._limits)
        except InferenceError as error:
            asked.answer = self._inference.refuse(route, error, asked.done, started_ns)
        else:
            asked.bounded(request)
            asked.answer = self._inference.start(route, version, request, header, asked.done, started_ns)
        return asked


def metadata_header(context: Any) -> Header:
    """Reads a call's metadata as HTTP's headers are read: of several values the last counts."""

    def header(name: bytes) -> bytes | None:
        wanted = name.decode("latin-1")
        found = None
        for key, value in context.invocation_metadata() or ():
            if key == wanted:
                found = value
        return found.encode() if isinstance(found, str) else found

    return header
