"""What the handlers of the admin API share: bodies, authors and preconditions in, JSON out."""

from __future__ import annotations

import secrets
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.control.operations import Outcome
from gateway.control.store import Author
from gateway.routing.manifest import SIZE_LIMIT_BYTES
from gateway.routing.state import Revision

T = TypeVar("T")
ACTOR_HEADER = "turnout-actor"
BODY_LIMIT_BYTES = 2 * SIZE_LIMIT_BYTES


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """A body whose misspelt field is an error, not a change that nobody meant."""


async def read_body(request: Request, type_: type[T]) -> T:
    chunks = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_LIMIT_BYTES:
            raise HTTPException(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes")
        chunks.append(chunk)
    body = b"".join(chunks)
    try:
        return msgspec.json.decode(body or b"{}", type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(422, f"the body is not valid: {error}") from error


def author_of(request: Request, reason: str, op_id: str = "") -> Author:
    """Who: as the client says. The token tells that it may, this tells people whom to ask."""
    actor = request.headers.get(ACTOR_HEADER, "") or "api"
    printable = "".join(character for character in actor if character.isprintable())
    return Author(actor=printable[:80], reason=reason[:500], op_id=op_id[:80] or secrets.token_hex(8))


def if_match(request: Request) -> Revision | None:
    text = request.headers.get("if-match")
    if text is None or text.strip() == "*":
        return None
    try:
        return Revision.parse(text)
    except ValueError as error:
        raise HTTPException(422, f"If-Match: {error}") from error


def integer_of(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise HTTPException(422, f"{name} must be a number from 1 to {most}")
    return int(text)


def outcome_response(outcome: Outcome) -> Response:
    # 202: in force here, but the store has not heard of it yet.
    return json_response(
        msgspec.to_builtins(outcome), 200 if outcome.published else 202, etag=outcome.revision
    )


def json_response(document: Any, status: int = 200, *, etag: str | None = None) -> Response:
    headers = {"etag": f'"{etag}"'} if etag is not None else None
    return Response(msgspec.json.encode(document), status, headers, "application/json")
