"""The admin API's errors: `application/problem+json` (RFC 9457), from one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.control.deliver import PrepareFailed
from gateway.control.store import Conflict, StoreDiverged, StoreUnavailable
from gateway.control.weights_errors import WeightsError, WeightsRefused
from gateway.routing.change import ChangeRefused, UnknownName
from gateway.routing.manifest_values import ManifestError
from gateway.routing.state import StateError
from registry_client import errors as registry

_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    # The most derived first: the first that fits decides.
    (ManifestError, 422, "The manifest is refused"),
    (UnknownName, 404, "No such name"),
    (ChangeRefused, 422, "The change is refused"),
    (Conflict, 409, "The state has moved on"),
    (StoreDiverged, 503, "The store is not what this replica holds"),
    (StoreUnavailable, 503, "The store cannot be reached"),
    (StateError, 503, "The store's document cannot be used"),
    (PrepareFailed, 422, "A version cannot be served"),
    (WeightsRefused, 422, "The version is not served here"),
    (WeightsError, 507, "The weights cache cannot take it"),
    (registry.InvalidReference, 422, "The reference is refused"),
    (registry.InvalidConfiguration, 422, "The registry is misconfigured"),
    (registry.NotFound, 404, "Not in the registry"),
    (registry.NotReady, 422, "The version may not be used"),
    (registry.RegistryError, 502, "The registry failed"),
)
HANDLED = tuple(kind for kind, _, _ in _STATUS)


def problem(
    status: int, detail: str, title: str = "", *, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """`more` are members of the problem's own, such as the current revision of a conflict."""
    document = {
        "type": "about:blank",
        "title": title or "Refused",
        "status": status,
        "detail": detail,
        **more,
    }
    return Response(msgspec.json.encode(document), status, headers, "application/problem+json")


async def handle(_: Request, error: Exception) -> Response:
    for kind, status, title in _STATUS:
        if isinstance(error, kind):
            more: dict[str, Any] = {}
            if isinstance(error, Conflict):
                more["current"] = str(error.current)
            if isinstance(error, ManifestError) and error.path:
                more["field"] = error.path
            return problem(status, str(error), title, **more)
    raise error


async def handle_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem(404, f"there is nothing at {request.url.path}", "No such path")
    return problem(error.status_code, error.detail, headers=error.headers)


async def handle_bug(request: Request, error: Exception) -> Response:
    """What nobody foresaw. Starlette raises it again behind the answer, for the log."""
    return problem(500, f"{type(error).__name__}: the gateway's log has it", "This is a bug")
