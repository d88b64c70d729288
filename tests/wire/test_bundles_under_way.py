"""What happens while requests of one tick are under way as one: a rollback, a deadline, a client that goes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.serving.engine import EngineError
from gateway.telemetry import observations as obs
from tests import states
from tests.serving.fake_engine import requests
from tests.serving.test_inference import DRAW_CANARY, SPLIT
from tests.wire.lane import ask, nothing_is_left, served_lane
from tests.wire.ticks import PLAIN, SECOND, Ticks, body, clients_of, outcome, rows, under_way


class TestSwaps:
    async def test_between_arrival_and_submission(self) -> None:
        async with served_lane(signature=rows()) as served:
            ticks = await clients_of(served, 3)
            ticks.send(*[PLAIN] * 3)
            assert await ticks.statuses() == [200] * 3
            ticks.queued.clear()
            collector = served.lane._collectors[served.arm]
            assert collector is not None
            add, added = collector.add, [0]

            def adding(connection: Any, sent: bytes) -> None:
                add(connection, sent)
                added[0] += 1
                if added[0] == 3:
                    assert not served.desk.live.swap(
                        states.in_force(states.route({"stable 2": 100}), denied=["1"], revision=SECOND)
                    ), "nothing of it is under way"

            collector.add = adding  # type: ignore[method-assign]
            served.engine.runs.clear()
            ticks.send(*[PLAIN] * 3)
            for client in ticks.clients:
                status, head, _ = await client.answer()
                assert status == 200
                assert b"turnout-version: 2\r\n" in head and b"turnout-revision: 2.2\r\n" in head
            assert (ticks.queued, served.engine.runs) == ([("Answer", 1)] * 3, [])

    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_rollback_waits_for_a_bundle_under_way(self, fails: bool) -> None:
        """Its answers are the old version's, or another's: nothing of a version comes after it is gone."""
        async with served_lane(signature=rows(), holding=True) as served:
            ticks = await clients_of(served, 3)
            canary = served.desk.engines["2"]
            canary.gate = served.hold
            served.desk.draws = DRAW_CANARY
            ticks.send(*[PLAIN] * 3)
            await served.until(canary.entered.is_set)
            (leaving,) = served.desk.live.swap(states.in_force(SPLIT, denied=["2"], revision=SECOND))
            served.desk.live.retire_unneeded()
            idle = asyncio.Event()
            leaving.when_idle(idle.set)
            other = await served.client()
            if fails:
                canary.fail = lambda _: (_ for _ in ()).throw(EngineError("no"))
            assert not idle.is_set() and canary.closed == 0
            served.hold.set()
            for client in ticks.clients:
                _, head, _ = await client.answer()
                expected = (b"1", b"2.2") if fails else (b"2", b"1.1")
                assert b"turnout-version: %s\r\n" % expected[0] in head
                assert b"turnout-revision: %s\r\n" % expected[1] in head
            assert idle.is_set() and canary.closed == 1 and not leaving.busy
            other.writer.write(ask(body=PLAIN))
            assert await other.status() == 200


class TestClientsThatGo:
    async def test_one_of_them(self) -> None:
        async with served_lane(signature=rows(), holding=True) as served:
            ticks = await clients_of(served, 3)
            ticks.send(*[PLAIN] * 3)
            await under_way(ticks)
            ticks.clients[1].reset()
            await served.until(lambda: ticks.counted == {499: 1})
            assert served.arm._in_flight == 3
            served.hold.set()
            assert [await ticks.clients[at].status() for at in (0, 2)] == [200, 200]
            assert ticks.counted == {200: 2, 499: 1}
            assert not served.arm.busy

    async def test_all_of_them(self) -> None:
        """A rollback need not wait for nobody, and what waits behind the run is not run."""
        async with served_lane(signature=rows(), holding=True) as served:
            ticks = await clients_of(served, 6)
            running, queued = Ticks(served, ticks.clients[:3]), Ticks(served, ticks.clients[3:])
            running.send(*[PLAIN] * 3)
            await under_way(running)
            queued.send(*[PLAIN] * 3)
            await served.until(lambda: served.arm._in_flight == 6)
            for client in ticks.clients:
                client.reset()
            await served.until(lambda: not served.arm.busy)
            assert ticks.counted == {499: 6}
            served.hold.set()
            last = await clients_of(served, 1)
            assert served.counted == {200: 7, 499: 6}
            assert last.clients and (3, 2) not in served.engine.runs

    async def test_before_it_is_queued(self) -> None:
        async with served_lane(signature=rows()) as served:
            ticks = await clients_of(served, 2)
            known = served.lane.known

            def losing(head: bytes) -> Any:
                found = known(head)
                for made in served.made:
                    if made.collector is not None:
                        made.transport.abort()
                        made.connection_lost(None)
                return found

            served.lane.known = losing  # type: ignore[method-assign]
            ticks.send(PLAIN, PLAIN)
            answered = await asyncio.gather(*[outcome(client) for client in ticks.clients])
            assert sorted(map(str, answered)) == ["200", "None"]
            assert ticks.queued == [("Bundle", 1)]
            assert ticks.counted == {200: 1, 499: 1}

    async def test_half_closed(self) -> None:
        async with served_lane(signature=rows(), holding=True) as served:
            ticks = await clients_of(served, 2)
            ticks.send(PLAIN, PLAIN)
            await under_way(ticks)
            ticks.clients[0].writer.write_eof()
            await served.until(lambda: any(made._last_words is not None for made in served.made))
            served.hold.set()
            assert await ticks.statuses() == [200, 200]
            assert await ticks.clients[0].ends()
            ticks.clients[1].writer.write(ask(body=PLAIN))
            assert await ticks.clients[1].status() == 200

    async def test_half_closed_for_too_long(self) -> None:
        async with served_lane(signature=rows(), holding=True) as served:
            ticks = await clients_of(served, 1)
            ticks.send(PLAIN)
            await under_way(ticks)
            ticks.clients[0].writer.write_eof()
            assert await ticks.clients[0].ends()
            await served.until(lambda: not served.state.connections)
            assert ticks.counted == {499: 1} and not served.arm.busy
            assert nothing_is_left(served)


class TestConnections:
    @pytest.mark.parametrize("how", ["draining", "shutdown"])
    async def test_going_away(self, how: str) -> None:
        async with served_lane(signature=rows(), holding=True) as served:
            ticks = await clients_of(served, 2)
            ticks.send(PLAIN, PLAIN)
            await under_way(ticks)
            if how == "draining":
                served.lane.draining = True
            else:
                for made in served.made:
                    made.shutdown()
            served.hold.set()
            for client in ticks.clients:
                status, head, got = await client.answer()
                assert (status, json.loads(got)["outputs"][0]["data"]) == (200, [103.0])
                assert head.endswith(b"\r\nconnection: close\r\n\r\n")
                assert await client.ends()
            assert ticks.counted == {200: 2}

    async def test_what_comes_behind_is_answered_behind(self) -> None:
        async with served_lane(signature=rows(), holding=True) as served:
            ticks = await clients_of(served, 2)
            ticks.send(PLAIN, PLAIN)
            await under_way(ticks)
            ticks.clients[0].writer.write(ask(body=body([10, 10])) + ask("?", body=b"{"))
            await served.until(lambda: any(len(made.pipeline) == 2 for made in served.made))
            served.hold.set()
            answers = [await ticks.clients[0].answer() for _ in range(3)]
            assert [status for status, _, _ in answers] == [200, 200, 400]
            assert [json.loads(got)["outputs"][0]["data"] for _, _, got in answers[:2]] == [[103.0], [120.0]]
            ticks.clients[0].writer.write(ask(body=PLAIN))
            assert await ticks.statuses() == [200, 200]

    async def test_idle_ones_are_closed(self) -> None:
        async with served_lane(signature=rows(), keep_alive_s=1) as served:
            ticks = await clients_of(served, 2)
            ticks.send(PLAIN, PLAIN)
            assert await ticks.statuses() == [200, 200]
            assert [await client.ends() for client in ticks.clients] == [True, True]
            assert nothing_is_left(served)

    async def test_one_that_cannot_be_written_to(self) -> None:
        """The others have their answers, and it is counted once: its client has gone for all that is known."""
        async with served_lane(signature=rows()) as served:
            ticks = await clients_of(served, 3)

            def broken(*_: Any) -> None:
                raise RuntimeError("the handler is closed")

            served.made[0].answer_row = broken  # type: ignore[method-assign]
            ticks.send(*[PLAIN] * 3)
            answered = await asyncio.gather(*[outcome(client) for client in ticks.clients])
            assert sorted(map(str, answered)) == ["200", "200", "None"]
            assert ticks.counted == {200: 2, 499: 1}
            assert not served.arm.busy

    async def test_whatever_breaks_each_is_asked_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with served_lane(signature=rows()) as served:
            ticks = await clients_of(served, 3)
            served.lane.lines = None  # type: ignore[method-assign, assignment]
            ticks.send(*[PLAIN] * 3)
            assert await ticks.statuses() == [200] * 3
            assert ticks.queued == [("Bundle", 3)] + [("Answer", 1)] * 3
            monkeypatch.setattr("gateway.wire.bundles.Bundle", None)
            ticks.send(*[PLAIN] * 3)
            assert await ticks.statuses() == [200] * 3
            assert not served.arm.busy

    async def test_a_queue_that_breaks(self) -> None:
        async with served_lane(signature=rows()) as served:
            ticks = await clients_of(served, 3)
            batcher = served.arm.loaded.batcher
            submit = batcher.submit

            def breaking(work: Any) -> None:
                if work.requests > 1:
                    raise ZeroDivisionError
                submit(work)

            batcher.submit = breaking
            ticks.send(*[PLAIN] * 3)
            assert await ticks.statuses() == [200] * 3
            assert ticks.counted == {200: 3} and not served.arm.busy


class TestLimits:
    @pytest.mark.parametrize("options", [{"concurrency": 2}, {"max_queue": 2}])
    async def test_as_many_as_there_is_room_for(self, options: dict[str, int]) -> None:
        async with served_lane(signature=rows(), **options) as served:
            sent = [await served.client() for _ in range(5)]
            for client in sent:
                client.writer.write(ask(body=PLAIN))
                assert await client.status() == 200
            ticks = Ticks(served, sent)
            ticks.send(*[PLAIN] * 5)
            assert await ticks.statuses() == [200, 200, 503, 503, 503]
            assert ticks.queued[0] == ("Bundle", 5)
            assert ticks.counted == {200: 2, 503: 3}
            assert served.arm.observations.read()[obs.REJECTED] == 3
            assert not served.arm.busy

    async def test_one_that_is_refused_is_counted_once(self) -> None:
        async with served_lane(signature=rows(), holding=True, concurrency=1) as served:
            served.hold.set()
            sent = [await served.client() for _ in range(2)]
            for client in sent:
                client.writer.write(ask(body=PLAIN))
                assert await client.status() == 200
            served.hold.clear()
            ticks = Ticks(served, sent)
            sent[0].writer.write(ask(body=PLAIN))
            await under_way(ticks)
            sent[1].writer.write(ask(body=PLAIN))
            assert await sent[1].status() == 503
            assert ("Bundle", 1) in ticks.queued[1:]
            assert served.arm.observations.read()[obs.REJECTED] == 1

    @pytest.mark.parametrize("options", [{}, {"concurrency": 4}])
    async def test_deadlines(self, options: dict[str, Any]) -> None:
        """Of those that run and of those that wait: 504 even where there is no room for another request."""
        quick = states.route({"stable 1": 100}, timeout_ms=300)
        async with served_lane(quick, signature=rows(), holding=True, **options) as served:
            ticks = await clients_of(served, 4)
            running, waiting = Ticks(served, ticks.clients[:2]), Ticks(served, ticks.clients[2:])
            running.send(PLAIN, PLAIN)
            await under_way(running)
            waiting.send(PLAIN, PLAIN)
            assert await ticks.statuses() == [504] * 4
            assert not served.arm.busy, "though the engine still runs"
            assert ticks.counted == {504: 4}
            served.hold.set()
            await served.until(lambda: not served.arm.loaded.batcher._running)
            ticks.send(*[PLAIN] * 4)
            assert await ticks.statuses() == [200] * 4

    async def test_a_deadline_is_the_version_that_let_it_pass(self) -> None:
        """Also where a rollback has come meanwhile: it is not its successor that was late."""
        late = states.route({"stable 1": 90, "canary 2": 10}, timeout_ms=300)
        async with served_lane(late, signature=rows(), holding=True) as served:
            ticks = await clients_of(served, 2)
            canary = served.desk.engines["2"]
            canary.gate = served.hold
            served.desk.draws = DRAW_CANARY
            ticks.send(PLAIN, PLAIN)
            await served.until(canary.entered.is_set)
            (leaving,) = served.desk.live.swap(states.in_force(late, denied=["2"], revision=SECOND))
            for client in ticks.clients:
                status, head, _ = await client.answer()
                assert status == 504
                assert b"turnout-version: 2\r\n" in head and b"turnout-revision: 1.1\r\n" in head
            assert not leaving.busy
            assert requests(served.desk.writer, "digits", "canary", "2") == {504: 2}
