from __future__ import annotations

import httpx
import pytest

from gateway.cli.leases import exposure_lines
from gateway.telemetry.exposure import Exposed
from gateway.telemetry.observations import Labels
from tests.admin.conftest import Caller
from tests.admin.test_api import ROUTE, detail, manifest
from tests.control.replica import ControlPlane


def leased(plane: ControlPlane, lease: str = "10m") -> str:
    return manifest(plane).replace("weight: 10\n", f"weight: 10\n        lease: {lease}\n")


async def test_renewing(plane: ControlPlane, admin: httpx.AsyncClient) -> None:
    base = str(plane.models.parent)
    applied = await admin.post("/apply", json={"manifest": leased(plane), "base": base})
    assert "+ routes.number.variants.canary.lease: 10m" in applied.json()["lines"], applied.text
    for path in (f"{ROUTE}/variants/canary/lease", f"{ROUTE}/lease"):
        renewed = await admin.post(path)
        assert (renewed.status_code, renewed.json()["changed"]) == (200, False)
        assert renewed.json()["message"] == "number: the lease of version 2 is renewed"
    history = (await admin.get("/audit")).json()["records"]
    assert [record["type"] for record in history] == ["put", "put"], "a renewal is no change"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/routes/nobody/lease", 404, "there is no route 'nobody'"),
        (f"{ROUTE}/variants/b/lease", 404, "route number has no variant 'b'"),
        (f"{ROUTE}/variants/stable/lease", 422, "stable of number has no lease to renew"),
        (f"{ROUTE}/lease", 422, "no variant of number has a lease to renew"),
    ],
)
async def test_refused(admin: httpx.AsyncClient, path: str, status: int, text: str) -> None:
    assert text in detail(await admin.post(path), status)


async def test_what_is_limited_is_described(
    plane: ControlPlane, callers: Caller, admin: httpx.AsyncClient
) -> None:
    exposed = {
        Labels("number", "canary", "2"): Exposed(
            used={"requests": 40, "errors": 1}, limits={"requests": 100, "errors": 5}, lease_s=61.26
        ),
        Labels("other", "stable", "1"): Exposed(used={}, limits={}, lease_s=1.0),
    }
    variants = (await callers(exposed=lambda: exposed).get(f"/api/v1{ROUTE}")).json()["variants"]
    assert variants["canary"]["exposure"] == {
        "requests": {"used": 40, "limit": 100},
        "errors": {"used": 1, "limit": 5},
        "lease": {"left_s": 61.3},
    }
    assert "exposure" not in variants["stable"]
    assert list(exposure_lines(variants)) == [
        "canary: 40 of 100 requests, 1 of 5 errors, its lease ends in 61.3 s"
    ]
