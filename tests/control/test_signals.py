"""Signals in the stream, from whoever may append to it: each is obeyed once, and leaves one line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import redis

from gateway.control.redis_store import RedisStore
from gateway.control.signals import author_of, routes_of
from gateway.control.store import HistoryRecord, Signal
from gateway.routing.change import ChangeRefused
from tests.control.replica import ControlPlane, author, soon
from tests.servers.redis import RedisServer

BIG = "x" * 1_000_000
ROUTES = ("number", "letter")


@pytest.fixture
async def shared(
    planes: Callable[..., ControlPlane], shared_redis: RedisServer, namespace: str
) -> ControlPlane:
    made = planes(RedisStore(shared_redis.url, namespace, "one"))
    for version in "123":
        made.publish(version)
    return made


Send = Callable[..., str]


@pytest.fixture
def send(shared_redis: RedisServer, namespace: str) -> Iterator[Send]:
    """`send(action="rollback", route="number")`, or with one dict of bytes, as a plain client: the id."""
    with redis.Redis(port=shared_redis.port) as plain:

        def xadd(raw: dict[bytes, bytes] | None = None, **fields: str) -> str:
            added = plain.xadd(f"{{turnout:{namespace}}}:signals", raw or fields)  # type: ignore[arg-type]
            return str(added, "utf-8")

        yield xadd


async def lines(plane: ControlPlane, id_: str) -> list[HistoryRecord]:
    return [record for record in await plane.store.history() if record.op_id == f"signal-{id_}"]


async def line(plane: ControlPlane, id_: str) -> HistoryRecord:
    """The one line of a signal, once it is done with."""
    async with asyncio.timeout(10):
        while not await lines(plane, id_):
            await asyncio.sleep(0.01)
        # Nothing is left for a reader that starts now.
        while await pending(plane):
            await asyncio.sleep(0.01)
    (found,) = await lines(plane, id_)
    assert plane.failed() == []
    return found


async def pending(plane: ControlPlane) -> list[object]:
    watch = plane.store.watch()
    try:
        return list(await soon(anext(watch)))
    finally:
        await watch.aclose()  # type: ignore[attr-defined]


class TestInTheStream:
    @pytest.mark.parametrize(
        ("fields", "type_", "says"),
        [
            ({"action": "rollback", "route": "number", "actor": "pager", "reason": "5xx"}, "deny", "5xx"),
            ({"action": "rollback", "route": "number", "version": "2"}, "deny", ""),
            ({"action": "rollback", "route": "number", "version": "9"}, "reject", "no version '9'"),
            ({"action": "rollback", "route": "nobody"}, "reject", "no route 'nobody'"),
            ({"action": "rollback", "route": "number,nobody"}, "reject", "no route 'nobody'"),
            ({"action": "rollback", "route": "number,number"}, "reject", "one of them twice"),
            (
                {"action": "rollback", "route": "number,letter", "version": "2"},
                "reject",
                "2 routes and 1 ver",
            ),
            ({"action": "rollback"}, "reject", "no route ''"),
            (
                {"action": "rollback", "route": ","},
                "reject",
                "the routes ',' name an empty one: write one comma",
            ),
            ({"action": "rollback", "route": "number,"}, "reject", "the routes 'number,' name an empty one"),
            ({"action": "explode", "route": "number"}, "reject", "action 'explode' is not known"),
            ({"": ""}, "reject", "action '' is not known"),
            ({"alerts": '[{"labels": {"route": "number"}}]'}, "reject", "action '' is not known"),
            ({"{": "}", "a": "[" * 1000}, "reject", "action '' is not known"),
            (dict.fromkeys(("action", "route", "version", "actor", "reason"), BIG), "reject", "not known"),
            ({"action": "rollback", "route": BIG}, "reject", "its route is longer than 1023 bytes"),
            ({"action": "rollback", "route": "number", "version": BIG}, "reject", "its version is longer"),
            ({"action": "rollback", "route": "nobody", "reason": BIG, "actor": BIG}, "reject", "no route"),
            ({"action": "rollback", "route": "\x00\n\x1b[31m", "actor": "\x1b[2J"}, "reject", "no route"),
            ({"action": "rollback", "route": "nobody", "reason": "a\nb\x1b[2J"}, "reject", "a b[2J (refused"),
        ],
    )
    async def test_each_leaves_one_line_and_is_seen(
        self, shared: ControlPlane, send: Send, fields: dict[str, str], type_: str, says: str
    ) -> None:
        shared.run(reader=True)
        await shared.apply(names=ROUTES)
        found = await line(shared, send(**fields))
        assert found.type == type_
        assert found.actor.startswith("signal:")
        assert says in found.reason
        assert len(found.reason) < 1000 and len(found.actor) <= 80
        assert (found.actor + found.reason).isprintable()
        assert shared.workers.denied == ({"2"} if type_ == "deny" else set())

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({b"f%d" % number: b"" for number in range(300_000)}, id="many"),
            pytest.param({b"x" * 1_000_000: b"rollback"}, id="a long name"),
            pytest.param({b"action": b"roll\xffback", b"route": b"\xfe\x00"}, id="no UTF-8"),
            pytest.param({b"%d" % n: b"" for n in range(20)} | {b"action": b"rollback"}, id="too late"),
        ],
    )
    async def test_a_megabyte_and_what_is_no_text(
        self, shared: ControlPlane, send: Send, fields: dict[bytes, bytes]
    ) -> None:
        shared.run(reader=True)
        await shared.apply()
        found = await line(shared, send(fields))
        assert (found.type, "is not known; known: rollback" in found.reason) == ("reject", True)
        assert len(found.reason) < 300
        assert shared.workers.denied == set()

    async def test_what_is_refused_is_one_line_of_the_log_without_a_trace(
        self, shared: ControlPlane, send: Send, caplog: pytest.LogCaptureFixture
    ) -> None:
        shared.run(reader=True)
        await shared.apply()
        id_ = send(action="rollback", route="nobody\n", actor="eve\x1b[2J\n")
        await line(shared, id_)
        (record,) = [record for record in caplog.records if f"signal-{id_}" in record.getMessage()]
        assert record.getMessage().isprintable()
        assert record.levelname == "WARNING" and record.exc_info is None

    async def test_of_two_signals_each_has_its_line_and_one_denies(
        self, shared: ControlPlane, send: Send
    ) -> None:
        shared.run(reader=True)
        await shared.apply()
        first, second = (send(action="rollback", route="number") for _ in range(2))
        assert (await line(shared, first)).type == "deny"
        again = await line(shared, second)
        assert (again.type, again.reason) == (
            "reject",
            "refused: nothing to do, number is rolled back already",
        )

    async def test_several_routes_in_one_step(self, shared: ControlPlane, send: Send) -> None:
        shared.run(reader=True)
        await shared.apply(names=ROUTES)
        found = await line(shared, send(action="rollback", route="number, letter", version=",2"))
        assert (found.type, found.rev) == ("deny", 2)
        assert [change["route"] for change in found.changes] == ["letter", "number"]
        assert all({key.route for key in held.denies} in (set(), set(ROUTES)) for held in shared.workers.rung)

    async def test_a_signal_to_an_empty_store_ends_nobody(self, shared: ControlPlane, send: Send) -> None:
        shared.run(reader=True)
        await soon(shared.reader.reached.wait())
        send(action="rollback", route="number")
        async with asyncio.timeout(10):
            while await pending(shared):
                await asyncio.sleep(0.01)
        assert shared.failed() == []
        assert await shared.apply() == "1.1"

    async def test_a_replica_that_comes_late_does_not_undo_what_was_decided_since(
        self, shared: ControlPlane, send: Send
    ) -> None:
        """Frozen with the signal in its hands, while another one obeyed it and somebody lifted the deny."""
        shared.run(reader=True)
        await shared.apply()
        fields = {"action": "rollback", "route": "number"}
        id_ = send(**fields)
        await line(shared, id_)
        await soon(shared.operations.allow("number", "2", author("a")))
        await soon(shared.operations.signal(Signal(id=id_, fields=fields)))
        assert shared.workers.denied == set()
        stored = await shared.store.read()
        assert stored is not None and not stored.denies
        assert len(await lines(shared, id_)) == 1


class TestReading:
    def test_who_sent_it(self) -> None:
        made = author_of(Signal(id="7-1", fields={"actor": "pager\x1b", "reason": " 5xx\n on  eu "}))
        assert (made.actor, made.reason, made.op_id) == ("signal:pager", "5xx on eu", "signal-7-1")
        assert author_of(Signal(id="7-1", fields={})).actor == "signal:redis"
        assert author_of(Signal(id="7-1", fields={"actor": "\udcff" * 9})).actor == "signal:"

    @pytest.mark.parametrize(
        ("route", "version", "routes"),
        [
            ("fraud", "", {"fraud": None}),
            (" fraud ", "7", {"fraud": "7"}),
            ("fraud", "7,8", {"fraud": "7,8"}),
            ("fraud,digits", "", {"fraud": None, "digits": None}),
            ("fraud, digits ", "7, ", {"fraud": "7", "digits": None}),
            ("fraud,digits", "7,8", {"fraud": "7", "digits": "8"}),
            (",".join(f"r{n}" for n in range(200)), "", {f"r{n}": None for n in range(200)}),
        ],
    )
    def test_the_routes_of_a_signal(self, route: str, version: str, routes: dict[str, str | None]) -> None:
        signal = Signal(id="1-1", fields={"action": "rollback", "route": route, "version": version})
        assert routes_of(signal) == routes

    @pytest.mark.parametrize(
        ("route", "version"),
        [("a,b", "1"), ("a,b", "1,2,3"), ("a,a", ""), ("r" * 1024, ""), ("a", "v" * 1024)],
    )
    def test_what_may_mean_another_route_is_refused(self, route: str, version: str) -> None:
        with pytest.raises(ChangeRefused):
            routes_of(Signal(id="1-1", fields={"action": "rollback", "route": route, "version": version}))
