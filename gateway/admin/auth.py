"""Who may use the admin listener: whoever has the token, or, without one, this machine's own users."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admin.problems import problem
from gateway.settings import is_loopback

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""What a container's probes ask; it tells nothing but yes and no to those without a token."""
TRUSTED = "turnout.trusted"
"""In the scope of a request: whether who asks may know more than yes or no."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class AdminGuard:
    """Plain ASGI middleware: default deny.

    Without a token the listener is on the loopback. There a browser is the danger: a page from elsewhere may
    post to it, or reach it under its own name (DNS rebinding). So the Host must be loopback too, and a write
    must not come from another origin.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = hashlib.sha256(token.encode()).digest() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refuse(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            status, detail = refusal
            headers = {"www-authenticate": "Bearer"} if status == 401 else {}
            await problem(status, detail, headers=headers)(scope, receive, send)

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        if self._token is None:
            scope[TRUSTED] = True
            return _from_elsewhere(scope.get("method", ""), headers)
        kind, _, given = headers.get("authorization", "").partition(" ")
        sha256 = hashlib.sha256(given.strip().encode()).digest()
        scope[TRUSTED] = hmac.compare_digest(sha256, self._token) and kind.lower() == "bearer"
        if scope[TRUSTED] or scope["path"] in OPEN_PATHS:
            return None
        return 401, "this listener demands a token: send Authorization: Bearer, with TURNOUT_ADMIN_TOKEN"


def _from_elsewhere(method: str, headers: Headers) -> tuple[int, str] | None:
    host = headers.get("host", "")
    if not is_loopback(_hostname(host)):
        return (
            403,
            f"Host {host[:80]!r} is not loopback: without TURNOUT_ADMIN_TOKEN only this machine is served",
        )
    if method in _SAFE:
        return None
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return 403, f"a page of {origin[:80]!r} may not change anything here"
    return None


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
