"""Limited versions in one worker: spent from what it was given, answered by the fallback where that is used up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.routing.state import Exposure, Revision
from gateway.serving.exposure import Allowed, Quotas, Wanted
from gateway.serving.tensors import InferenceError
from tests.serving.test_inference import DRAW_CANARY, SOON_S, Desk, failure, value
from tests.states import in_force, route

SPLIT = {"stable 1": 90, "canary 2": 10}
KEY = b"turnout-key"


class Supervisor:
    """Gives what it is told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Wanted] = []
        self.gives = Allowed()
        self.open = asyncio.Event()
        self.open.set()
        self.now = 1000.0
        self.quotas = Quotas(self.ask, lambda: self.now)

    async def ask(self, wanted: Wanted) -> Allowed:
        self.asked.append(wanted)
        await self.open.wait()
        gives = self.gives
        if isinstance(gives, InferenceError):
            raise gives
        return Allowed(
            requests=gives.requests if wanted.requests else 0,
            errors=gives.errors,
            keys=[key for key in wanted.keys if gives.keys],
            lease_s=gives.lease_s,
        )

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(SOON_S):
            while not condition():
                await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)  # the answer is on its way


def limited(**limits: int) -> Any:
    return route(SPLIT, limits={"canary": Exposure(**limits)}, overrides=True)


async def desk_of(supervisor: Supervisor, made: Any, **gives: Any) -> Desk:
    supervisor.gives = Allowed(**gives)
    desk = Desk(made, quotas=supervisor.quotas)
    desk.draws = DRAW_CANARY
    await supervisor.until(lambda: supervisor.asked)
    return desk


async def answers(desk: Desk, count: int, **options: Any) -> list[float]:
    return [value(await desk.ask(**options)) for _ in range(count)]


async def test_each_request_is_spent_and_then_the_fallback_answers() -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(requests=100), requests=3)
    supervisor.gives = Allowed()
    assert await answers(desk, 5) == [201, 201, 201, 101, 101]
    assert desk.counted("digits", "stable", "1") == {200: 2}
    first = supervisor.asked[0]
    assert (first.route, first.digest, first.spent, first.errors) == ("digits", "2" * 64, False, 0)
    await supervisor.until(lambda: supervisor.asked[-1].spent)


async def test_it_asks_ahead_for_more_and_for_more_at_once() -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(requests=100), requests=4)
    assert await answers(desk, 40) == [201] * 40
    wanted = [each.requests for each in supervisor.asked if each.requests]
    assert not any(each.spent for each in supervisor.asked)
    assert wanted == sorted(wanted) and wanted[-1] > wanted[0]


@pytest.mark.parametrize(
    ("version", "headers"), [(None, {b"turnout-variant": b"canary"}), ("2", {}), (None, {KEY: b"user-0"})]
)
async def test_overrides_explicit_versions_and_remembered_keys_count_as_well(
    version: str | None, headers: dict[bytes, bytes]
) -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(requests=100), requests=2)
    supervisor.gives = Allowed()
    assert await answers(desk, 2, version=version, headers=headers) == [201, 201]
    third = await desk.ask(version=version, headers=headers)
    if version is None:
        assert value(third) == 101
    else:
        assert failure(third)[0] == 503 and "may not be exposed further" in failure(third)[1]
        assert third.error is not None and third.error.retry_after_s == 1


async def test_two_names_of_one_version_share_what_there_is() -> None:
    supervisor = Supervisor()
    made = route({"stable 1": 80, "a 2": 10, "b 2": 10}, limits={"a": Exposure(requests=9)}, overrides=True)
    desk = await desk_of(supervisor, made, requests=2)
    supervisor.gives = Allowed()
    found = [value(await desk.ask(headers={b"turnout-variant": name})) for name in (b"a", b"b", b"a", b"b")]
    assert found == [201, 201, 101, 101]


async def test_what_is_left_is_gone_with_a_deny_and_with_a_limit_that_goes() -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(requests=100), requests=50)
    supervisor.gives = Allowed()
    desk.live.swap(in_force(limited(requests=100), denied="2", revision=Revision(1, 2)))
    assert await answers(desk, 2) == [101, 101]
    asked = len(supervisor.asked)
    desk.live.swap(in_force(limited(requests=100), revision=Revision(1, 3)))
    assert await answers(desk, 1) == [101], "allowed again, it begins with nothing"
    await supervisor.until(lambda: len(supervisor.asked) > asked)
    desk.live.swap(in_force(route(SPLIT), revision=Revision(1, 4)))
    assert await answers(desk, 3) == [201, 201, 201]


async def test_an_answer_that_comes_behind_a_deny_gives_nothing() -> None:
    supervisor = Supervisor()
    supervisor.open.clear()
    desk = await desk_of(supervisor, limited(requests=100), requests=50)
    desk.live.swap(in_force(limited(requests=100), denied="2", revision=Revision(1, 2)))
    supervisor.gives = Allowed()
    desk.live.swap(in_force(limited(requests=100), revision=Revision(1, 3)))
    supervisor.gives = Allowed(requests=7)
    supervisor.open.set()
    await supervisor.until(lambda: len(supervisor.asked) >= 2)
    supervisor.gives = Allowed()
    assert await answers(desk, 8) == [201] * 7 + [101]


async def test_a_changed_weight_or_limit_keeps_what_is_left() -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(requests=100), requests=3)
    supervisor.gives = Allowed()
    wider = route({"stable 1": 50, "canary 2": 50}, limits={"canary": Exposure(requests=200)}, overrides=True)
    desk.live.swap(in_force(wider, revision=Revision(1, 2)))
    assert await answers(desk, 4) == [201, 201, 201, 101]


async def test_errors_close_it_at_once_and_are_told() -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(errors=3), errors=3)

    def breaks(_: Any) -> None:
        raise ValueError("broken")

    desk.engines["2"].fail = breaks
    supervisor.open.clear()
    codes = []
    for _ in range(5):
        answer = await desk.ask()
        codes.append(200 if answer.error is None else answer.error.status)
    assert codes == [500, 500, 500, 200, 200]
    supervisor.gives = Allowed(errors=0)
    supervisor.open.set()
    await supervisor.until(lambda: sum(each.errors for each in supervisor.asked) == 3)
    assert await answers(desk, 2) == [101, 101]


async def test_a_lease_is_good_until_its_end_by_this_process_clock() -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(lease_ms=10_000), lease_s=10.0)
    assert await answers(desk, 2) == [201, 201]
    supervisor.gives = Allowed(lease_s=0.0)
    supervisor.open.clear()
    supervisor.now += 9.9
    assert await answers(desk, 1) == [201]
    supervisor.now += 0.2
    assert await answers(desk, 2) == [101, 101]
    supervisor.gives = Allowed(lease_s=5.0)
    supervisor.now += 5.0
    supervisor.open.set()
    await supervisor.until(lambda: len(supervisor.asked) >= 2)
    assert await answers(desk, 1) == [101], "counted from when it was asked"
    supervisor.now += 1.1
    await answers(desk, 1)
    await supervisor.until(lambda: len(supervisor.asked) >= 3)
    assert await answers(desk, 1) == [201]


async def test_a_key_is_asked_for_before_it_sees_the_version() -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(keys=5), keys=[b"all"])
    user = {KEY: b"user-0"}
    assert await answers(desk, 1, headers=user) == [101]
    await supervisor.until(lambda: any(each.keys for each in supervisor.asked))
    assert await answers(desk, 2, headers=user) == [201, 201]
    assert await answers(desk, 2) == [101, 101], "who has no key cannot be counted"
    (key,) = next(each.keys for each in supervisor.asked if each.keys)
    assert len(key) == 16 and b"user" not in key


async def test_nobody_to_ask_is_nothing_given() -> None:
    supervisor = Supervisor()
    supervisor.gives = InferenceError(503, "going")  # type: ignore[assignment]
    desk = Desk(limited(requests=5), quotas=supervisor.quotas)
    desk.draws = DRAW_CANARY
    assert await answers(desk, 3) == [101, 101, 101]
    alone = Desk(limited(requests=5))
    alone.draws = DRAW_CANARY
    assert await answers(alone, 2) == [101, 101]


async def test_a_fallback_that_was_limited_under_another_name_is_not() -> None:
    """Version 2 is the fallback's earlier one, and a limited variant of its own."""
    supervisor = Supervisor()
    made = route({"stable 1": 90, "canary 2": 10}, previous=["2"], limits={"canary": Exposure(requests=5)})
    desk = await desk_of(supervisor, made, requests=0)
    desk.live.swap(in_force(made, denied="1", revision=Revision(1, 2)))
    assert await answers(desk, 3) == [201, 201, 201]
    assert desk.counted("digits", "stable", "2") == {200: 3}


async def test_versions_without_limits_have_no_quota() -> None:
    supervisor = Supervisor()
    desk = await desk_of(supervisor, limited(requests=5))
    arms = desk.live.snapshot.routes["digits"].arms
    assert arms["stable"].quota is None and arms["canary"].quota is not None
