"""Who may use the admin listener, and for what: whoever has a token, or, without one, this machine's users."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admin.problems import problem
from gateway.admin.roles import READS, Role, needed
from gateway.admin.tokens import Holder
from gateway.settings import is_loopback

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""What a container's probes ask; it tells nothing but yes and no to those without a token."""
TRUSTED = "turnout.trusted"
"""In the scope of a request: whether who asks may know more than yes or no."""
HOLDER = "turnout.holder"
"""In the scope of a request: whom its token stands for."""
NOBODY = Holder(name="", role=Role.VIEWER)
_ANYBODY_HERE = Holder(name="", role=Role.RELEASER)
_DEMANDED = "this listener demands a token: send Authorization: Bearer, with TURNOUT_ADMIN_TOKEN or one of the --tokens"


class AdminGuard:
    """Plain ASGI middleware: default deny.

    Without a token the listener is on the loopback. There a browser is the danger: a page from elsewhere may
    post to it, or reach it under its own name (DNS rebinding). So the Host must be loopback too, and a write
    must not come from another origin.
    """

    def __init__(
        self, app: ASGIApp, token: str, holders: Callable[[], Iterable[Holder]] | None = None
    ) -> None:
        """`token` is a releaser's; `holders` are those of the file of tokens, None where there is no such file."""
        self._app = app
        sha256 = hashlib.sha256(token.encode()).digest()
        self._own = (Holder(name="", role=Role.RELEASER, sha256=sha256),) if token else ()
        self._holders = holders

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
        method, path = scope.get("method", ""), scope["path"]
        if not self._own and self._holders is None:
            scope[TRUSTED], scope[HOLDER] = True, _ANYBODY_HERE
            return _from_elsewhere(method, headers)
        holder = self._holder(headers.get("authorization", ""))
        scope[TRUSTED], scope[HOLDER] = holder is not None, holder or NOBODY
        if path in OPEN_PATHS:
            return None
        if holder is None:
            return 401, _DEMANDED
        role = needed(method, path)
        if holder.role < role:
            return 403, short_of(holder, role)
        return None

    def _holder(self, authorization: str) -> Holder | None:
        kind, _, given = authorization.partition(" ")
        if kind.lower() != "bearer":
            return None
        sha256 = hashlib.sha256(given.strip().encode()).digest()
        found = None
        for holder in (*self._own, *(self._holders() if self._holders else ())):
            # All of them, always: how long it takes tells nothing.
            if hmac.compare_digest(sha256, holder.sha256):
                found = found or holder
        return found


def short_of(holder: Holder, role: Role) -> str:
    """What who lacks a role is told."""
    return f"this takes the role {role}, and the token of {holder.name} has the role {holder.role}"


def _from_elsewhere(method: str, headers: Headers) -> tuple[int, str] | None:
    host = headers.get("host", "")
    if not is_loopback(_hostname(host)):
        return (
            403,
            f"Host {host[:80]!r} is not loopback: without TURNOUT_ADMIN_TOKEN only this machine is served",
        )
    if method in READS:
        return None
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return 403, f"a page of {origin[:80]!r} may not change anything here"
    return None


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
