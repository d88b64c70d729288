"""The admin listener's application: the probes and metrics, and the API under /api/v1."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin.audit import audit_routes
from gateway.admin.auth import TRUSTED, AdminGuard
from gateway.admin.changes import change_routes
from gateway.admin.problems import HANDLED, handle, handle_bug, handle_http
from gateway.admin.replica import Replica
from gateway.admin.requests import json_response
from gateway.admin.views import view_routes
from gateway.telemetry.metrics import metrics_registry

PREFIX = "/api/v1"


def admin_app(replica: Replica) -> Starlette:
    """The application of the admin listener."""
    probes = _Probes(replica)
    return Starlette(
        routes=[
            Route("/livez", probes.livez),
            Route("/readyz", probes.readyz),
            Route("/metrics", probes.metrics),
            *view_routes(replica, PREFIX),
            *audit_routes(replica, PREFIX),
            *change_routes(replica, PREFIX),
        ],
        middleware=[Middleware(AdminGuard, token=replica.token)],
        exception_handlers={
            **dict.fromkeys(HANDLED, handle),
            HTTPException: handle_http,
            Exception: handle_bug,
        },
    )


class _Probes:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._metrics = metrics_registry(replica.collector)

    async def livez(self, _: Request) -> Response:
        return json_response({"live": True})

    async def readyz(self, request: Request) -> Response:
        """Ready as long as there is a state to serve; what is degraded is said beside it, to who may know."""
        ready = self._replica.ready()
        if not request.scope[TRUSTED]:
            return json_response({"ready": ready}, 200 if ready else 503)
        document = {
            "ready": ready,
            "revision": self._replica.deliverer.held.label,
            "degraded": self._replica.degraded(),
        }
        return json_response(document, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics), media_type=content_type)
