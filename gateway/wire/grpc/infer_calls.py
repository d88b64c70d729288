"""ModelInfer and ModelStreamInfer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from grpc.aio import EOF

from gateway.serving.tensors import InferenceError
from gateway.wire.grpc.calls import read_one, refuse
from gateway.wire.grpc.departure import Departure
from gateway.wire.grpc.infer import Asked, InferMessages, metadata_header
from gateway.wire.grpc.inference_pb2 import ModelInferResponse, ModelStreamInferResponse

STREAM_IN_FLIGHT = 32
"""Requests of one stream that were read and whose answers the client has not taken."""


class InferCalls:
    """Handlers over raw bytes: large messages are parsed off the loop."""

    def __init__(self, messages: InferMessages, departure: Departure) -> None:
        self._messages = messages
        self._departure = departure

    async def infer(self, _: Any, context: Any) -> bytes:
        started_ns = time.perf_counter_ns()
        remaining_s: float | None = context.time_remaining()
        body = await read_one(context)
        asked = await self._messages.ask(body, metadata_header(context), started_ns, remaining_s)
        status = None
        try:
            try:
                response = await asked.response()
            except InferenceError as error:
                await self._departure.answering()
                status = error.status
                await refuse(context, error, asked.origin())
            await self._departure.answering()
            await context.send_initial_metadata(tuple(asked.origin()))
            encoded: bytes = response.SerializeToString()
            status = 200
            return encoded
        finally:
            # gRPC has the answer only when the handler has returned.
            context.add_done_callback(lambda _: asked.finish(status))

    async def stream(self, _: Any, context: Any) -> None:
        """Reads ahead, answers in order."""
        asked: asyncio.Queue[Asked | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_IN_FLIGHT)
        reading = self._departure.start(self._read(context, asked, room))
        reading.add_done_callback(lambda _: asked.put_nowait(None))
        try:
            while (one := await asked.get()) is not None:
                await _write(context, one)
                room.release()
            self._departure.end(reading)
        finally:
            reading.cancel()
            while not asked.empty():
                left = asked.get_nowait()
                if left is not None:
                    left.finish(None)

    async def _read(self, context: Any, asked: asyncio.Queue[Asked | None], room: asyncio.Semaphore) -> None:
        header = metadata_header(context)
        while True:
            await room.acquire()
            body = await context.read()
            if body is EOF:
                return
            started_ns = time.perf_counter_ns()
            asked.put_nowait(await self._messages.ask(body, header, started_ns, context.time_remaining()))


async def _write(context: Any, asked: Asked) -> None:
    """The answer to one request of a stream, with its origin in its parameters: the metadata is the stream's."""
    status = None
    try:
        try:
            answer = ModelStreamInferResponse(infer_response=await asked.response())
            answered = 200
        except InferenceError as error:
            told = ModelInferResponse(model_name=asked.model, id=asked.id)
            answer = ModelStreamInferResponse(error_message=str(error), infer_response=told)
            answered = error.status
        parameters = answer.infer_response.parameters
        for name, value in asked.origin():
            parameters[name].string_param = value
        # Each request has one answer: Triton's clients ask which is the last.
        parameters["triton_final_response"].bool_param = True
        await context.write(answer.SerializeToString())
        status = answered
    finally:
        asked.finish(status)
