"""The admin application over a control plane with fake workers, asked without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from gateway.admin.api import admin_app
from gateway.admin.replica import Replica
from gateway.control.store import Member
from gateway.telemetry.metrics import Standing, TurnoutCollector
from tests.control.replica import ControlPlane

TOKEN = "0123456789abcdef-token"
AUTHORISED = {"authorization": f"Bearer {TOKEN}"}


def replica(plane: ControlPlane, **changed: Any) -> Replica:
    held = plane.deliverer

    def member() -> Member:
        return Member(
            replica="one",
            epoch=held.held.revision.epoch,
            rev=held.held.revision.rev,
            denies_rev=0,
            deny_n=len(held.held.denies),
            sha256="5" * 64,
            status="NACK" if held.error else "ACK",
            error=held.error,
            workers_ok=2,
            workers_total=2,
        )

    standing = Standing(
        epoch=1, rev=1, control_plane_age_s=0, degraded=False, shares={}, rollback_ready={}, denies=0,
        workers_ready=2, workers_total=2, worker_restarts=0, cache_bytes=0, fetched_bytes=0,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "operations": plane.operations,
        "settlement": plane.settlement,
        "deliverer": plane.deliverer,
        "store": plane.store,
        "versions": plane.versions,
        "events": plane.events,
        "collector": TurnoutCollector(totals=dict, standing=lambda: standing),
        "totals": dict,
        "ready": lambda: held.acknowledged.revision.rev > 0,
        "degraded": lambda: ["the disk is full at /srv/secret"],
        "member": member,
        "rollback": lambda _: {"version": "1", "ready": True, "trouble": "", "leaves_open": ""},
    }
    return Replica(**{**fields, **changed})


Caller = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def callers(plane: ControlPlane) -> AsyncIterator[Caller]:
    """`callers(host=…, token=…)` → a client of an admin listener, as curl on the same machine."""
    clients: list[httpx.AsyncClient] = []

    def make(host: str = "127.0.0.1:8082", **changed: Any) -> httpx.AsyncClient:
        app = admin_app(replica(plane, **changed))
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        clients.append(httpx.AsyncClient(transport=transport, base_url=f"http://{host}"))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
async def admin(plane: ControlPlane, callers: Caller) -> httpx.AsyncClient:
    """A gateway that serves `number`, 90 % of version 1 and 10 % of version 2."""
    plane.run()
    await plane.apply()
    made = callers()
    made.base_url = "http://127.0.0.1:8082/api/v1"
    return made
