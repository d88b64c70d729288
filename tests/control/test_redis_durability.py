"""What `Committed.durable` says of one server, with and without a replica and an append-only file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from gateway.control.redis_store import RedisStore
from gateway.routing.state import Revision
from tests.contracts.store import BAD, EMPTY, author, document, soon
from tests.servers.redis import RedisServer


@pytest.fixture
async def store(own_redis: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(own_redis.url, "ns", "replica")
    yield store
    await store.aclose()


@pytest.fixture
def replica(own_redis: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    replica = RedisServer(own_redis.kind, tmp_path / "replica")
    with redis.Redis(port=own_redis.port) as plain:
        plain.config_set("repl-diskless-sync-delay", "0")
        replica.start("--replicaof", f"127.0.0.1 {own_redis.port}", "--appendonly", "no")
        # A replica is listed before it has loaded what it was sent, and then answers nothing for a while.
        until = time.monotonic() + 10
        plain.set("probe", "1")
        while plain.execute_command("WAIT", 1, 100) < 1:
            assert time.monotonic() < until
    yield replica
    replica.kill()


async def durably(store: RedisStore) -> None:
    """Puts until the store says that it is durable: a busy machine's replica may be late once."""
    revision = EMPTY
    async with asyncio.timeout(10):
        while True:
            made = await store.put(document(revision.rev), revision, author(str(revision)), [])
            if made.durable:
                return
            revision = made


def cannot_say(server: RedisServer) -> bool:
    """WAITAOF came with Redis 7.2."""
    return server.kind == "redis"


async def test_on_the_primarys_disk(own_redis: RedisServer, store: RedisStore) -> None:
    made = await store.put(document(), EMPTY, author("a"), [])
    assert made.durable is (None if cannot_say(own_redis) else True)


async def test_in_the_primarys_memory_alone(own_redis: RedisServer, store: RedisStore) -> None:
    own_redis.restart("--appendonly", "no")
    made = await store.put(document(), EMPTY, author("a"), [])
    assert made.durable is (None if cannot_say(own_redis) else False)


async def test_with_a_replica(own_redis: RedisServer, store: RedisStore, replica: RedisServer) -> None:
    with redis.Redis(port=own_redis.port) as plain:
        plain.config_set("appendonly", "no")
    await durably(store)


async def test_with_a_replica_that_does_not_answer(
    own_redis: RedisServer, store: RedisStore, replica: RedisServer
) -> None:
    with redis.Redis(port=own_redis.port) as plain:
        plain.config_set("appendonly", "no")
    replica.freeze()
    made = await soon(store.put(document(), EMPTY, author("a"), []))
    assert made == Revision(1, 1) and made.durable is False
    again = await soon(store.put(document(), EMPTY, author("a"), []))
    assert again == Revision(1, 1) and again.durable is None, "nothing was written this time"


async def test_a_user_who_may_not_ask(own_redis: RedisServer) -> None:
    with redis.Redis(port=own_redis.port) as plain:
        plain.execute_command("ACL", "SETUSER", "old", *["on", ">gate", "~*", "+@all", "-role", "-wait"])
        if not cannot_say(own_redis):
            plain.execute_command("ACL", "SETUSER", "old", "-waitaof")
    store = RedisStore(f"redis://old:gate@127.0.0.1:{own_redis.port}", "ns", "replica")
    await store.put(document(), EMPTY, author("a"), [])
    made = await store.deny({BAD: "2"}, author("b"), [])
    assert made == Revision(1, 2) and made.durable is None
    await store.aclose()
