"""The least that the users of a Redis with ACLs need: what the manual tells an operator to write."""

from __future__ import annotations

import asyncio

import pytest
import redis

from gateway.control.exposure_store import Ask
from gateway.control.redis_exposure import RedisExposure
from gateway.control.redis_store import RedisStore
from gateway.control.store import StoreUnavailable
from gateway.routing.state import Revision
from tests.contracts.store import BAD, EMPTY, author, document, member, soon
from tests.servers.redis import RedisServer

SUPERVISOR = (
    "on >gate resetkeys resetchannels ~{turnout:ns}:* -@all +hello +ping +auth +multi +exec "
    "+time +eval +evalsha +hget +hmget +hgetall +hset +hdel +hexists +hlen +exists +del +expire "
    "+xadd +xread +xrange +xrevrange +zadd +zscore +zrangebyscore +zremrangebyscore +zremrangebyrank "
    "+role +wait +ttl +hincrby +sadd +scard +sismember"
)
SIGNAL = "on >wave resetkeys resetchannels -@all +hello +ping +auth +xadd ~{turnout:ns}:signals"


async def test_each_user_can_do_its_work_and_no_more(own_redis: RedisServer) -> None:
    with redis.Redis(port=own_redis.port) as admin:
        admin.execute_command("ACL", "SETUSER", "supervisor", *SUPERVISOR.split())
        admin.execute_command("ACL", "SETUSER", "signal", *SIGNAL.split())
        admin.execute_command("ACL", "SETUSER", "default", "off")

    store = RedisStore(f"redis://supervisor:gate@127.0.0.1:{own_redis.port}", "ns", "one")
    assert await store.put(document(), EMPTY, author("a"), []) == Revision(1, 1)
    assert await store.deny({BAD: "2"}, author("b"), []) == Revision(1, 2)
    assert await store.undeny([BAD], author("c"), []) == Revision(1, 3)
    await store.reject(author("d"), "no")
    await store.report(member("one"))
    assert len(await store.members()) == 1 and len(await store.history()) == 4
    assert await store.read() is not None

    counts = RedisExposure(f"redis://supervisor:gate@127.0.0.1:{own_redis.port}", "ns", "one")
    asked = await counts.ask({BAD: Ask(limit=10, requests=1, errors=1, keys_limit=1, keys=(b"a", b"b"))})
    assert (asked[BAD].requests, asked[BAD].keys) == (1, (b"a",))
    await counts.renew([BAD])
    await counts.restart({BAD: 0})
    await counts.aclose()

    watch = store.watch()
    await soon(anext(watch))
    waiting = asyncio.ensure_future(anext(watch))
    with redis.Redis(port=own_redis.port, username="signal", password="wave") as outside:
        outside.xadd("{turnout:ns}:signals", {"action": "rollback", "route": "fraud"})
        for forbidden in (
            lambda: outside.hgetall("{turnout:ns}:state"),
            lambda: outside.xadd("{turnout:ns}:log", {"type": "put"}),
            lambda: outside.delete("{turnout:ns}:signals"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                forbidden()  # type: ignore[no-untyped-call]
    (signal,) = await soon(waiting)
    await store.seen(signal.id)
    await watch.aclose()
    await store.aclose()

    elsewhere = RedisStore(f"redis://supervisor:gate@127.0.0.1:{own_redis.port}", "other", "one")
    with pytest.raises(StoreUnavailable, match="ACL"):
        await elsewhere.read()
    await elsewhere.aclose()
