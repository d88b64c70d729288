"""A server that refuses, and documents that cannot be: survived, with a line at the beginning and one at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import redis

from gateway.control.redis_store import RedisStore
from gateway.control.store import Member
from gateway.control.troubles import Trouble
from gateway.node.fetched import Fetched
from gateway.node.flip_times import FlipTimes
from gateway.node.reports import Reports
from gateway.routing import change
from gateway.routing.state import Revision, state_sha256
from tests.control.replica import ControlPlane, author, soon
from tests.servers.redis import RedisServer

KEYS = "{turnout:ns}:"


def state_of(plane: ControlPlane) -> tuple[object, ...]:
    held = plane.deliverer.held
    return held.revision, held.state, held.denies


async def until(condition: Callable[[], bool], explain: Callable[[], object] = lambda: "") -> None:
    try:
        async with asyncio.timeout(15):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(explain()) from None


@pytest.fixture
async def plane(
    planes: Callable[..., ControlPlane], own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ControlPlane]:
    """Follows and reports; holds 1.1."""
    monkeypatch.setattr("gateway.node.reports.REPORT_PERIOD_S", 0.1)
    monkeypatch.setattr("gateway.control.redis_watch.COMPARE_S", 0.3)
    made = planes(RedisStore(own_redis.url, "ns", "one"))
    for version in "123":
        made.publish(version)
    made.run(reader=True)
    await made.apply()
    reports = Reports(
        made.store,
        lambda: made.deliverer.held,
        lambda: _member(made),
        FlipTimes(lambda _: None),
        made.events,
        made.weights,
        Fetched(),
        made.reader.troubles,
    )
    made._tasks.append(asyncio.create_task(reports.run()))
    await until(lambda: made.reader.trouble == "")
    yield made
    assert made.failed() == []


def _member(plane: ControlPlane) -> Member:
    revision = plane.deliverer.held.revision
    return Member(
        replica="one", epoch=revision.epoch, rev=revision.rev, denies_rev=0, deny_n=0, sha256="",
        status="ACK", workers_ok=2, workers_total=2,
    )  # fmt: skip


Plain = Any
"""redis-py's client; its types say of every answer that it may be a coroutine."""


@pytest.fixture
def plain(own_redis: RedisServer) -> Any:
    with redis.Redis(port=own_redis.port) as client:
        yield client


def _misconf(plain: Plain, server: RedisServer) -> None:
    # The dump cannot take the place of a directory.
    (server.directory / "dump.rdb" / "full").mkdir(parents=True)
    plain.config_set("save", "3600 1")
    plain.bgsave()
    while plain.info("persistence")["rdb_last_bgsave_status"] != "err":
        pass


def _load_slowly(plain: Plain, server: RedisServer) -> None:
    # It looks at its connections at every 1,024th command of its log.
    with plain.pipeline(transaction=False) as pipe:
        for n in range(6000):
            pipe.set("ballast", n)
        pipe.execute()
    server.kill()
    server.spawn("--key-load-delay", "600")


REFUSALS: dict[str, tuple[Trouble, str, Callable[..., object], Callable[..., object]]] = {
    "WRONGTYPE of the state": (
        Trouble.UNREACHABLE,
        "WRONGTYPE",
        lambda plain, _: (plain.rename(KEYS + "state", KEYS + "kept"), plain.set(KEYS + "state", "a string")),
        lambda plain, _: plain.rename(KEYS + "kept", KEYS + "state"),
    ),
    "WRONGTYPE of the denies": (
        Trouble.UNREACHABLE,
        "WRONGTYPE",
        lambda plain, _: plain.set(KEYS + "deny", "a string"),
        lambda plain, _: plain.delete(KEYS + "deny"),
    ),
    "WRONGTYPE of a stream": (
        Trouble.UNWATCHED,
        "WRONGTYPE",
        lambda plain, _: plain.set(KEYS + "signals", "a string"),
        lambda plain, _: plain.delete(KEYS + "signals"),
    ),
    "READONLY": (
        Trouble.UNWRITABLE,
        "read-only replica",
        lambda plain, _: plain.replicaof("127.0.0.1", "1"),
        lambda plain, _: plain.replicaof("no", "one"),
    ),
    "NOAUTH": (
        Trouble.UNREACHABLE,
        "user name or the password",
        lambda plain, _: (
            plain.config_set("requirepass", "secret"),
            plain.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
        ),
        lambda plain, _: plain.config_set("requirepass", ""),
    ),
    "NOPERM": (
        Trouble.UNREACHABLE,
        "ACL",
        lambda plain, _: plain.execute_command("ACL", "SETUSER", "default", "-hgetall", "-hmget"),
        lambda plain, _: plain.execute_command("ACL", "SETUSER", "default", "+@all"),
    ),
    "OOM": (
        Trouble.UNWRITABLE,
        "memory is full",
        lambda plain, _: plain.config_set("maxmemory", "1"),
        lambda plain, _: plain.config_set("maxmemory", "0"),
    ),
    "MISCONF": (
        Trouble.UNWRITABLE,
        "MISCONF",
        _misconf,
        lambda plain, _: plain.config_set("stop-writes-on-bgsave-error", "no"),
    ),
    "NOREPLICAS": (
        Trouble.UNWRITABLE,
        "NOREPLICAS",
        lambda plain, _: plain.config_set("min-replicas-to-write", "1"),
        lambda plain, _: plain.config_set("min-replicas-to-write", "0"),
    ),
    "LOADING": (Trouble.UNREACHABLE, "still loading", _load_slowly, lambda *_: None),
}


class TestAServerThatRefuses:
    @pytest.mark.parametrize("how", REFUSALS)
    async def test_it_is_survived(
        self,
        plane: ControlPlane,
        plain: Plain,
        own_redis: RedisServer,
        caplog: pytest.LogCaptureFixture,
        how: str,
    ) -> None:
        caplog.set_level(logging.INFO)
        kind, says, begin, end = REFUSALS[how]
        before = state_of(plane)
        begin(plain, own_redis)
        await until(lambda: says in plane.reader.troubles.first([kind]), lambda: plane.reader.troubles.texts)
        assert state_of(plane) == before
        outcome = await soon(plane.operations.rollback("number", None, author("rescue")))
        assert outcome.changed and plane.workers.denied == {"2"}, "a rollback works all the same"
        await self.looked_again(plane)
        end(plain, own_redis)
        await until(lambda: plane.reader.trouble == "", lambda: plane.reader.troubles.texts)
        # Published, whether the server took it at once or only now.
        await until(lambda: plane.deliverer.held.revision == (1, 2), lambda: plane.deliverer.held.label)
        assert plane.workers.denied == {"2"}
        lines = [record.getMessage() for record in caplog.records if says in record.getMessage()]
        assert len(lines) == len(set(lines)), "each is said once"
        assert [record for record in caplog.records if record.exc_info] == [], "never a stack trace"
        over = [line for line in caplog.messages if line == f"over: the store was {kind}"]
        assert len(over) == 1, caplog.messages

    async def looked_again(self, plane: ControlPlane) -> None:
        """Long enough for a trouble that flaps to be said many times over."""
        await asyncio.sleep(1.0)


def document(**changed: Any) -> bytes:
    pin = {"registry": "local", "model": "number", "version": "2", "digest": "2" * 64}
    variants = {"stable": {"pin": pin, "reference": "local/number@2", "weight_bp": 10_000}}
    route = {"variants": variants, "fallback": "stable", **changed.pop("route", {})}
    return msgspec.json.encode({"schema": 1, "routes": {"number": route}, **changed})


DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "a newer schema": (document(schema=99), "schema 99, this release knows 1: upgrade"),
    "a route without variants": (document(route={"variants": {}}), "variants is empty"),
    "a fallback that is no variant": (document(route={"fallback": "gone"}), "fallback 'gone'"),
    "no JSON": (b"{ half a", "unreadable"),
    "no UTF-8": (b'{"schema": 1, "manifest_sha256": "\xff"}', "unreadable"),
    "another type": (b"[1]", "unreadable"),
    "nested without end": (b"[" * 100_000, "unreadable"),
    "nothing": (b"", "unreadable"),
    "weights beyond 100 %": (
        document().replace(b"10000", b"99999"),
        "weight_bp 99999 is not in 0..10000",
    ),
}


class TestADocumentThatCannotBe:
    @pytest.mark.parametrize("what", DOCUMENTS)
    @pytest.mark.parametrize("honest", [True, False], ids=["its own hash", "another hash"])
    async def test_it_is_refused_and_what_is_denied_beside_it_is_not(
        self,
        plane: ControlPlane,
        plain: Plain,
        caplog: pytest.LogCaptureFixture,
        what: str,
        honest: bool,
    ) -> None:
        caplog.set_level(logging.INFO)
        raw, says = DOCUMENTS[what]
        says = says if honest else "does not match its sha256"
        before = state_of(plane)
        sha256 = state_sha256(raw) if honest else "0" * 64
        plain.hset(KEYS + "state", mapping={"doc": raw, "sha256": sha256, "rev": "2"})
        plain.xadd(KEYS + "log", {"type": "put"})
        await until(lambda: says in plane.reader.refusal, lambda: plane.reader.troubles.texts)
        assert state_of(plane) == before
        # A rollback elsewhere: a replica that cannot read the document hears of it.
        denies = change.rollback(plane.deliverer.held, "number")
        assert await plane.store.deny(denies, author("theirs"), []) == Revision(1, 3)
        await plane.hears_of_denies("2")
        assert plane.deliverer.held.state == before[1] and plane.deliverer.held.revision == before[0]
        lines = [line for line in await plane.store.history() if line.type == "reject"]
        assert len(lines) == 1 and says in lines[0].reason
        restored = await soon(plane.settlement.restore(author("restore")))
        assert restored.revision == "2.1"
        await until(lambda: plane.reader.trouble == "", lambda: plane.reader.troubles.texts)
        assert plane.deliverer.held.state == before[1] and plane.workers.denied == {"2"}
        said = [message for message in caplog.messages if says in message]
        assert len(said) == len(set(said)), "each is said once"
        assert [record for record in caplog.records if record.exc_info] == []
        assert plane.failed() == []

    @pytest.mark.parametrize(
        ("key", "raw", "says"),
        [
            ("number|" + "2" * 64, b"yes", "unreadable"),
            ("number|" + "2" * 64, b"{}", "unreadable"),
            ("number|" + "2" * 64, b'{"version": "2"}', "has no revision"),
            ("number", b'{"version": "2", "rev": 2}', "is not route|digest"),
            (b"\xff", b"\xff", "unreadable"),
        ],
    )
    async def test_a_deny_that_cannot_be(
        self, plane: ControlPlane, plain: Plain, key: str | bytes, raw: bytes, says: str
    ) -> None:
        before = state_of(plane)
        plain.hset(KEYS + "deny", key, raw)
        plain.xadd(KEYS + "log", {"type": "deny"})
        await until(lambda: says in plane.reader.refusal, lambda: plane.reader.troubles.texts)
        assert state_of(plane) == before
        plain.hdel(KEYS + "deny", key)
        await until(lambda: plane.reader.trouble == "", lambda: plane.reader.troubles.texts)
        assert state_of(plane) == before
