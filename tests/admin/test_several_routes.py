"""Changes of several routes in one request: one revision, all of them or none."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.admin.conftest import Caller
from tests.control.replica import ControlPlane


@pytest.fixture
async def both(plane: ControlPlane, callers: Caller) -> httpx.AsyncClient:
    """A gateway that serves `number` and `letter`, 90 % of version 1 and 10 % of version 2 each."""
    plane.run()
    await plane.apply(names=("number", "letter"))
    made = callers()
    made.base_url = "http://127.0.0.1:8082/api/v1"
    return made


async def test_weights(both: httpx.AsyncClient, plane: ControlPlane) -> None:
    body = {"routes": {"number": {"canary": 20}, "letter": {"canary": 30}}, "reason": "wider"}
    answer = await both.patch("/weights", json=body, headers={"if-match": '"1.1"'})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1.2"')
    routes = plane.deliverer.held.state.routes
    assert [routes[name].variants["canary"].weight_bp for name in ("number", "letter")] == [2000, 3000]
    assert len(await plane.store.history()) == 2
    stale = await both.patch("/weights", json=body, headers={"if-match": '"1.1"'})
    assert (stale.status_code, stale.json()["current"]) == (409, "1.2")


async def test_a_rollback(both: httpx.AsyncClient, plane: ControlPlane) -> None:
    answer = await both.post("/rollback", json={"routes": {"number": None, "letter": "2"}, "reason": "5xx"})
    assert answer.status_code == 200
    message = "number: version 2 is denied; letter: version 2 is denied"
    assert (answer.json()["message"], answer.json()["revision"]) == (message, "1.2")
    line = (await plane.store.history())[0]
    assert ([change["route"] for change in line.changes], line.reason) == (["letter", "number"], "5xx")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("PATCH", "/weights", {}, 422, "routes"),
        ("PATCH", "/weights", {"routes": {}}, 422, "at least one"),
        ("PATCH", "/weights", {"routes": ["number"]}, 422, "the body is not valid"),
        ("PATCH", "/weights", {"routes": {"number": {}}}, 422, "routes.number is empty"),
        (
            "PATCH",
            "/weights",
            {"routes": {"number": {"canary": "20"}}},
            422,
            "routes.number.canary must be per",
        ),
        (
            "PATCH",
            "/weights",
            {"routes": {"number": {"canary": 20}, "letter": {"canary": 120}}},
            422,
            "letter",
        ),
        ("PATCH", "/weights", {"routes": {"number": {"canary": 20}, "nobody": {"canary": 1}}}, 404, "nobody"),
        ("PATCH", "/weights", {"weights": {"canary": 20}}, 422, "unknown field"),
        ("POST", "/rollback", {}, 422, "routes"),
        ("POST", "/rollback", {"routes": {}}, 422, "at least one"),
        ("POST", "/rollback", {"routes": ["number"]}, 422, "the body is not valid"),
        ("POST", "/rollback", {"routes": {"number": 2}}, 422, "the body is not valid"),
        ("POST", "/rollback", {"routes": {"number": None, "nobody": None}}, 404, "nobody"),
        ("POST", "/rollback", {"routes": {"number": None, "letter": "9"}}, 404, "no version '9'"),
    ],
)
async def test_one_that_is_refused_refuses_all(
    both: httpx.AsyncClient, plane: ControlPlane, method: str, path: str, body: Any, status: int, says: str
) -> None:
    before = plane.deliverer.held
    answer = await both.request(method, path, json=body)
    assert answer.status_code == status and says in answer.json()["detail"]
    assert plane.deliverer.held is before
    assert len(await plane.store.history()) == 1
