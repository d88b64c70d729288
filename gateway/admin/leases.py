"""Renewing leases over the admin API."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin.replica import Replica
from gateway.admin.requests import outcome_response


def lease_routes(replica: Replica, prefix: str) -> list[Route]:
    """Of one variant, and of all of a route that have a lease."""

    async def renew(request: Request) -> Response:
        parameters = request.path_params
        return outcome_response(
            await replica.operations.renew(parameters["route"], parameters.get("variant"))
        )

    route = f"{prefix}/routes/{{route}}"
    return [
        Route(f"{route}/lease", renew, methods=["POST"]),
        Route(f"{route}/variants/{{variant}}/lease", renew, methods=["POST"]),
    ]
