from __future__ import annotations

import json
import time
from typing import Any

import httpx
import msgspec
import pytest

from gateway.control.file_store import FileStore
from tests.admin.test_api import ROUTE, detail
from tests.contracts.chain import again
from tests.control.replica import ControlPlane

AUDIT = "/audit"


async def four_lines(admin: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The newest last."""
    await admin.patch(f"{ROUTE}/weights", json={"weights": {"canary": 20}, "reason": "more"})
    await admin.post(f"{ROUTE}/rollback", json={"reason": "5xx"}, headers={"turnout-actor": "ann"})
    await admin.delete(f"{ROUTE}/denies/2")
    records = (await admin.get(AUDIT)).json()["records"]
    assert [record["type"] for record in records] == ["undeny", "deny", "put", "put"]
    return list(reversed(records))


class TestAsOf:
    async def test_each_mix_at_its_time(self, admin: httpx.AsyncClient) -> None:
        records = await four_lines(admin)
        for record, share in zip(records, (10, 20, 0, 20), strict=True):
            document = (await admin.get(AUDIT, params={"at": record["us"], "route": "number"})).json()
            assert (document["at_us"], document["revision"]) == (record["us"], record["revision"])
            served = document["routes"]["number"]
            assert served["serving"]["canary"]["share"] == share
            assert served["since"]["us"] == record["us"]
        assert served["until"] is None
        everything = (await admin.get(AUDIT, params={"at": records[1]["us"]})).json()
        assert everything["routes"]["number"]["until"]["reason"] == "5xx"

    async def test_a_time_with_its_zone(self, admin: httpx.AsyncClient) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 2))
        assert (await admin.get(AUDIT, params={"at": f"{now}Z"})).json()["routes"]["number"]

    @pytest.mark.parametrize(
        ("at", "says"),
        [
            ("", "is no time"),
            ("yesterday", "is no time"),
            ("2026-11-23T14:03", "is no time"),  # whose zone?
            ("9" * 40, "is no time"),
            ("-1", "is no time"),
            ("٣", "is no time"),
            ("9999-01-01T00:00:00Z", "lies in the future"),
            ("1000000", "begins with revision 1.1"),
        ],
    )
    async def test_what_is_no_such_time(self, admin: httpx.AsyncClient, at: str, says: str) -> None:
        assert says in detail(await admin.get(AUDIT, params={"at": at}), 422)

    async def test_no_such_route(self, admin: httpx.AsyncClient) -> None:
        at = str(time.time_ns() // 1000)
        assert "no route 'nobody'" in detail(
            await admin.get(AUDIT, params={"at": at, "route": "nobody"}), 404
        )


async def test_the_lines_of_one_route(admin: httpx.AsyncClient) -> None:
    await four_lines(admin)
    of_route = (await admin.get(AUDIT, params={"route": "number", "limit": 3})).json()["records"]
    assert [record["type"] for record in of_route] == ["undeny", "deny", "put"]
    assert (await admin.get(AUDIT, params={"route": "nobody"})).json()["records"] == []


class TestVerify:
    async def test_whole(self, admin: httpx.AsyncClient) -> None:
        records = await four_lines(admin)
        verdict = (await admin.get(f"{AUDIT}/verify", params={"head": records[0]["head"]})).json()
        assert (verdict["broken"], verdict["lines"], verdict["head"]) == ("", 4, records[-1]["head"])
        assert (verdict["oldest"], verdict["newest"]) == ("1.1", "1.4")

    async def test_a_head_that_it_never_had(self, admin: httpx.AsyncClient) -> None:
        verdict = (
            await admin.get(f"{AUDIT}/verify", params=[("head", "a" * 64), ("head", "x" * 9999)])
        ).json()
        assert f"the head {'a' * 64} that was given is not in the history" in verdict["broken"]

    async def test_too_many_heads(self, admin: httpx.AsyncClient) -> None:
        many = [("head", str(n)) for n in range(101)]
        assert "at most 100" in detail(await admin.get(f"{AUDIT}/verify", params=many), 422)

    async def test_the_replica_itself_is_a_witness(
        self, admin: httpx.AsyncClient, plane: ControlPlane
    ) -> None:
        """Somebody writes all lines anew, with hashes that agree, and the head in the store's state too."""
        await four_lines(admin)
        assert isinstance(plane.store, FileStore)
        state = plane.store.state_path
        history = state.with_name("history.jsonl")
        rows = [json.loads(line) for line in history.read_text().splitlines()]
        rows[1]["actor"] = "somebody else"
        forged = again(rows)
        history.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in forged))
        state.write_text(json.dumps({**json.loads(state.read_text()), "head": forged[-1]["head"]}))
        broken = (await admin.get(f"{AUDIT}/verify")).json()["broken"]
        assert "that this replica took with revision 1.4 is not in the history" in broken
