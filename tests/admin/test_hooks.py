"""Alertmanager's webhook, as its payload is documented and as somebody else's JSON."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.admin import hooks
from gateway.admin.alertmanager import Alert, author_of, routes_first, routes_of
from gateway.admin.roles import Role
from gateway.routing.change import ChangeRefused
from tests.admin.conftest import Caller
from tests.admin.test_roles import HOLDERS, bearer
from tests.control.replica import ControlPlane, author

HOOK = "/api/v1/hooks/alertmanager"


def alert(route: str | None = "number", status: str = "firing", **changed: Any) -> dict[str, Any]:
    """As Alertmanager writes one."""
    labels = {"alertname": "ErrorBudget", "severity": "page"} | (
        {"route": route} if route is not None else {}
    )
    return {
        "status": status,
        "labels": labels,
        "annotations": {"summary": "5 % of the answers are errors"},
        "startsAt": "2026-11-23T14:03:00.123Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph?g0.expr=up",
        "fingerprint": f"fp-{route}",
        **changed,
    }


def webhook(*alerts: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "receiver": "turnout",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {"alertname": "ErrorBudget"},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "version": "4",
        "groupKey": '{}:{alertname="ErrorBudget"}',
        "truncatedAlerts": 0,
        **changed,
    }


@pytest.fixture
async def pager(plane: ControlPlane, callers: Caller) -> httpx.AsyncClient:
    """Alertmanager, with a guard's token, of a gateway that serves `number` and `letter`."""
    plane.run()
    await plane.apply(names=("number", "letter"))
    caller = callers("admin.example", holders=lambda: HOLDERS)
    caller.headers.update({"user-agent": "Alertmanager/0.25.0"} | bearer(Role.GUARD))
    return caller


class TestObeyed:
    async def test_what_fires_is_rolled_back(self, plane: ControlPlane, pager: httpx.AsyncClient) -> None:
        answer = await pager.post(HOOK, json=webhook(alert()))
        assert answer.status_code == 200
        (told,) = answer.json()["alerts"]
        assert (told["fingerprint"], told["changed"], told["refused"]) == ("fp-number", True, False)
        assert (told["message"], told["revision"]) == ("number: version 2 is denied", "1.2")
        line = (await plane.store.history())[0]
        assert (line.type, line.actor) == ("deny", "the-guard (alertmanager)")
        assert line.reason == "alert 'ErrorBudget': 5 % of the answers are errors"
        assert line.op_id == told["op_id"]

    async def test_what_is_resolved_does_nothing(self, plane: ControlPlane, pager: httpx.AsyncClient) -> None:
        answer = await pager.post(HOOK, json=webhook(alert(status="resolved"), alert("x", "resolved")))
        assert (answer.status_code, answer.json()) == (200, {"alerts": []})
        assert len(await plane.store.history()) == 1

    async def test_the_same_alert_again_undoes_no_decision(
        self, plane: ControlPlane, pager: httpx.AsyncClient
    ) -> None:
        await pager.post(HOOK, json=webhook(alert()))
        await plane.operations.allow("number", "2", author("allow"))
        again = await pager.post(HOOK, json=webhook(alert(), groupKey="another group"))
        assert again.status_code == 200
        assert "had its answer before" in again.json()["alerts"][0]["message"]
        assert plane.workers.denied == set()
        assert len(await plane.store.history()) == 3
        # It went out and is back: another one.
        await pager.post(HOOK, json=webhook(alert(startsAt="2026-11-23T15:00:00Z")))
        assert plane.workers.denied == {"2"}

    async def test_each_alert_has_its_line_and_none_stops_another(
        self, plane: ControlPlane, pager: httpx.AsyncClient
    ) -> None:
        answer = await pager.post(
            HOOK,
            json=webhook(
                alert(None, fingerprint="a"),
                alert("nobody", fingerprint="b"),
                alert("number", fingerprint="c"),
                alert("number", fingerprint="d"),
                alert("letter", fingerprint="e", annotations={"version": "9"}),
                alert("letter", fingerprint="f", annotations={"version": "2"}),
            ),
        )
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        told = {answer["fingerprint"]: answer for answer in answer.json()["alerts"]}
        assert {name: (one["refused"], one["changed"]) for name, one in told.items()} == {
            "a": (True, False), "b": (True, False), "c": (False, True), "d": (False, False),
            "e": (True, False), "f": (False, True),
        }  # fmt: skip
        for says in ("names no route: give it a label turnout_route or route", "'nobody'", "no version '9'"):
            assert says in answer.json()["detail"]
        # A refusal is that of one revision: when something has changed, the alert is tried again.
        lines = {line.op_id.partition("|")[0]: line.type for line in await plane.store.history()}
        assert {name: lines[one["op_id"]] for name, one in told.items()} == {
            "a": "reject", "b": "reject", "c": "deny", "d": "reject", "e": "reject", "f": "deny",
        }  # fmt: skip
        assert len(lines) == 7
        assert {key.route for key in plane.deliverer.held.denies} == {"number", "letter"}
        refused = webhook(alert(None, fingerprint="a"), alert("nobody", fingerprint="b"))
        assert (await pager.post(HOOK, json=refused)).status_code == 422
        assert len(await plane.store.history()) == 9
        # The same post again: nothing more, and no complaint that pages somebody a second time.
        assert (await pager.post(HOOK, json=refused)).status_code == 200
        assert len(await plane.store.history()) == 9

    async def test_a_store_that_is_away_keeps_nothing_from_rolling_back(
        self, plane: ControlPlane, pager: httpx.AsyncClient
    ) -> None:
        for file in plane.mirror.parent.parent.glob("store/*"):
            file.unlink()
        answer = await pager.post(HOOK, json=webhook(alert()))
        assert answer.status_code == 200
        assert plane.workers.denied == {"2"}

    async def test_a_line_that_cannot_be_written_has_alertmanager_try_again(
        self, plane: ControlPlane, pager: httpx.AsyncClient
    ) -> None:
        kept = [(file, file.read_bytes()) for file in plane.mirror.parent.parent.glob("store/*")]
        for file, _ in kept:
            file.unlink()
        (plane.mirror.parent.parent / "store" / "lock").mkdir()
        answer = await pager.post(HOOK, json=webhook(alert("nobody"), alert("number")))
        assert answer.status_code == 503
        assert plane.workers.denied == {"2"}
        (plane.mirror.parent.parent / "store" / "lock").rmdir()
        for file, content in kept:
            file.write_bytes(content)
        again = await pager.post(HOOK, json=webhook(alert("nobody")))
        assert again.status_code == 422
        assert (await plane.store.history())[0].type == "reject"

    async def test_more_than_a_gateway_takes_at_once(
        self, plane: ControlPlane, pager: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hooks, "ALERTS_LIMIT", 3)
        crowd = [alert("number", fingerprint=str(number)) for number in range(20)]
        answer = await pager.post(HOOK, json=webhook(*crowd, alert("letter", fingerprint="last")))
        assert "18 alerts more than 3 in one post are passed over" in answer.json()["detail"]
        assert {key.route for key in plane.deliverer.held.denies} == {"number", "letter"}
        assert len(await plane.store.history()) == 5


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"alerts":',
        b"[" * 100_000,
        b"a" * 1_000_000,
        json.dumps({"text": "A build has failed", "attachments": []}).encode(),
        json.dumps(webhook(alert(), version="5")).encode(),
        json.dumps(webhook(alert(), version=4)).encode(),
        json.dumps(webhook(alert(status="exploding"))).encode(),
        json.dumps(webhook(alert(labels={"route": ["number"]}))).encode(),
        json.dumps(webhook(alert(labels={"route": "number", "x": 5}))).encode(),
        json.dumps(webhook({"labels": {"route": "number"}, "status": "firing"})).encode(),
        json.dumps(webhook(alerts={"route": "number"})).encode(),
    ],
)
async def test_what_is_no_webhook_is_one_line_and_changes_nothing(
    plane: ControlPlane, pager: httpx.AsyncClient, body: bytes
) -> None:
    answer = await pager.post(HOOK, content=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    line, _ = await plane.store.history()
    assert line.type == "reject" and "this is no webhook of Alertmanager: " in line.reason
    assert len(line.reason) < 1000
    assert plane.workers.denied == set()


def made(**changed: Any) -> Alert:
    fields: dict[str, Any] = {"status": "firing", "labels": {}, "starts_at": "t", "fingerprint": "f"}
    return Alert(**fields | changed)


@pytest.mark.parametrize(
    ("labels", "annotations", "routes"),
    [
        ({"route": "fraud"}, {}, {"fraud": None}),
        ({"turnout_route": "fraud", "route": "web@kubernetes"}, {}, {"fraud": None}),
        ({"turnout_route": "", "route": "fraud"}, {}, {"fraud": None}),
        ({"route": "fraud", "version": "7"}, {}, {"fraud": "7"}),
        ({"route": "fraud", "version": "7"}, {"version": "8"}, {"fraud": "7"}),
        ({"route": "fraud", "version": "v1.2", "turnout_version": "7"}, {}, {"fraud": "7"}),
        ({"route": "fraud"}, {"version": "8"}, {"fraud": "8"}),
        ({"route": "fraud", "version": ""}, {}, {"fraud": None}),
        ({"route": "fraud,digits"}, {"version": "7,"}, {"fraud": "7", "digits": None}),
    ],
)
def test_the_labels_name_the_route(
    labels: dict[str, str], annotations: dict[str, str], routes: dict[str, str | None]
) -> None:
    assert routes_of(made(labels=labels, annotations=annotations)) == routes


def test_annotations_name_no_route() -> None:
    with pytest.raises(ChangeRefused, match=r"alert 'X\\n' names no route"):
        routes_of(made(labels={"alertname": "X\n"}, annotations={"route": "fraud"}))


def test_what_makes_two_alerts_the_same() -> None:
    ids = {author_of(made(fingerprint=f, starts_at=t, annotations={"summary": s}), "a").op_id
           for f, t, s in (("f", "t", "5 %"), ("f", "t", "6 %"))}  # fmt: skip
    assert len(ids) == 1
    others = {author_of(made(fingerprint=f, starts_at=t), "a").op_id for f, t in (("g", "t"), ("f", "u"))}
    assert len(ids | others) == 3
    assert author_of(made(annotations={"description": "x\x1b[2J\ny"}), "a").reason == "alert '': x[2J y"


def test_a_hundred_alerts_of_one_route_keep_no_other_waiting() -> None:
    crowd = [made(labels={"route": "a"}, fingerprint=str(number)) for number in range(100)]
    ranked = routes_first([*crowd, made(labels={"route": "b"}), made()])
    assert [one.labels.get("route") for one in ranked[:4]] == ["a", "b", None, "a"]
    assert [one.fingerprint for one in ranked if one.labels.get("route") == "a"] == [
        str(n) for n in range(100)
    ]
