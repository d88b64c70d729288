"""Every path of the admin API, asked by every role: less privilege for rolling back than for rolling forward."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import httpx
import pytest
from starlette.routing import Route

from gateway.admin.api import admin_app
from gateway.admin.roles import WRITES, Role, needed
from gateway.admin.tokens import Holder
from tests.admin.conftest import TOKEN, Caller, replica
from tests.control.replica import ControlPlane, author

NUMBER = "/api/v1/routes/number"


def token_of(role: Role) -> str:
    return f"token-of-{role}"


HOLDERS = tuple(
    Holder(name=f"the-{role}", role=role, sha256=hashlib.sha256(token_of(role).encode()).digest())
    for role in Role
)


def bearer(role: Role) -> dict[str, str]:
    return {"authorization": f"Bearer {token_of(role)}"}


def writes(plane: ControlPlane) -> Iterator[tuple[str, str]]:
    """(method, path) of every path that changes something, its parameters filled in."""
    for route in admin_app(replica(plane)).routes:
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"GET", "HEAD"}:
            yield method, re.sub(r"\{[^}]*\}", "x", route.path)


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/metrics", Role.VIEWER),
        ("HEAD", "/api/v1/routes", Role.VIEWER),
        ("GET", "/api/v1/anything", Role.VIEWER),
        ("POST", f"{NUMBER}/rollback", Role.GUARD),
        ("POST", "/api/v1/rollback", Role.GUARD),
        ("POST", "/api/v1/hooks/alertmanager", Role.GUARD),
        ("PATCH", f"{NUMBER}/weights", Role.OPERATOR),
        ("PATCH", "/api/v1/weights", Role.OPERATOR),
        ("DELETE", f"{NUMBER}/denies/2", Role.RELEASER),
        ("POST", "/api/v1/apply", Role.RELEASER),
        ("POST", "/api/v1/plan", Role.RELEASER),
        ("POST", "/api/v1/cache/prune", Role.RELEASER),
        # What nobody has written down is a releaser's, and so is what only looks like something lower.
        ("POST", "/api/v1/anything", Role.RELEASER),
        ("PUT", f"{NUMBER}/weights", Role.RELEASER),
        ("POST", f"{NUMBER}/rollback/", Role.RELEASER),
        ("POST", f"{NUMBER}/x/rollback", Role.RELEASER),
        ("POST", "/API/v1/rollback", Role.RELEASER),
        ("POST", "/x/api/v1/rollback", Role.RELEASER),
        ("BREW", "/metrics", Role.RELEASER),
    ],
)
def test_what_a_request_takes(method: str, path: str, role: Role) -> None:
    assert needed(method, path) is role


async def test_every_write_is_refused_to_those_below_and_only_to_them(
    plane: ControlPlane, callers: Caller
) -> None:
    caller = callers("admin.example", holders=lambda: HOLDERS)
    found = list(writes(plane))
    assert {(method, path) for method, path in found} >= {
        ("POST", "/api/v1/apply"),
        ("PATCH", "/api/v1/weights"),
    }
    for method, path in found:
        for role in Role:
            answer = await caller.request(method, path, headers=bearer(role), content=b"[]")
            refused = answer.status_code == 403
            assert refused == (role < needed(method, path)), (method, path, role)
            if refused:
                assert answer.headers["content-type"] == "application/problem+json"
                detail = (
                    f"this takes the role {needed(method, path)}, and the token of the-{role} has the role"
                )
                assert answer.json()["detail"].startswith(detail)
    assert await plane.store.read() is None


def test_what_is_written_down_exists(plane: ControlPlane) -> None:
    routes = {
        (method, route.path)
        for route in admin_app(replica(plane)).routes
        if isinstance(route, Route)
        for method in route.methods or set()
    }
    assert {(method, path) for method, path, _ in WRITES} <= routes


async def test_everybody_with_a_token_may_look(plane: ControlPlane, callers: Caller) -> None:
    caller = callers("admin.example", token=TOKEN, holders=lambda: HOLDERS)
    for role in Role:
        for path in ("/metrics", "/api/v1/routes", "/api/v1/status"):
            assert (await caller.get(path, headers=bearer(role))).status_code == 200
        assert "degraded" in (await caller.get("/readyz", headers=bearer(role))).json()
    for headers in ({}, {"authorization": "Bearer token-of-nobody"}):
        refused = await caller.get("/metrics", headers=headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (await caller.get("/readyz", headers=headers)).json() == {"ready": False}


async def test_an_empty_file_of_tokens_opens_nothing(callers: Caller) -> None:
    caller = callers(holders=lambda: ())
    assert (await caller.get("/api/v1/routes")).status_code == 401
    assert (await caller.get("/livez")).status_code == 200


async def test_the_admin_token_is_a_releasers(callers: Caller) -> None:
    caller = callers("admin.example", token=TOKEN, holders=lambda: HOLDERS)
    answer = await caller.post("/api/v1/apply", headers={"authorization": f"Bearer {TOKEN}"}, content=b"[]")
    assert answer.status_code == 422


async def test_a_fetch_by_looking_takes_an_operator(plane: ControlPlane, callers: Caller) -> None:
    plane.run()
    await plane.apply()
    caller = callers("admin.example", holders=lambda: HOLDERS)
    reference = {"reference": "local/number@3"}
    for role in Role:
        assert (
            await caller.get("/api/v1/resolve", params=reference, headers=bearer(role))
        ).status_code == 200
        fetching = await caller.get(
            "/api/v1/resolve", params={**reference, "fetch": "true"}, headers=bearer(role)
        )
        assert fetching.status_code == (200 if role >= Role.OPERATOR else 403)


@pytest.mark.parametrize(
    ("claimed", "actor"),
    [
        (None, "the-operator (api)"),
        ("ann@laptop", "the-operator (ann@laptop)"),
        ("root", "the-operator (root)"),
    ],
)
async def test_the_name_of_the_token_is_in_the_history(
    plane: ControlPlane, callers: Caller, claimed: str | None, actor: str
) -> None:
    plane.run()
    await plane.apply()
    caller = callers("admin.example", holders=lambda: HOLDERS)
    headers = bearer(Role.OPERATOR) | ({"turnout-actor": claimed} if claimed else {})
    answer = await caller.patch(f"{NUMBER}/weights", json={"weights": {"canary": 20}}, headers=headers)
    assert answer.status_code == 200
    assert (await plane.store.history())[0].actor == actor


class TestAGuard:
    """A plain POST, with a token that can only roll back."""

    @pytest.fixture
    async def guard(self, plane: ControlPlane, callers: Caller) -> httpx.AsyncClient:
        plane.run()
        await plane.apply(names=("number", "letter"))
        caller = callers("admin.example", holders=lambda: HOLDERS)
        caller.headers.update(bearer(Role.GUARD))
        return caller

    @pytest.mark.parametrize("body", [b"", b"{}", b'{"version": "2", "reason": "5xx"}'])
    async def test_rolls_back(self, plane: ControlPlane, guard: httpx.AsyncClient, body: bytes) -> None:
        answer = await guard.post(f"{NUMBER}/rollback", content=body)
        assert (answer.status_code, answer.json()["message"]) == (200, "number: version 2 is denied")
        line = (await plane.store.history())[0]
        assert (line.type, line.actor) == ("deny", "the-guard (api)")

    async def test_the_same_one_again_undoes_no_decision(
        self, plane: ControlPlane, guard: httpx.AsyncClient
    ) -> None:
        for expected in ("number: version 2 is denied", "had its answer before"):
            answer = await guard.post(f"{NUMBER}/rollback", json={"op_id": "cron-7"})
            assert answer.status_code == 200 and expected in answer.json()["message"]
            if plane.deliverer.newest.denies:
                await plane.operations.allow("number", "2", author("allow"))
        assert plane.workers.denied == set()

    @pytest.mark.parametrize(
        ("path", "body", "status", "says"),
        [
            ("/api/v1/routes/nobody/rollback", b"", 404, "no route 'nobody'"),
            (f"{NUMBER}/rollback", b'{"version": "9"}', 404, "no version '9'"),
            (f"{NUMBER}/rollback", b"roll it back!", 422, "the body is not valid"),
            (f"{NUMBER}/rollback", b'{"alerts": []}', 422, "unknown field `alerts`"),
            (f"{NUMBER}/rollback", b'{"' + b"x" * 1_000_000 + b'": 1}', 422, "unknown field `xxx"),
            (f"{NUMBER}/rollback", '{"\x1b[2J\u2028": 1}'.encode(), 422, "the body is not valid"),
            ("/api/v1/rollback", b"", 422, "`routes`"),
            ("/api/v1/rollback", b'{"routes": {}}', 422, "at least one"),
            ("/api/v1/rollback", b'{"routes": {"number": null, "nobody": null}}', 404, "no route 'nobody'"),
            (
                "/api/v1/rollback",
                b'{"routes": {"number": "' + b"x" * 1_000_000 + b'"}}',
                404,
                "no version 'xxx",
            ),
            ("/api/v1/rollback", b" " * 9_000_000, 413, "larger than"),
        ],
    )
    async def test_what_is_refused_has_its_line(
        self, plane: ControlPlane, guard: httpx.AsyncClient, path: str, body: bytes, status: int, says: str
    ) -> None:
        answer = await guard.post(path, content=body)
        assert answer.status_code == status
        assert says in answer.json()["detail"]
        line, applied = await plane.store.history()
        assert (line.type, line.actor) == ("reject", "the-guard (api)")
        assert says in line.reason and len(line.reason) <= 1100 and line.reason.isprintable()
        assert (line.epoch, line.rev) == (applied.epoch, applied.rev)
        assert plane.workers.denied == set()

    async def test_no_token_answers_for_another_or_for_an_alert(
        self, plane: ControlPlane, guard: httpx.AsyncClient
    ) -> None:
        await guard.post("/api/v1/routes/nobody/rollback", json={"op_id": "alert-1"})
        assert (await plane.store.history(1))[0].op_id == "the-guard/alert-1|1.1"
        outcome = await plane.operations.obey(lambda: {"number": None}, author("alert-1"))
        assert outcome.changed

    async def test_two_long_ids_that_begin_alike_are_two(
        self, plane: ControlPlane, guard: httpx.AsyncClient
    ) -> None:
        await guard.post("/api/v1/routes/nobody/rollback", json={"op_id": "x" * 300 + "1"})
        for _ in range(2):
            await guard.post(f"{NUMBER}/rollback", json={"op_id": "x" * 300 + "2"})
        assert plane.workers.denied == {"2"}
        assert [record.type for record in await plane.store.history()] == ["deny", "reject", "put"]

    async def test_a_person_who_mistypes_leaves_no_line(
        self, plane: ControlPlane, guard: httpx.AsyncClient
    ) -> None:
        answer = await guard.post("/api/v1/routes/nobody/rollback", headers=bearer(Role.RELEASER))
        assert answer.status_code == 404
        assert len(await plane.store.history()) == 1
