"""The fast lane and its bundles do not go round a limit."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.routing.state import Exposure, Revision
from gateway.serving.exposure import Allowed, Quotas, Wanted
from tests.serving.fake_engine import requests
from tests.serving.test_inference import DRAW_CANARY
from tests.states import in_force, route
from tests.wire.lane import ask, served_lane
from tests.wire.ticks import PLAIN, Ticks, body, clients_of, rows

SPLIT = {"stable 1": 50, "canary 2": 50}


class Giver:
    """Gives so many requests, once."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.quotas = Quotas(self.give)

    async def give(self, wanted: Wanted) -> Allowed:
        given, self.left = self.left if wanted.requests else 0, 0 if wanted.requests else self.left
        return Allowed(requests=given)


async def by_version(ticks: Ticks) -> dict[str, int]:
    found: dict[str, int] = {}
    for client in ticks.clients:
        status, head, _ = await client.answer()
        assert status == 200
        version = head.split(b"turnout-version: ")[1][:1].decode()
        found[version] = found.get(version, 0) + 1
    return found


@pytest.mark.parametrize("lines", [(), ("turnout-key: user-0",)])
@pytest.mark.parametrize("left", [0, 2, 5, 6, 100])
async def test_a_bundle_takes_what_is_left(lines: tuple[str, ...], left: int) -> None:
    """Six requests in one tick; the others are the fallback's."""
    giver = Giver(left)
    made = route(SPLIT, limits={"canary": Exposure(requests=1000)})
    async with served_lane(made, signature=rows(), quotas=giver.quotas) as served:
        ticks = await clients_of(served, 6)
        served.desk.draws = DRAW_CANARY
        ticks.send(*[PLAIN] * 6, lines=lines)
        found = await by_version(ticks)
        assert (found.get("2", 0), found.get("1", 0)) == (min(6, left), max(0, 6 - left))
        assert requests(served.desk.writer, "digits", "canary", "2") == ({200: min(6, left)} if left else {})


async def test_a_bundle_that_is_asked_again_one_by_one_is_spent_once() -> None:
    """One broken row fails the run of all; each is asked again alone, of the same version."""
    giver = Giver(4)
    made = route(SPLIT, limits={"canary": Exposure(requests=1000)})
    async with served_lane(made, signature=rows(), quotas=giver.quotas) as served:
        ticks = await clients_of(served, 4)
        served.desk.draws = DRAW_CANARY

        def fail(inputs: Any) -> None:
            if (inputs["x"] == 7).any():
                raise ValueError("seven")

        served.desk.engines["2"].fail = fail
        ticks.send(PLAIN, PLAIN, body([7, 7]), PLAIN)
        assert sorted(await ticks.statuses()) == [200, 200, 200, 500]
        assert requests(served.desk.writer, "digits", "canary", "2") == {200: 3, 500: 1}


async def test_without_a_key_a_limit_of_keys_leads_to_the_fallback_in_bundles_too() -> None:
    giver = Giver(0)
    made = route(SPLIT, limits={"canary": Exposure(keys=5)})
    async with served_lane(made, signature=rows(), quotas=giver.quotas) as served:
        served.desk.draws = DRAW_CANARY
        ticks = await clients_of(served, 3)
        ticks.send(*[PLAIN] * 3)
        assert await by_version(ticks) == {"1": 3}
        assert ticks.queued == [("Bundle", 3)]


async def test_a_head_that_is_known_is_counted_anew_each_time() -> None:
    """The memory of keys and that of heads both hold the version, not its allowance."""
    giver = Giver(3)
    made = route(SPLIT, limits={"canary": Exposure(requests=1000)})
    async with served_lane(made, signature=rows(), quotas=giver.quotas) as served:
        (client,) = (await clients_of(served, 1)).clients
        found = []
        for _ in range(5):
            client.writer.write(ask("", "turnout-key: user-0", body=PLAIN))
            _, head, _ = await client.answer()
            found.append(head.split(b"turnout-version: ")[1][:1])
        assert found == [b"2", b"2", b"2", b"1", b"1"]
        served.desk.live.swap(in_force(made, denied="2", revision=Revision(1, 2)))
        client.writer.write(ask("", "turnout-key: user-0", body=PLAIN))
        assert b"turnout-version: 1" in (await client.answer())[1]
