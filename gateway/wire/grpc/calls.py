"""What every call has in common: its messages, its errors, and that nothing of ours leaks into them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from grpc.aio import EOF, AbortError, InternalError

from gateway.serving.tensors import InferenceError
from gateway.wire.grpc.status import code_of

log = logging.getLogger(__name__)

MESSAGE_S = 120.0
"""From a call's headers to the end of its message: a client that stops in the middle does not stay."""
_DETAILS_CHARS = 1024
"""Errors travel in a header, and clients take few kilobytes of those."""

Metadata = Sequence[tuple[str, str]]
Handler = Callable[[Any, Any], Awaitable[Any]]
AMessage = TypeVar("AMessage", bound=Message)


async def read_one(context: Any) -> bytes:
    """The message of a call that has one. Raises `InferenceError`."""
    try:
        async with asyncio.timeout(MESSAGE_S):
            body: Any = await context.read()
    except TimeoutError:
        raise InferenceError(504, f"the request's message was not whole within {MESSAGE_S:g} s") from None
    if body is EOF:
        raise InferenceError(400, "the call has no message")
    return bytes(body)


def parsed(type_: type[AMessage], body: bytes) -> AMessage:
    """Raises `InferenceError` (400)."""
    try:
        message: AMessage = type_.FromString(body)
    except DecodeError:
        raise InferenceError(400, f"the request is no valid {type_.DESCRIPTOR.name}") from None
    return message


async def refuse(context: Any, error: InferenceError, metadata: Metadata = ()) -> NoReturn:
    """Ends a call with the code and the text of an error."""
    text = str(error)
    if len(text) > _DETAILS_CHARS:
        text = text[: _DETAILS_CHARS - 1] + "…"
    if error.retry_after_s is not None:
        metadata = [*metadata, ("retry-after", str(error.retry_after_s))]
    await context.abort(code_of(error.status), text, tuple(metadata))
    raise AssertionError  # abort has raised


def guarded(handler: Handler) -> Handler:
    """A handler whose errors reach the client as they are meant to: others' texts are for the log alone."""

    async def guarded_handler(requests: Any, context: Any) -> Any:
        try:
            try:
                return await handler(requests, context)
            except InferenceError as error:
                await refuse(context, error)
        except (AbortError, asyncio.CancelledError):
            raise
        except InternalError:
            # The core's word for a call that its client has left: nobody is there to hear of anything.
            raise asyncio.CancelledError from None
        except Exception as error:
            log.exception("a call failed")
            return await context.abort(
                StatusCode.INTERNAL, f"the call failed: {type(error).__name__}, see the gateway's log"
            )

    return guarded_handler
