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
Revision = Callable[[], str]
"""By which requests are routed now."""
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


def origin(revision: str) -> Metadata:
    """For the metadata of an answer that no version gave: by which revision of the state it was routed."""
    return (("turnout-revision", revision),)


def fenced(handler: Handler, revision: Revision) -> Handler:
    """A handler whose one answer tells, ahead of it, by which revision it was routed, at the least."""

    async def fenced_handler(requests: Any, context: Any) -> Any:
        routed_by = revision()
        answer = await handler(requests, context)
        await context.send_initial_metadata(origin(routed_by))
        return answer

    return fenced_handler


def fenced_stream(handler: Handler, revision: Revision) -> Handler:
    """A handler of a stream that tells the revision at its beginning and, as it may last, at its end."""

    async def fenced_handler(requests: Any, context: Any) -> None:
        await context.send_initial_metadata(origin(revision()))
        await handler(requests, context)
        context.set_trailing_metadata(origin(revision()))

    return fenced_handler


async def unknown(_: Any, context: Any) -> NoReturn:
    """Answers calls that no service here has, as the core would, but with the revision."""
    raise InferenceError(415, "there is no such call: server reflection lists those that there are")


def guarded(handler: Handler, revision: Revision) -> Handler:
    """A handler whose errors reach the client as they are meant to: others' texts are for the log alone."""

    async def guarded_handler(requests: Any, context: Any) -> Any:
        try:
            try:
                return await handler(requests, context)
            except InferenceError as error:
                await refuse(context, error, origin(revision()))
        except (AbortError, asyncio.CancelledError):
            raise
        except InternalError:
            # The core's word for a call that its client has left: nobody is there to hear of anything.
            raise asyncio.CancelledError from None
        except Exception as error:
            log.exception("a call failed")
            return await context.abort(
                StatusCode.INTERNAL,
                f"the call failed: {type(error).__name__}, see the gateway's log",
                origin(revision()),
            )

    return guarded_handler
