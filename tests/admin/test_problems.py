from __future__ import annotations

import inspect

import httpx
import pytest
from starlette.requests import Request

from gateway.admin.problems import HANDLED, handle
from gateway.control import weights_errors
from gateway.control.deliver import PrepareFailed
from gateway.control.store import Conflict, StoreError, StoreUnavailable
from gateway.control.weights_errors import WeightsError
from gateway.routing.change import ChangeRefused, UnknownName
from gateway.routing.manifest_values import ManifestError
from gateway.routing.state import Revision, StateError
from registry_client import errors as registry
from registry_client.errors import RegistryError
from tests.admin.conftest import Caller
from tests.control.replica import ControlPlane

REQUEST = Request({"type": "http"})


def every(module: object, base: type[Exception]) -> list[type[Exception]]:
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, base)]


def made(kind: type[Exception]) -> Exception:
    if kind is Conflict:
        return Conflict(Revision(1, 7))
    if issubclass(kind, ManifestError):
        return kind("routes.a", "is wrong")
    return kind("it went wrong")


@pytest.mark.parametrize(
    "kind",
    {
        *HANDLED,
        *every(registry, RegistryError),
        *every(weights_errors, WeightsError),
        ChangeRefused, UnknownName, PrepareFailed, Conflict, StoreUnavailable, StateError,
    },
    ids=lambda kind: kind.__name__,
)  # fmt: skip
async def test_every_error_has_a_status_and_a_title(kind: type[Exception]) -> None:
    answer = await handle(REQUEST, made(kind))
    assert answer.media_type == "application/problem+json"
    assert 400 <= answer.status_code < 600
    assert any(issubclass(kind, handled) for handled in HANDLED), "Starlette looks it up by its classes"


def test_what_a_store_raises_is_all_in_the_table() -> None:
    assert set(StoreError.__subclasses__()) <= set(HANDLED)


@pytest.mark.parametrize(
    ("error", "status", "more"),
    [
        (Conflict(Revision(2, 9)), 409, {"current": "2.9"}),
        (ManifestError("routes.a.timeout", "is wrong"), 422, {"field": "routes.a.timeout"}),
        (ManifestError("", "is wrong"), 422, {}),
        (UnknownName("no such"), 404, {}),
        (ChangeRefused("no"), 422, {}),
        (StoreUnavailable("away"), 503, {}),
        (StateError("damaged"), 503, {}),
        (PrepareFailed("no"), 422, {}),
        (weights_errors.WeightsRefused("pickle"), 422, {}),
        (weights_errors.CacheFull("full"), 507, {}),
        (registry.NotFound("x"), 404, {}),
        (registry.InvalidReference("x"), 422, {}),
        (registry.Unavailable("x"), 502, {}),
        (registry.IntegrityError("x"), 502, {}),
    ],
)
async def test_what_programs_rely_on(error: Exception, status: int, more: dict[str, str]) -> None:
    answer = httpx.Response(200, content=bytes((await handle(REQUEST, error)).body)).json()
    assert answer["status"] == status
    assert answer["detail"] == str(error)
    assert {key: value for key, value in answer.items() if key in ("current", "field")} == more


async def test_what_nobody_foresaw_is_a_problem_too_and_tells_nothing(
    plane: ControlPlane, callers: Caller
) -> None:
    def fail() -> bool:
        raise RuntimeError("password=hunter2")

    answer = await callers(ready=fail).get("/readyz")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in answer.text
    assert "RuntimeError" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/api/v1/routes", 405)]
)
async def test_starlettes_own_are_problems_too(callers: Caller, method: str, path: str, status: int) -> None:
    answer = await callers().request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
