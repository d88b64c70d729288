"""What the handlers of the admin API share: bodies, authors and preconditions in, JSON out."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.admin.auth import HOLDER, short_of
from gateway.admin.roles import Role
from gateway.control.authors import author
from gateway.control.committing import Outcome
from gateway.control.store import Author
from gateway.routing.manifest import SIZE_LIMIT_BYTES
from gateway.routing.state import Revision

T = TypeVar("T")
ACTOR_HEADER = "turnout-actor"
OP_ID_LENGTH = 80
"""In characters, so that it fits behind any name of a token."""
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


def author_of(request: Request, reason: str, op_id: str = "", *, claimed: str = "") -> Author:
    """Who: the name that the token has in the file of tokens, and beside it what the client says of itself.

    Without such a name that alone: it tells people whom to ask, and nobody relies on it. An op id is the
    token's own, so that none takes an answer that another one, or an alert, has yet to get.
    """
    claimed = claimed or request.headers.get(ACTOR_HEADER, "") or "api"
    name = request.scope[HOLDER].name
    if len(op_id) > OP_ID_LENGTH:
        # Not cut: two long ones that begin alike would be one, and the second rollback would not be done.
        op_id = hashlib.sha256(op_id.encode("utf-8", "replace")).hexdigest()
    if name and op_id:
        op_id = f"{name}/{op_id}"
    return author(actor_of(request, claimed), reason, op_id)


def actor_of(request: Request, claimed: str) -> str:
    """`pager (ann@laptop)`: a name has no spaces, so nobody can claim to be another one."""
    name = request.scope[HOLDER].name
    return f"{name} ({claimed})" if name else claimed


def demand(request: Request, role: Role) -> None:
    """For what the path alone does not tell. Raises 403."""
    holder = request.scope[HOLDER]
    if holder.role < role:
        raise HTTPException(403, short_of(holder, role))


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
