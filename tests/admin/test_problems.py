"""Every error that the admin API can meet on purpose has a status, and a conflict names the present revision."""

from __future__ import annotations

import inspect

import msgspec
import pytest
from starlette.requests import Request

from gateway.admin.problems import HANDLED, handle
from gateway.control import store, weights_errors
from gateway.control.deliver import PrepareFailed
from gateway.routing import change, manifest
from gateway.routing.state import Revision
from registry_client import errors as registry


def errors_of(module: object) -> list[type[Exception]]:
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("module", [change, manifest, registry, weights_errors])
def test_the_table_is_complete(module: object) -> None:
    for kind in errors_of(module):
        assert issubclass(kind, HANDLED), kind
    assert issubclass(PrepareFailed, HANDLED)
    assert issubclass(store.StoreUnavailable, HANDLED)


async def answer(error: Exception) -> tuple[int, dict[str, object]]:
    response = await handle(Request({"type": "http", "headers": []}), error)
    assert response.media_type == "application/problem+json"
    document = msgspec.json.decode(bytes(response.body))
    assert document["status"] == response.status_code
    return response.status_code, document


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (change.UnknownName("there is no route 'x'"), 404),
        (change.ChangeRefused("no"), 422),
        (store.StoreUnavailable("down"), 503),
        (PrepareFailed("no"), 422),
        (registry.NotFound("no"), 404),
        (registry.Unavailable("no"), 502),
        (registry.IntegrityError("no"), 502),
        (weights_errors.WeightsRefused("a pickle"), 422),
        (weights_errors.CacheFull("full"), 507),
    ],
)
async def test_statuses(error: Exception, status: int) -> None:
    assert (await answer(error))[0] == status


async def test_a_conflict_names_the_present_revision_and_a_manifest_error_its_field() -> None:
    status, document = await answer(store.Conflict(Revision(1, 7)))
    assert (status, document["current"]) == (409, "1.7")
    status, document = await answer(manifest.ManifestError("routes.a.fallback", "no variant"))
    assert (status, document["field"]) == (422, "routes.a.fallback")
