from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.control.redis_store import RedisStore
from gateway.control.store import Signal, Store, StoreUnavailable
from gateway.routing.state import DamagedState, Revision, StateError
from tests.contracts.store import (
    BAD,
    EMPTY,
    WORSE,
    Opener,
    StoreContract,
    author,
    document,
    holding,
    member,
    soon,
)
from tests.servers.redis import RedisServer, free_port

HIGHEST_ID = "18446744073709551615-18446744073709551615"


class TestRedisStore(StoreContract):
    @pytest.fixture
    def opener(self, shared_redis: RedisServer, namespace: str) -> Opener:
        return lambda: RedisStore(shared_redis.url, namespace, "replica")

    plain: redis.Redis
    """What somebody else's redis-cli would do."""
    prefix: str

    @pytest.fixture(autouse=True)
    def _beside_the_store(self, shared_redis: RedisServer, namespace: str) -> Iterator[None]:
        self.prefix = f"{{turnout:{namespace}}}:"
        with redis.Redis(port=shared_redis.port) as self.plain:
            yield

    async def damage(self, store: Store) -> None:
        doc = self.plain.hget(self.prefix + "state", "doc")
        assert isinstance(doc, bytes)
        self.plain.hset(self.prefix + "state", "doc", doc.replace(b"r/fraud@1", b"r/fraud@9"))

    async def test_every_replica_that_reports_is_a_member(self, store: Store, other: Store) -> None:
        await store.report(member("one"))
        await other.report(member("two", rev=7))
        assert sorted((m.replica, m.rev) for m in await store.members()) == [("one", 1), ("two", 7)]
        assert 0 < int(str(self.plain.ttl(self.prefix + "ack:one"))) <= 600
        self.plain.hdel(self.prefix + "ack:two", "status")
        assert [m.replica for m in await store.members()] == ["one"], "an unreadable report is nobody's"

    async def test_one_that_fell_silent_is_lost_for_ten_minutes(self, store: Store, other: Store) -> None:
        """It may be frozen, and its workers answer by what they had: whoever waits must hear of it."""
        await store.report(member("one"))
        await other.report(member("two", rev=7))

        def silent_since(seconds: int) -> None:
            now_s = self.plain.time()[0]  # type: ignore[index]
            self.plain.zadd(self.prefix + "members", {"two": (now_s - seconds) * 1_000_000})

        silent_since(60)
        _, two = sorted(await store.members(), key=lambda found: found.replica)
        assert (two.replica, two.status, two.rev) == ("two", "LOST", 7)
        assert two.error in ("silent for 60 s", "silent for 61 s")
        silent_since(10)
        assert {found.status for found in await store.members()} == {"ACK"}
        silent_since(601)
        assert [found.replica for found in await store.members()] == ["one"]

    async def test_a_signal_from_a_plain_client_is_seen(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        watch = store.watch()
        assert await soon(anext(watch)) == []
        waiting = asyncio.ensure_future(anext(watch))
        id_ = self.plain.xadd(self.prefix + "signals", {"action": "rollback", "route": "fraud"})
        expected = Signal(id=_text(id_), fields={"action": "rollback", "route": "fraud"})
        assert await soon(waiting) == [expected]
        await watch.aclose()  # type: ignore[attr-defined]

        # The reader died before it was done: the next one gets the signal again, and at once.
        again = store.watch()
        assert await soon(anext(again)) == [expected]
        await store.seen(expected.id)
        await again.aclose()  # type: ignore[attr-defined]
        last = store.watch()
        assert await soon(anext(last)) == []
        await last.aclose()  # type: ignore[attr-defined]

    async def test_signals_from_before_the_first_state_mean_nothing(self, store: Store) -> None:
        self.plain.xadd(self.prefix + "signals", {"action": "rollback"})
        watch = store.watch()
        assert await soon(anext(watch)) == []
        await store.put(document(), EMPTY, author("a"), [])
        assert await soon(anext(watch)) == []
        id_ = self.plain.xadd(self.prefix + "signals", {"action": "rollback"})
        assert [signal.id for signal in await soon(anext(watch))] == [_text(id_)]
        await watch.aclose()  # type: ignore[attr-defined]

    async def test_the_cursor_of_signals_moves_on_by_one_and_what_is_done_with_is_trimmed(
        self, store: Store
    ) -> None:
        await store.seen("5-0")
        assert not self.plain.exists(self.prefix + "state"), "a cursor is no state"
        await store.put(document(), EMPTY, author("a"), [])
        ids = ["9-9", "9-10", "10-1", "9007199254740992-1", "9007199254740993-1"]
        for id_ in ids:
            self.plain.xadd(self.prefix + "signals", {"action": "rollback"}, id=id_)
        for seen, left in (
            ("9-10", ids),  # nobody is done with the one before
            ("9-9", ids),
            ("10-1", ids),
            ("9-10", ids[1:]),
            ("9-9", ids[1:]),
            ("10-1", ids[2:]),
            ("garbage", ids[2:]),
            ("9007199254740992-1", ids[3:]),
            ("9007199254740993-1", ids[4:]),
            ("9007199254740992-1", ids[4:]),
        ):
            await store.seen(seen)
            stored = self.plain.xrange(self.prefix + "signals")
            assert [_text(id_) for id_, _ in stored] == left, seen  # type: ignore[union-attr]
        assert self.plain.hget(self.prefix + "state", "signals_id") == ids[4].encode()

    @pytest.mark.parametrize("id_", [HIGHEST_ID, HIGHEST_ID[:-2] + "14", "99999999999999-0"])
    @pytest.mark.parametrize("deleted", [False, True])
    async def test_no_id_keeps_later_signals_from_being_heard(
        self, shared_redis: RedisServer, namespace: str, id_: str, deleted: bool
    ) -> None:
        """Whoever may append says which id; the server's own follow it, and none follows the highest."""
        store = RedisStore(shared_redis.url, namespace, "r", jitter=lambda: 0.04)
        await store.put(document(), EMPTY, author("a"), [])
        watch = store.watch()
        assert await soon(anext(watch)) == []
        self.plain.xadd(self.prefix + "signals", {"action": "of far away"}, id=id_)
        await store.seen((await self.next_signal(watch)).id)
        if deleted:
            await soon(anext(watch))
            self.plain.delete(self.prefix + "signals")
        # Of a reader that was slow: it takes the cursor nowhere.
        await store.seen(id_)
        waiting = asyncio.ensure_future(self.next_signal(watch))
        sent = _text(await self.sent())
        assert (await waiting).id == sent
        await store.seen(sent)
        assert self.plain.hget(self.prefix + "state", "signals_id") == sent.encode()
        await watch.aclose()
        await store.aclose()

    async def test_an_empty_stream_that_takes_no_more_is_a_new_one(
        self, shared_redis: RedisServer, namespace: str
    ) -> None:
        """Appended and trimmed by one command, the highest id leaves no entry to be done with."""
        store = RedisStore(shared_redis.url, namespace, "r", jitter=lambda: 0.04)
        await store.put(document(), EMPTY, author("a"), [])
        watch = store.watch()
        await soon(anext(watch))
        self.plain.xadd(self.prefix + "signals", {"a": "b"}, id=HIGHEST_ID, maxlen=0, approximate=False)
        waiting = asyncio.ensure_future(self.next_signal(watch))
        sent = _text(await self.sent())
        assert (await soon(waiting)).id == sent
        await watch.aclose()
        await store.aclose()

    async def test_a_stream_made_anew_is_read_from_its_beginning_whatever_is_appended(
        self, shared_redis: RedisServer, namespace: str
    ) -> None:
        """A reader that follows the old one hears of what lies further on first, and must not pass over the rest."""
        store = RedisStore(shared_redis.url, namespace, "r")
        await store.put(document(), EMPTY, author("a"), [])
        self.plain.xadd(self.prefix + "signals", {"a": "b"}, id="99999999999999-0")
        watch = store.watch()
        await store.seen((await self.next_signal(watch)).id)
        self.plain.delete(self.prefix + "signals")
        sent = _text(await self.sent())
        self.plain.xadd(self.prefix + "signals", {"a": "b"}, id="99999999999999-1")
        await store.seen((await self.next_signal(watch)).id)
        again = store.watch()
        assert (await self.next_signal(again)).id == sent
        for one in (watch, again):
            await one.aclose()
        await store.aclose()

    async def next_signal(self, watch: AsyncGenerator[list[Signal], None]) -> Signal:
        async with asyncio.timeout(10):
            while not (found := await anext(watch)):
                pass
        return found[0]

    async def sent(self) -> object:
        """The id of a signal, as soon as the stream takes one."""
        async with asyncio.timeout(10):
            while True:
                try:
                    return self.plain.xadd(self.prefix + "signals", {"action": "rollback"})
                except redis.exceptions.ResponseError as error:
                    assert "exhausted" in str(error) or "equal or smaller" in str(error)
                    await asyncio.sleep(0.01)

    async def test_what_lies_in_a_signal_is_cut_to_size(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        fields: dict[bytes, bytes] = {b"route": b"\xff\xfe", b"reason": b"x" * 100_000}
        fields |= {b"f%d" % n: b"" for n in range(100)}
        self.plain.xadd(self.prefix + "signals", fields)  # type: ignore[arg-type]
        watch = store.watch()
        (signal,) = await soon(anext(watch))
        await watch.aclose()  # type: ignore[attr-defined]
        assert signal.fields["route"] == "��"
        assert signal.fields["reason"] == "x" * 1024
        assert len(signal.fields) == 20

    async def test_a_cursor_ahead_of_the_server_does_not_wait_for_ever(
        self, shared_redis: RedisServer, namespace: str
    ) -> None:
        store = RedisStore(shared_redis.url, namespace, "r", jitter=lambda: 0.04)
        self.plain.xadd(self.prefix + "log", {"type": "put"}, id="9999999999999-0")
        watch = store.watch()
        await soon(anext(watch))
        self.plain.delete(self.prefix + "log")
        self.plain.xadd(self.prefix + "log", {"type": "put"})
        assert await soon(anext(watch)) == []
        await watch.aclose()
        await store.aclose()

    async def test_a_wrong_type_refuses_the_write_whole(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        before = self.plain.hgetall(self.prefix + "state")
        for name in ("log", "deny", "ops"):
            if self.plain.exists(self.prefix + name):
                self.plain.rename(self.prefix + name, self.prefix + "kept")
            self.plain.set(self.prefix + name, "a string")
            for change in (
                store.put(document(100), Revision(1, 1), author("b"), []),
                store.deny({BAD: "2"}, author("c"), []),
            ):
                with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
                    await change
            assert self.plain.hgetall(self.prefix + "state") == before
            self.plain.delete(self.prefix + name)
            if self.plain.exists(self.prefix + "kept"):
                self.plain.rename(self.prefix + "kept", self.prefix + name)
        self.plain.set(self.prefix + "state", "a string")
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await store.read()

    @pytest.mark.parametrize(
        ("field", "value", "names"),
        [
            ("doc", None, "doc"),
            ("rev", b"\xff", "revision"),
            ("epoch", b"-1", "revision"),
            ("sha256", b"", "sha"),
        ],
    )
    async def test_a_state_edited_by_hand_is_damaged(
        self, store: Store, field: str, value: bytes | None, names: str
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        if value is None:
            self.plain.hdel(self.prefix + "state", field)
        else:
            self.plain.hset(self.prefix + "state", field, value)
        with pytest.raises(StateError, match=names):
            await store.read()

    async def test_a_deny_edited_by_hand_is_damaged(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        self.plain.hset(self.prefix + "deny", str(BAD), "yes")
        with pytest.raises(StateError, match="deny"):
            await store.read()

    async def test_a_foreign_line_of_the_log_is_no_history(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        self.plain.xadd(self.prefix + "log", {"hello": "world"})
        assert [record.op_id for record in await store.history()] == ["a"]

    async def test_op_ids_are_bounded(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        many = {f"old-{n}": 0 for n in range(10_500)}
        self.plain.zadd(self.prefix + "ops", many)
        await store.put(document(), Revision(1, 1), author("b"), [])
        assert self.plain.zcard(self.prefix + "ops") == 10_000
        assert await store.put(document(), EMPTY, author("a"), []) == Revision(1, 1)

    async def test_the_log_is_bounded(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        with self.plain.pipeline(transaction=False) as many:
            for number in range(10_500):
                many.xadd(self.prefix + "log", {"type": "put", "number": number})
            many.execute()
        await store.deny({BAD: "2"}, author("b"), [])
        # Whole nodes of a stream go, of 100 entries each.
        assert 10_000 <= self.plain.xlen(self.prefix + "log") <= 10_100
        assert [record.op_id for record in await store.history(1)] == ["b"]

    async def test_what_a_replica_costs(self, store: Store, other: Store, shared_redis: RedisServer) -> None:
        """Commands, as the server counts them: at rest, for a change, and for a report."""
        await store.put(document(), EMPTY, author("a"), [])
        await store.read()
        with self.counted() as read:
            await store.read()
        # What a script calls is counted as well.
        assert read == {"evalsha": 1, "hmget": 1, "hgetall": 1, "hstrlen": 1}
        await other.put(document(5), Revision(1, 1), author("b"), [])
        with self.counted() as read:
            await store.read()
        assert read == {"evalsha": 1, "hmget": 1, "hgetall": 1, "hget": 1}
        await store.report(member("one"))
        with self.counted() as reported:
            await store.report(member("one"))
        assert reported == dict.fromkeys(("evalsha", "time", "hset", "expire", "zadd", "zremrangebyscore"), 1)
        watch = store.watch()
        await soon(anext(watch))
        waiting = asyncio.ensure_future(anext(watch))
        await self.blocked()
        with self.counted() as woken:
            self.plain.xadd(self.prefix + "signals", {"action": "rollback", "route": "fraud"})
            assert len(await soon(waiting)) == 1
        assert woken.pop("xadd") == 1
        # The one that waited; at most one more, had the first just ended.
        assert set(woken) <= {"xread"} and woken.get("xread", 1) <= 2
        await watch.aclose()  # type: ignore[attr-defined]

    @contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """Filled at the end, with how often each command came meanwhile."""

        def calls() -> dict[str, int]:
            return {
                name.removeprefix("cmdstat_"): value["calls"]
                for name, value in self.plain.info("commandstats").items()
                if name not in ("cmdstat_info", "cmdstat_client|list")
            }

        found: dict[str, int] = {}
        before = calls()
        yield found
        found |= {name: n - before.get(name, 0) for name, n in calls().items() if n != before.get(name, 0)}

    async def blocked(self) -> None:
        """Returns when some client waits for news."""
        async with asyncio.timeout(5):
            while not self.plain.info("clients")["blocked_clients"]:
                await asyncio.sleep(0.005)

    async def test_a_flushed_server_is_an_empty_store_in_its_next_epoch(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        for key in self.plain.scan_iter(self.prefix.replace("{", "\\{") + "*"):
            self.plain.delete(key)
        self.plain.delete(self.prefix + "state", self.prefix + "log", self.prefix + "ops")
        assert await store.read() is None
        assert await store.restore(holding(Revision(1, 1)), EMPTY, author("a"), []) == Revision(2, 1)

    @pytest.mark.parametrize("raw", [b"yes", b'{"rev":9,"version"', b'{"version":"2"}', b"\xff"])
    async def test_a_deny_that_is_unreadable_denies_after_a_restore(self, store: Store, raw: bytes) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({WORSE: "3"}, author("b"), [])
        self.plain.hset(self.prefix + "deny", str(BAD), raw)
        self.plain.hset(self.prefix + "deny", "no route", "no deny")
        with pytest.raises(DamagedState) as damaged:
            await store.read()
        assert set(damaged.value.denies) == {WORSE}
        await store.restore(holding(Revision(1, 2)), Revision(1, 2), author("c"), [])
        stored = await store.read()
        assert stored is not None and set(stored.denies) == {BAD, WORSE}
        assert stored.denies[WORSE].rev == 1

    @pytest.mark.parametrize("name", ["epoch", "rev"])
    @pytest.mark.parametrize("value", ["many", "9007199254740992", "9" * 400, "9" * 5000])
    async def test_an_unreadable_revision_is_mended_as_if_the_store_were_empty(
        self, store: Store, name: str, value: str
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        self.plain.hset(self.prefix + "state", name, value)
        with pytest.raises(DamagedState) as damaged:
            await store.read()
        assert damaged.value.revision == EMPTY
        assert await store.restore(holding(Revision(1, 1)), EMPTY, author("b"), []) == Revision(2, 1)
        assert await store.read() is not None

    async def test_beyond_what_a_double_counts_is_damaged_and_denies_all_the_same(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        self.plain.hset(self.prefix + "state", "rev", str(2**53 - 1))
        held = await store.read()
        assert held is not None and held.revision == (1, 2**53 - 1)
        await store.deny({BAD: "2"}, author("b"), [])
        with pytest.raises(DamagedState, match=r"beyond 2\^53-1") as damaged:
            await store.read()
        assert set(damaged.value.denies) == {BAD}
        self.plain.hset(self.prefix + "state", "rev", "7")
        with pytest.raises(DamagedState, match=r"deny 'fraud.*beyond 2\^53-1") as damaged:
            await store.read()
        assert set(damaged.value.denies) == {BAD}
        await store.report(member("one", rev=2**53))
        assert await store.members() == []

    async def test_a_signal_to_an_emptied_store_is_seen_and_comes_once(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.control.redis_watch.COMPARE_S", 0.3)
        await store.put(document(), EMPTY, author("a"), [])
        self.plain.xadd(self.prefix + "signals", {"action": "of before"})
        watch = store.watch()
        (before,) = await soon(anext(watch))
        await store.seen(before.id)
        self.plain.delete(self.prefix + "state")
        id_ = self.plain.xadd(self.prefix + "signals", {"action": "rollback"})
        assert [signal.id for signal in await soon(anext(watch))] == [_text(id_)]
        await store.restore(holding(Revision(1, 1)), EMPTY, author("b"), [])
        again: list[Signal] = []
        while not again:  # the log's entry wakes first; what is not done comes with the next compare
            again = await soon(anext(watch))
        assert [signal.id for signal in again] == [_text(id_)], "nobody has said that it is done with"
        await store.seen(again[0].id)
        await watch.aclose()  # type: ignore[attr-defined]
        assert self.plain.hget(self.prefix + "state", "signals_id") == id_


class TestAServerThatFails:
    """Every one of these must be an error in bounded time, never a wait."""

    @pytest.fixture
    async def store(self, own_redis: RedisServer) -> AsyncIterator[RedisStore]:
        store = RedisStore(own_redis.url, "ns", "replica")
        yield store
        if own_redis.running:
            own_redis.thaw()
        await store.aclose()

    async def test_killed(self, own_redis: RedisServer, store: RedisStore) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        watch = store.watch()
        await soon(anext(watch))
        waiting = asyncio.ensure_future(anext(watch))
        own_redis.kill()
        async with asyncio.timeout(2):
            with pytest.raises(StoreUnavailable, match="connection failed"):
                await waiting
            for call in (store.read(), store.members(), store.put(document(), EMPTY, author("b"), [])):
                with pytest.raises(StoreUnavailable, match="connection failed"):
                    await call

        own_redis.start()
        held = await store.read()
        assert held is not None and held.revision == Revision(1, 1), "its data is there again"
        assert await store.deny({BAD: "2"}, author("c"), []) == Revision(1, 2), "scripts are loaded anew"
        fresh = store.watch()
        assert await soon(anext(fresh)) == []
        await fresh.aclose()

    async def test_frozen(self, own_redis: RedisServer, store: RedisStore) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        watch = store.watch()
        await soon(anext(watch))
        waiting = asyncio.ensure_future(anext(watch))
        own_redis.freeze()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="in time"):
            await soon(waiting)
        assert time.monotonic() - started < 2.0
        heard = store.heard
        with pytest.raises(StoreUnavailable, match="in time"):
            await soon(store.read())
        assert store.heard == heard, "a frozen server takes connections, and says nothing"
        own_redis.thaw()
        held = await store.read()
        assert held is not None and held.revision == Revision(1, 1)

    async def test_what_a_frozen_server_was_asked_to_allow_is_not_allowed_when_it_thaws(
        self, own_redis: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever asked was told that it did not answer, and may have rolled back since."""
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({BAD: "2"}, author("b"), [])
        call = store._connections.call

        async def then_it_freezes(*commands: Any) -> Any:
            answer = await call(*commands)
            own_redis.freeze()
            return answer

        monkeypatch.setattr(store._connections, "call", then_it_freezes)
        with pytest.raises(StoreUnavailable, match="in time"):
            await soon(store.undeny([BAD], author("c"), []))
        monkeypatch.undo()
        own_redis.thaw()
        held = await soon(store.read())
        assert held is not None and set(held.denies) == {BAD} and held.revision == Revision(1, 2)
        assert await store.undeny([BAD], author("c"), []) == Revision(1, 3)

    async def test_scripts_that_the_server_forgot(self, own_redis: RedisServer, store: RedisStore) -> None:
        await store.put(document(), EMPTY, author("a"), [])

        def flush() -> None:
            with redis.Redis(port=own_redis.port) as plain:
                plain.script_flush()

        for forget in (flush, own_redis.restart):
            await asyncio.to_thread(forget)
            held = await store.read()
            assert held is not None and held.revision == Revision(1, 1)
            await store.report(member("one"))
        assert await store.deny({BAD: "2"}, author("b"), []) == Revision(1, 2)

    async def test_connections_that_the_server_closes(
        self, own_redis: RedisServer, store: RedisStore
    ) -> None:
        """CLIENT KILL, as an eviction of clients does it: idle connections cost no error, a waiting one does."""
        await store.put(document(), EMPTY, author("a"), [])
        watch = store.watch()
        await soon(anext(watch))
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)

        def kill() -> None:
            with redis.Redis(port=own_redis.port) as plain:
                plain.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        kill()
        with pytest.raises(StoreUnavailable, match="connection failed"):
            await soon(waiting)
        for _ in range(2):
            held = await store.read()
            assert held is not None and held.revision == Revision(1, 1)
            await asyncio.to_thread(kill)
        fresh = store.watch()
        assert await soon(anext(fresh)) == []
        await fresh.aclose()

    async def test_a_server_whose_log_is_behind_the_cursor(
        self, own_redis: RedisServer, tmp_path: Path
    ) -> None:
        """A stale replica is promoted behind one address. XREAD waits there for ids that come in years; the
        regular compare finds what has changed."""
        store = RedisStore(own_redis.url, "ns", "replica", jitter=lambda: 0.1)
        await store.put(document(), EMPTY, author("a"), [])
        with redis.Redis(port=own_redis.port) as plain:
            stale = {key: plain.dump(key) for key in plain.scan_iter()}
            plain.xadd("{turnout:ns}:log", {"type": "put"}, id="9999999999999-0")
            plain.xadd("{turnout:ns}:signals", {"action": "rollback"}, id="9999999999999-0")
            await store.seen("9999999999999-0")
            watch = store.watch()
            assert await soon(anext(watch)) == []
            plain.flushall()
            for key, value in stale.items():
                plain.restore(key, 0, value)  # type: ignore[arg-type]
            other = RedisStore(own_redis.url, "ns", "other")
            assert await other.deny({BAD: "2"}, author("b"), []) == Revision(1, 2)
            id_ = plain.xadd("{turnout:ns}:signals", {"action": "rollback"})
            found: list[str] = []
            while not found:
                found = [signal.id for signal in await soon(anext(watch))]
            assert found == [_text(id_)]
            # Its cursors are where the server is again: the next change wakes it at once.
            waiting = asyncio.ensure_future(anext(watch))
            await other.undeny([BAD], author("c"), [])
            assert await soon(waiting) == []
        await watch.aclose()
        await other.aclose()
        await store.aclose()

    async def test_a_cancelled_call_does_not_shift_the_next_answer(
        self, own_redis: RedisServer, store: RedisStore
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        own_redis.freeze()
        calls = [asyncio.ensure_future(call) for call in (store.read(), store.history(), store.members())]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.gather(*calls)
        own_redis.thaw()
        for _ in range(5):
            held = await store.read()
            assert held is not None and held.state == document()
            assert [record.op_id for record in await store.history()] == ["a"]

    async def test_one_hash_tag_is_enough_for_a_node_of_a_cluster(
        self, own_redis: RedisServer, store: RedisStore
    ) -> None:
        own_redis.restart("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        with redis.Redis(port=own_redis.port) as plain:
            plain.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            async with asyncio.timeout(10):
                while "cluster_state:ok" not in str(plain.execute_command("CLUSTER", "INFO")):
                    await asyncio.sleep(0.01)
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({BAD: "2"}, author("b"), [])
        await store.report(member("one"))
        held = await store.read()
        assert held is not None and held.revision == Revision(1, 2)
        assert len(await store.members()) == 1
        watch = store.watch()
        assert await soon(anext(watch)) == []
        await watch.aclose()

    async def test_full(self, own_redis: RedisServer, store: RedisStore) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        with redis.Redis(port=own_redis.port) as plain:
            plain.config_set("maxmemory", "1")
            with pytest.raises(StoreUnavailable, match="memory is full"):
                await store.put(document(100), Revision(1, 1), author("b"), [])
            plain.config_set("maxmemory", "0")
        held = await store.read()
        assert held is not None and held.revision == Revision(1, 1)
        assert len(await store.history()) == 1

    async def test_read_only(self, own_redis: RedisServer, store: RedisStore) -> None:
        with redis.Redis(port=own_redis.port) as plain:
            plain.replicaof("127.0.0.1", "1")
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                await store.put(document(), EMPTY, author("a"), [])

    async def test_a_wrong_password_is_not_printed(self, own_redis: RedisServer) -> None:
        own_redis.restart("--requirepass", "correct-horse")
        for credentials in (":wr0ng@", "ann:wr0ng@", ""):
            url = f"redis://{credentials}127.0.0.1:{own_redis.port}/0"
            store = RedisStore(url, "ns", "replica")
            with pytest.raises(StoreUnavailable, match="user name or the password") as error:
                await store.read()
            assert "wr0ng" not in str(error.value) and "ann" not in str(error.value)
            assert f"127.0.0.1:{own_redis.port}" in str(error.value)
            await store.aclose()
        store = RedisStore(f"redis://:correct-horse@127.0.0.1:{own_redis.port}", "ns", "replica")
        assert await store.read() is None
        await store.aclose()

    async def test_through_a_unix_socket(self, own_redis: RedisServer) -> None:
        path = own_redis.directory / "s"
        own_redis.restart("--unixsocket", str(path))
        store = RedisStore(f"unix://{path}", "ns", "replica")
        assert await store.put(document(), EMPTY, author("a"), []) == Revision(1, 1)
        await store.aclose()


@pytest.mark.parametrize(
    "url",
    ["http://u:s3cret@h/0", "redis://u:s3cret@h:port/0", "redis://[s3cret", "s3cret", "redis://h?db=s3cret"],
)
def test_an_unusable_url_is_an_error_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="unreadable") as error:
        RedisStore(url, "ns", "replica")
    assert "s3cret" not in str(error.value)
    assert error.value.__suppress_context__


@pytest.mark.parametrize("namespace", ["", "a}b", "a b", "a*", "a\n"])
def test_an_unusable_namespace(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        RedisStore("redis://localhost", namespace, "replica")


def _text(id_: object) -> str:
    assert isinstance(id_, bytes)
    return id_.decode()
