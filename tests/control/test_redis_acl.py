"""The users that configs/redis/ gives to an operator can do their work, and no more."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.control.exposure_store import Ask
from gateway.control.redis_exposure import RedisExposure
from gateway.control.redis_store import RedisStore
from gateway.control.store import StoreUnavailable
from gateway.routing.state import Revision
from tests.contracts.chain import verify
from tests.contracts.store import BAD, EMPTY, author, document, member, soon
from tests.servers.redis import KINDS, RedisServer
from tests.servers.sentinel import SentinelGroup

CONFIGS = Path(__file__).parents[2] / "configs" / "redis"
ADMIN = {"username": "admin", "password": "change-me-admin"}


async def test_each_user_can_do_its_work_and_no_more(own_redis: RedisServer) -> None:
    own_redis.restart("--aclfile", str(CONFIGS / "users.acl"))
    store = RedisStore(_url(own_redis), "default", "one")
    await _all_that_a_replica_does(store)
    await _durable_change(store, Revision(2, 1))

    counts = RedisExposure(_url(own_redis), "default", "one")
    asked = await counts.ask({BAD: Ask(limit=10, requests=1, errors=1, keys_limit=1, keys=(b"a", b"b"))})
    assert (asked[BAD].requests, asked[BAD].keys) == (1, (b"a",))
    await counts.renew([BAD])
    await counts.restart({BAD: 0})
    await counts.aclose()

    watch = store.watch()
    await soon(anext(watch))
    waiting = asyncio.ensure_future(anext(watch))
    login = {"username": "signal", "password": "change-me-signal"}
    with redis.Redis(port=own_redis.port, **login) as outside:
        outside.xadd("{turnout:default}:signals", {"action": "rollback", "route": "fraud"})
        for forbidden in (
            ("HGETALL", "{turnout:default}:state"),
            ("XADD", "{turnout:default}:log", "*", "type", "put"),
            ("DEL", "{turnout:default}:signals"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                outside.execute_command(*forbidden)
    (signal,) = await soon(waiting)
    await store.seen(signal.id)
    await watch.aclose()
    await store.aclose()

    with redis.Redis(port=own_redis.port, username="turnout", password="change-me-turnout") as replica:
        for forbidden in (("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("CLIENT", "KILL", "x:1")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                replica.execute_command(*forbidden)
    elsewhere = RedisStore(_url(own_redis), "other", "one")
    with pytest.raises(StoreUnavailable, match="ACL"):
        await elsewhere.read()
    await elsewhere.aclose()


@pytest.fixture(params=KINDS)
def guarded_group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SentinelGroup]:
    """As the manual says how to set it up: users everywhere, and nobody without one."""
    for name in ("users.acl", "sentinel.acl"):
        shutil.copy(CONFIGS / name, tmp_path / name)
    group = SentinelGroup(
        request.param,
        tmp_path / "group",
        options=[
            *("--aclfile", str(tmp_path / "users.acl")),
            *("--masteruser", "replication", "--masterauth", "change-me-replication"),
        ],
        sentinel_lines=[
            f"aclfile {tmp_path / 'sentinel.acl'}",
            "sentinel auth-user turnout sentinel",
            "sentinel auth-pass turnout change-me-sentinel",
            "sentinel sentinel-user sentinel",
            "sentinel sentinel-pass change-me-sentinel",
        ],
        login=ADMIN,
        sentinel_login=ADMIN,
    )
    try:
        group.start()
        yield group
    finally:
        group.close()


async def test_a_service_with_users_everywhere(guarded_group: SentinelGroup) -> None:
    url = guarded_group.url_with(
        user="turnout:change-me-turnout",
        query="sentinel_username=turnout&sentinel_password=change-me-turnout",
    )
    store = RedisStore(url, "default", "one")
    await _all_that_a_replica_does(store)
    last = await _durable_change(store, Revision(2, 1))
    await asyncio.to_thread(guarded_group.fail_over)
    async with asyncio.timeout(5):
        while True:
            try:
                assert (await store.put(document(5), last, author("e"), [])).rev == last.rev + 1
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    await store.aclose()

    for query, what in (("", "Authentication required"), ("sentinel_password=s3cret", "invalid username")):
        stranger = RedisStore(guarded_group.url_with(user="turnout:s3cret", query=query), "default", "one")
        with pytest.raises(StoreUnavailable, match=f"(?i)sentinel.*{what}") as error:
            await stranger.read()
        assert "s3cret" not in str(error.value)
        await stranger.aclose()


async def _durable_change(store: RedisStore, last: Revision) -> Revision:
    """Whether a change is durable can be told with these rights; on a busy machine a replica may be late for one."""
    for attempt in range(20):
        made = await store.put(document(attempt), last, author(f"durable{attempt}"), [])
        if made.durable is not False:  # None: this server cannot tell
            return made
        last = made
    raise AssertionError("no change was durable")


async def _all_that_a_replica_does(store: RedisStore) -> None:
    assert await store.put(document(), EMPTY, author("a"), []) == Revision(1, 1)
    assert await store.deny({BAD: "2"}, author("b"), []) == Revision(1, 2)
    assert await store.undeny([BAD], author("c"), []) == Revision(1, 3)
    await store.reject(author("d"), "no")
    await store.report(member("one"))
    assert len(await store.members()) == 1 and len(await store.history()) == 4
    verdict = await verify(store)
    assert (verdict.broken, verdict.lines) == ("", 4)
    held = await store.read()
    assert held is not None
    assert await store.restore(held, Revision(1, 3), author("r"), []) == Revision(2, 1)
    await store.leave()
    assert await store.members() == []


def _url(server: RedisServer) -> str:
    return f"redis://turnout:change-me-turnout@127.0.0.1:{server.port}"
