from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest
import yaml
from prometheus_client import parser

from gateway.admin import requests, views
from gateway.control.store import StoreUnavailable
from gateway.routing import change
from gateway.routing.state import EMPTY, encode_in_force
from tests.admin.conftest import Caller, replica
from tests.control.replica import ControlPlane

ROUTE = "/routes/number"


def manifest(plane: ControlPlane, canary: float = 10, **route: Any) -> str:
    variants = {
        "stable": {"model": "local/number@1", "weight": 100 - canary},
        "canary": {"model": "local/number@2", "weight": canary},
    }
    registries = {"local": {"type": "directory", "path": "models"}}
    document = {"registries": registries, "routes": {"number": {"variants": variants, **route}}}
    return yaml.safe_dump(document, sort_keys=False)


def detail(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["detail"])


class TestReading:
    async def test_probes(self, plane: ControlPlane, callers: Caller) -> None:
        caller = callers()
        assert (await caller.get("/livez")).status_code == 200
        assert (await caller.get("/readyz")).status_code == 503
        plane.run()
        await plane.apply()
        ready = await caller.get("/readyz")
        assert (ready.status_code, ready.json()["revision"]) == (200, "1.1")

    async def test_metrics_in_both_formats(self, callers: Caller) -> None:
        plain = await callers().get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain")
        assert list(parser.text_string_to_metric_families(plain.text))
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        assert (await callers().get("/metrics", headers=accept)).text.endswith("# EOF\n")

    async def test_routes(self, admin: httpx.AsyncClient) -> None:
        document = (await admin.get("/routes")).json()
        assert document["revision"] == "1.1"
        (route,) = document["routes"]
        one = await admin.get(ROUTE)
        assert one.json() == route
        assert one.headers["etag"] == '"1.1"'
        assert list(route["variants"]) == ["stable", "canary"], "the fallback first"
        canary = route["variants"]["canary"]
        assert (canary["version"], canary["weight"], canary["share"], canary["denied"]) == ("2", 10, 10, None)
        assert (canary["requests"], canary["errors"], canary["p99_ms"]) == (0, 0, None)
        assert "no route 'nobody'" in detail(await admin.get("/routes/nobody"), 404)

    async def test_a_denied_route(self, admin: httpx.AsyncClient) -> None:
        await admin.post(f"{ROUTE}/rollback", json={"reason": "5xx"}, headers={"turnout-actor": "ann"})
        route = (await admin.get(ROUTE)).json()
        assert route["variants"]["canary"]["denied"] == "2"
        assert (route["variants"]["canary"]["share"], route["variants"]["stable"]["share"]) == (0, 100)
        (deny,) = route["denies"]
        assert (deny["version"], deny["reason"], deny["actor"]) == ("2", "5xx", "ann")

    async def test_status(self, admin: httpx.AsyncClient, plane: ControlPlane, callers: Caller) -> None:
        await plane.store.report(replica(plane).member())
        document = (await admin.get("/status")).json()
        assert (document["revision"], document["ready"]) == ("1.1", True)
        (member,) = document["members"]
        assert (member["revision"], member["workers_ok"]) == ("1.1", 2)

        class Away:
            async def members(self) -> None:
                raise StoreUnavailable("away")

        alone = await callers(store=Away()).get("/api/v1/status")
        assert [member["replica"] for member in alone.json()["members"]] == ["one"]

    async def test_audit(self, admin: httpx.AsyncClient) -> None:
        await admin.patch(f"{ROUTE}/weights", json={"weights": {"canary": 20}})
        records = (await admin.get("/audit")).json()["records"]
        assert [(record["type"], record["revision"]) for record in records] == [
            ("put", "1.2"),
            ("put", "1.1"),
        ]
        assert len((await admin.get("/audit?limit=1")).json()["records"]) == 1

    @pytest.mark.parametrize(
        "limit", ["0", "-1", "1001", "x", "", "1.5", "٣", "0000000019999999999", "9" * 5000, "+5", "1_0"]
    )
    async def test_what_is_no_limit(self, admin: httpx.AsyncClient, limit: str) -> None:
        for path in ("/audit", "/versions?model=local/number"):
            answer = await admin.get(path, params={"model": "local/number", "limit": limit})
            assert "limit must be a number from 1 to 1000" in detail(answer, 422)

    async def test_registries_and_versions(self, admin: httpx.AsyncClient, plane: ControlPlane) -> None:
        (registry,) = (await admin.get("/registries")).json()["registries"]
        assert registry == {"name": "local", "type": "directory", "options": {"path": str(plane.models)}}
        versions = (await admin.get("/versions", params={"model": "local/number"})).json()["versions"]
        assert [(version["version"], version["aliases"]) for version in versions] == [
            ("3", []), ("2", ["challenger"]), ("1", ["champion"]),
        ]  # fmt: skip
        assert all(len(version["digest"]) == 64 for version in versions)
        assert detail(await admin.get("/versions"), 422)
        assert "not declared" in detail(await admin.get("/versions", params={"model": "x/y"}), 422)
        assert detail(await admin.get("/versions", params={"model": "local/nothing"}), 404)

    async def test_resolve(self, admin: httpx.AsyncClient) -> None:
        answer = (await admin.get("/resolve", params={"reference": "local/number@challenger"})).json()
        assert (answer["version"], answer["aliases"]) == ("2", ["challenger"])
        assert detail(await admin.get("/resolve", params={"reference": "local/number@9"}), 404)
        assert detail(await admin.get("/resolve", params={"reference": "number"}), 422)
        fetched = await admin.get("/resolve", params={"reference": "local/number@3", "fetch": "true"})
        assert len(fetched.json()["digest"]) == 64

    async def test_cache(self, admin: httpx.AsyncClient) -> None:
        await admin.get("/resolve", params={"reference": "local/number@3", "fetch": "true"})
        cached = (await admin.get("/cache")).json()["versions"]
        assert {entry["version"]: entry["in_use"] for entry in cached} == {"1": True, "2": True, "3": False}
        pruned = (await admin.post("/cache/prune")).json()["pruned"]
        assert len(pruned) == 1
        assert {entry["version"] for entry in (await admin.get("/cache")).json()["versions"]} == {"1", "2"}


class TestWriting:
    async def test_weights(self, admin: httpx.AsyncClient, plane: ControlPlane) -> None:
        answer = await admin.patch(
            f"{ROUTE}/weights",
            json={"weights": {"canary": 20}},
            headers={"turnout-actor": "ann\x7f", "if-match": '"1.1"'},
        )
        assert answer.status_code == 200
        assert answer.headers["etag"] == '"1.2"'
        assert answer.json()["revision"] == "1.2"
        assert plane.deliverer.held.state.routes["number"].variants["canary"].weight_bp == 2000
        assert (await plane.store.history())[0].actor == "ann"

    async def test_a_conflict_carries_what_is_in_force(
        self, admin: httpx.AsyncClient, plane: ControlPlane
    ) -> None:
        body = {"weights": {"canary": 20}}
        for method, path, content in (
            ("PATCH", f"{ROUTE}/weights", body),
            ("POST", "/apply", {"manifest": manifest(plane, 30), "base": str(plane.models.parent)}),
        ):
            answer = await admin.request(method, path, json=content, headers={"if-match": '"1.0"'})
            assert "read it again" in detail(answer, 409)
            assert answer.json()["current"] == "1.1"
        assert (
            await admin.patch(f"{ROUTE}/weights", json=body, headers={"if-match": "*"})
        ).status_code == 200

    @pytest.mark.parametrize("tag", ["x", '"1"', "W/1.1", '"1.1", "1.2"', "9" * 5000 + ".1"])
    async def test_what_is_no_revision(self, admin: httpx.AsyncClient, tag: str) -> None:
        answer = await admin.patch(f"{ROUTE}/weights", json={"weights": {}}, headers={"if-match": tag})
        assert detail(answer, 422).startswith("If-Match: ")

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", f"{ROUTE}/weights", b"{}"),
            ("PATCH", f"{ROUTE}/weights", b'{"weigths": {"canary": 5}}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": {"canary": 5}, "x": 1}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": {"canary": "5"}}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": {"canary": true}}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": {"canary": null}}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": {"canary": NaN}}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": {"canary": 1e999}}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": [5]}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": {"canary": 5}, "reason": 5}'),
            ("PATCH", f"{ROUTE}/weights", b'{"weights": ' + b"[" * 100_000),
            ("POST", f"{ROUTE}/rollback", b'{"vesrion": "1"}'),
            ("POST", f"{ROUTE}/rollback", b'{"version": 1}'),
            ("POST", f"{ROUTE}/rollback", b"[]"),
            ("POST", f"{ROUTE}/rollback", b"rollback!"),
            ("POST", f"{ROUTE}/rollback", b"\xff\xfe"),
            ("POST", f"{ROUTE}/rollback", b'{"reason": "\xff"}'),
            ("POST", f"{ROUTE}/rollback", b'{"reason": "\\ud800"}'),
            ("POST", "/plan", b"{}"),
            ("POST", "/apply", b'{"manifest": 5}'),
            ("POST", "/cache/prune", b'{"max_bytes": "all"}'),
        ],
    )  # fmt: skip
    async def test_a_body_that_is_wrong_changes_nothing(
        self, admin: httpx.AsyncClient, plane: ControlPlane, method: str, path: str, body: bytes
    ) -> None:
        said = detail(await admin.request(method, path, content=body), 422)
        assert "the body is not valid" in said or "weights.canary must be per cent" in said
        assert len(await plane.store.history()) == 1

    async def test_a_body_that_is_too_large_is_not_read_to_its_end(self, admin: httpx.AsyncClient) -> None:
        sent = 0

        async def endless() -> Any:
            nonlocal sent
            while True:
                sent += 1 << 20
                yield b" " * (1 << 20)

        answer = await admin.post("/apply", content=endless())
        assert "larger than" in detail(answer, 413)
        assert sent <= requests.BODY_LIMIT_BYTES + (2 << 20)

    @pytest.mark.parametrize(
        ("weights", "status", "says"),
        [
            ({"nobody": 5}, 404, "no variant 'nobody'"),
            ({"canary": 101}, 422, "not a weight"),
            ({"canary": -0.01}, 422, "not a weight"),
            ({"stable": 50, "canary": 60}, 422, "add up to 110 %"),
        ],
    )
    async def test_weights_that_make_no_sense(
        self, admin: httpx.AsyncClient, weights: dict[str, float], status: int, says: str
    ) -> None:
        assert says in detail(await admin.patch(f"{ROUTE}/weights", json={"weights": weights}), status)
        assert "no route" in detail(await admin.patch("/routes/x/weights", json={"weights": weights}), 404)

    async def test_rollback_and_allow(self, admin: httpx.AsyncClient, plane: ControlPlane) -> None:
        answer = await admin.post(f"{ROUTE}/rollback")
        assert (answer.status_code, answer.json()["message"]) == (200, "number: version 2 is denied")
        again = await admin.post(f"{ROUTE}/rollback", json={})
        assert again.json()["changed"] is False
        lifted = await admin.delete(f"{ROUTE}/denies/2", params={"reason": "mended"})
        assert lifted.json()["revision"] == "1.3"
        assert (await plane.store.history())[0].reason == "mended"
        assert "not denied" in detail(await admin.delete(f"{ROUTE}/denies/2"), 404)
        assert "not denied" in detail(await admin.delete(f"{ROUTE}/denies/a%2Fb"), 404)
        assert "no version '9'" in detail(await admin.post(f"{ROUTE}/rollback", json={"version": "9"}), 404)

    async def test_a_retried_rollback_is_the_same_one(
        self, admin: httpx.AsyncClient, plane: ControlPlane
    ) -> None:
        body = {"op_id": "pager-7", "version": "2"}
        first, second = [await admin.post(f"{ROUTE}/rollback", json=body) for _ in range(2)]
        assert (first.status_code, second.status_code) == (200, 200)
        assert [record.op_id for record in await plane.store.history() if record.type == "deny"] == [
            "pager-7"
        ]

    async def test_plan_and_apply(self, admin: httpx.AsyncClient, plane: ControlPlane) -> None:
        body = {"manifest": manifest(plane, 30), "base": str(plane.models.parent), "reason": "more"}
        plan = (await admin.post("/plan", json={**body})).json()
        assert plan["revision"] == "1.1"
        assert "~ routes.number.variants.canary.weight: 10 % -> 30 %" in plan["lines"]
        assert len(await plane.store.history()) == 1
        applied = await admin.post("/apply", json=body)
        assert (applied.json()["revision"], applied.headers["etag"]) == ("1.2", '"1.2"')
        assert applied.json()["lines"] == plan["lines"]
        again = (await admin.post("/apply", json=body)).json()
        assert (again["changed"], again["lines"]) == (False, [])

    async def test_a_manifest_that_is_refused_names_its_field(
        self, admin: httpx.AsyncClient, plane: ControlPlane
    ) -> None:
        answer = await admin.post("/plan", json={"manifest": manifest(plane, 10, timeout="soon")})
        assert "'soon' is no duration" in detail(answer, 422)
        assert answer.json()["field"] == "routes.number.timeout"

    async def test_a_rollback_that_the_store_did_not_hear_of_is_202(
        self, admin: httpx.AsyncClient, plane: ControlPlane
    ) -> None:
        for file in plane.mirror.parent.parent.glob("store/*"):
            file.unlink()
        answer = await admin.post(f"{ROUTE}/rollback")
        assert answer.status_code == 202
        assert (answer.json()["published"], answer.json()["revision"]) == (False, "1.1+1")
        assert plane.workers.denied == {"2"}

    async def test_an_emptied_store_is_given_back_what_is_held_here(
        self, admin: httpx.AsyncClient, plane: ControlPlane
    ) -> None:
        for file in plane.mirror.parent.parent.glob("store/*"):
            file.unlink()
        body = {"weights": {"canary": 20}}
        assert "turnout restore" in detail(await admin.patch(f"{ROUTE}/weights", json=body), 503)
        assert "nothing to adopt" in detail(await admin.post("/adopt"), 422)
        stale = await admin.post("/restore", headers={"if-match": '"1.1"'})
        assert "read it again" in detail(stale, 409)
        assert stale.json()["current"] == "0.0"
        restored = await admin.post(
            "/restore", json={"reason": "flushed"}, headers={"if-match": '"0.0"', "turnout-actor": "ann"}
        )
        assert (restored.status_code, restored.json()["revision"]) == (200, "2.1")
        (line,) = await plane.store.history()
        assert (line.type, line.actor, line.reason) == ("restore", "ann", "flushed (continues 1.1)")
        assert (await admin.patch(f"{ROUTE}/weights", json=body)).json()["revision"] == "2.2"

    async def test_what_the_store_holds_is_adopted(
        self, admin: httpx.AsyncClient, plane: ControlPlane
    ) -> None:
        held = await plane.store.read()
        assert held is not None
        elsewhere = change.set_weights(held, "number", {"canary": 77})
        file_store = plane.mirror.parent.parent / "store" / "state.json"
        file_store.write_bytes(encode_in_force(msgspec.structs.replace(held, state=elsewhere)))
        await plane.reader.synchronise()
        assert "another document" in detail(
            await admin.patch(f"{ROUTE}/weights", json={"weights": {"canary": 20}}), 503
        )
        assert plane.deliverer.held.state == held.state
        adopted = await admin.post("/adopt", headers={"if-match": '"1.1"'})
        assert (adopted.status_code, adopted.json()["revision"]) == (200, "2.1")
        assert plane.deliverer.held.state == elsewhere
        assert "unknown field" in detail(await admin.post("/adopt", json={"revision": "2.1"}), 422)

    async def test_names_and_reasons_are_cut(self, admin: httpx.AsyncClient, plane: ControlPlane) -> None:
        await admin.post(
            f"{ROUTE}/rollback", json={"reason": "x" * 10_000}, headers={"turnout-actor": "a" * 10_000}
        )
        record = (await plane.store.history())[0]
        assert (len(record.actor), len(record.reason)) == (80, 500)


class TestEvents:
    async def test_what_happens_is_streamed(self, plane: ControlPlane) -> None:
        # httpx's transport collects a whole answer, and this one never ends: the stream itself is asked.
        stream = views._Views(replica(plane))._stream()
        try:
            assert (await anext(stream)).startswith(b":")
            assert plane.deliverer.held is EMPTY
            plane.run()
            await plane.apply()
            seen: list[dict[str, Any]] = []
            async with asyncio.timeout(10):
                while not any(event["kind"] == "applied" for event in seen):
                    name, data, _, _ = (await anext(stream)).decode().split("\n")
                    seen.append(json.loads(data.removeprefix("data: ")))
                    assert name == f"event: {seen[-1]['kind']}"
            assert seen[-1]["revision"] == "1.1"
        finally:
            await stream.aclose()
        assert not plane.events._queues, "who has gone is forgotten"

    async def test_a_watcher_that_is_slow_loses_the_oldest_and_holds_up_nobody(
        self, plane: ControlPlane
    ) -> None:
        with plane.events.subscribe() as slow:
            for number in range(1000):
                plane.events.publish("tick", number=number)
            assert slow.qsize() == 256
            assert (await slow.get())["number"] == 1000 - 256

    async def test_a_quiet_stream_stays_open(
        self, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(views, "KEEP_ALIVE_S", 0.0)
        stream = views._Views(replica(plane))._stream()
        await anext(stream)
        assert await anext(stream) == b": still here\n\n"
        await stream.aclose()
