"""The store of a service under Sentinel: real servers, real fail-overs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from gateway.control import redis_connection
from gateway.control.redis_store import RedisStore
from gateway.control.store import Committed, Conflict, StoreBehind, StoreUnavailable
from gateway.routing.state import DenyKey, Revision
from tests.contracts.store import BAD, EMPTY, author, document, soon
from tests.servers.redis import RedisServer
from tests.servers.sentinel import SERVICE, SentinelGroup

GOES_ON_S = 3.0
"""From the promotion of another primary to a store that is read, written and watched again."""


@pytest.fixture
async def store(sentinel_group: SentinelGroup) -> AsyncIterator[RedisStore]:
    store = RedisStore(sentinel_group.url, "ns", "replica")
    yield store
    await store.aclose()


class Watcher:
    """Follows a store as the reader does: a new watch after every error."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._changed = asyncio.Condition()
        self.revision = EMPTY
        self.trouble_at: float | None = None
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                async for _ in self._store.watch():
                    held = await self._store.read()
                    async with self._changed:
                        self.revision = held.revision if held else EMPTY
                        self._changed.notify_all()
            except StoreUnavailable:
                self.trouble_at = self.trouble_at or time.monotonic()
                await asyncio.sleep(0.05)

    async def sees(self, revision: Revision) -> None:
        async with asyncio.timeout(GOES_ON_S), self._changed:
            await self._changed.wait_for(lambda: self.revision == revision)

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def watcher(sentinel_group: SentinelGroup) -> AsyncIterator[Watcher]:
    store = RedisStore(sentinel_group.url, "ns", "other")
    watcher = Watcher(store)
    yield watcher
    await watcher.aclose()
    await store.aclose()


async def in_thread(what: Callable[..., RedisServer | None], **names: RedisServer) -> RedisServer | None:
    return await asyncio.to_thread(lambda: what(**names))


async def committed(store: RedisStore, number: int) -> Committed:
    """Denies until the store takes it, as the reader does with what is unpublished."""
    async with asyncio.timeout(GOES_ON_S):
        while True:
            try:
                return await store.deny({deny(number): str(number)}, author(f"deny-{number}"), [])
            except (StoreUnavailable, Conflict):
                await asyncio.sleep(0.05)


async def durably(store: RedisStore) -> Committed:
    """A revision that the replicas have: one on a busy machine may be late once."""
    for number in range(100, 200):
        made = await committed(store, number)
        if made.durable:
            return made
    raise AssertionError("no change was durable")


def deny(number: int) -> DenyKey:
    return DenyKey("fraud", f"{number:064}")


class TestAFailOver:
    @pytest.mark.parametrize("how", ["order", "kill", "freeze"])
    async def test_the_store_goes_on_with_the_next_primary(
        self, sentinel_group: SentinelGroup, store: RedisStore, watcher: Watcher, how: str
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await watcher.sees(await durably(store))
        old = sentinel_group.primary()
        if how == "order":
            await in_thread(sentinel_group.fail_over)
        else:
            getattr(old, how)()
            await in_thread(sentinel_group.promoted, instead_of=old)
        made = await committed(store, 7)
        await watcher.sees(made)
        held = await soon(store.read())
        assert held is not None and (held.revision, held.state) == (made, document())

    async def test_what_was_said_to_be_durable_is_there_after_it(
        self, sentinel_group: SentinelGroup, store: RedisStore
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        kept: list[int] = []

        async def write(until: asyncio.Event) -> None:
            number = 0
            while not until.is_set():
                number += 1
                try:
                    made = await store.deny({deny(number): ""}, author(f"deny-{number}"), [])
                except StoreBehind:
                    # Not durable, so lost: it goes on with what is there.
                    held = await soon(store.read())
                    assert held is not None
                    await store.carry_over(held, held.revision, author(f"carry-{number}"), [])
                    continue
                except StoreUnavailable:
                    await asyncio.sleep(0.01)
                    continue
                if made.durable:
                    kept.append(number)

        over = asyncio.Event()
        writing = asyncio.create_task(write(over))
        for _ in range(2):
            before = len(kept)
            async with asyncio.timeout(10):
                while len(kept) < before + 20:
                    await asyncio.sleep(0.01)
            old = sentinel_group.primary()
            old.kill()
            await in_thread(sentinel_group.promoted, instead_of=old)
            sentinel_group.start_again(old)
            await asyncio.to_thread(sentinel_group.settle)
        over.set()
        await writing
        held = await soon(store.read())
        assert held is not None
        assert {deny(number) for number in kept} <= held.denies.keys()

    async def test_a_primary_that_freezes_is_noticed_within_two_seconds(
        self, sentinel_group: SentinelGroup, store: RedisStore, watcher: Watcher
    ) -> None:
        await watcher.sees(await store.put(document(), EMPTY, author("a"), []))
        frozen_at = time.monotonic()
        sentinel_group.primary().freeze()
        async with asyncio.timeout(3):
            while watcher.trouble_at is None:
                await asyncio.sleep(0.01)
        assert watcher.trouble_at - frozen_at < 2.0


class TestWhatIsNotTheStore:
    async def test_a_replica_that_a_late_sentinel_still_names(
        self, sentinel_group: SentinelGroup, store: RedisStore
    ) -> None:
        """Two sentinels sleep through a fail-over, wake up and are the only ones that answer."""
        await store.put(document(), EMPTY, author("a"), [])
        old = sentinel_group.primary()
        await in_thread(sentinel_group.fail_over)
        await asyncio.to_thread(sentinel_group.settle)
        with sentinel_group.client(old) as client:
            assert client.execute_command("ROLE")[0] == "slave"
        for sentinel in sentinel_group.sentinels:
            sentinel_group.ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
            sentinel_group.ask(sentinel, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", str(old.port), "2")
        late = RedisStore(sentinel_group.url, "ns", "late")
        with pytest.raises(StoreUnavailable, match=f"{old.port} is no primary"):
            await late.read()
        await late.aclose()

    async def test_a_primary_that_was_deposed_and_does_not_know_it(
        self, sentinel_group: SentinelGroup
    ) -> None:
        """It answers as before, for up to ten seconds: the next compare leaves it."""
        store = RedisStore(sentinel_group.url, "ns", "replica", jitter=lambda: 0.1)
        await store.put(document(), EMPTY, author("a"), [])
        watch = store.watch()
        await soon(anext(watch))
        (another, _) = sentinel_group.replicas()
        for sentinel in sentinel_group.sentinels:
            sentinel_group.ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
            sentinel_group.ask(sentinel, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", str(another.port), "2")
        with pytest.raises(StoreUnavailable, match="another primary"):
            async with asyncio.timeout(3):
                while True:
                    await anext(watch)
        with pytest.raises(StoreUnavailable, match="no primary"):
            await store.read()
        await store.aclose()

    async def test_what_a_deposed_primary_answers_late_counts_for_nothing(
        self, sentinel_group: SentinelGroup, store: RedisStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one that was frozen does when it thaws: its data would look like a loss of what came since."""
        monkeypatch.setattr(redis_connection, "CALL_TIMEOUT_S", 30.0)
        await store.put(document(), EMPTY, author("a"), [])
        connections = store._connections
        with pytest.raises(StoreUnavailable, match="it was deposed meanwhile"):
            async with connections.line() as line:
                await in_thread(sentinel_group.fail_over)
                primary = await connections.primary()
                assert primary is not None and primary.config_epoch > line.life
        assert (await committed(store, 1)).epoch == 2

    async def test_sentinels_that_count_from_the_beginning_are_late_or_new(
        self, sentinel_group: SentinelGroup, store: RedisStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        now = await in_thread(sentinel_group.fail_over)
        assert now is not None
        made = await committed(store, 1)
        for sentinel in sentinel_group.sentinels:
            sentinel_group.ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
        # Not one by one: they would learn the old count from each other.
        for sentinel in sentinel_group.sentinels:
            sentinel_group.ask(sentinel, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", str(now.port), "2")
        with pytest.raises(StoreUnavailable, match="that was deposed"):
            async with store._connections.waiting_line():
                pass
        monkeypatch.setattr(redis_connection, "SENTINELS_LAG_S", 0.0)
        async with store._connections.waiting_line() as line:
            assert line.life == 0
        assert (await committed(store, 2)).epoch == made.epoch

    async def test_no_sentinel_answers(self, sentinel_group: SentinelGroup) -> None:
        sentinel_group.sentinels[0].freeze()
        for sentinel in sentinel_group.sentinels[1:]:
            sentinel.kill()
        store = RedisStore(sentinel_group.url, "ns", "replica")
        with pytest.raises(StoreUnavailable, match=f"no sentinel knows where {SERVICE} is"):
            await soon(store.read())
        await store.aclose()

    async def test_no_sentinel_knows_the_service(self, sentinel_group: SentinelGroup) -> None:
        url = sentinel_group.url.replace(f"/{SERVICE}/", "/another/")
        store = RedisStore(url, "ns", "replica")
        with pytest.raises(StoreUnavailable, match="no sentinel knows where another is"):
            await store.read()
        await store.aclose()

    async def test_one_sentinel_is_enough_where_the_others_are_frozen_or_gone(
        self, sentinel_group: SentinelGroup, store: RedisStore
    ) -> None:
        sentinel_group.sentinels[0].freeze()
        sentinel_group.sentinels[1].kill()
        assert await soon(store.put(document(), EMPTY, author("a"), [])) == Revision(1, 1)


class TestDurable:
    @pytest.mark.parametrize("frozen", [1, 2])
    async def test_it_is_not_where_a_replica_does_not_answer(
        self, sentinel_group: SentinelGroup, store: RedisStore, frozen: int
    ) -> None:
        """Sentinel may promote any of them, by offsets that it knew some seconds ago."""
        await store.put(document(), EMPTY, author("a"), [])
        assert (await durably(store)).durable is True
        for replica in sentinel_group.replicas()[:frozen]:
            replica.freeze()
        made = await soon(store.deny({BAD: "2"}, author("b"), []))
        assert made.durable is False

    async def test_it_is_not_where_there_is_no_replica(
        self, sentinel_group: SentinelGroup, store: RedisStore
    ) -> None:
        for replica in sentinel_group.replicas():
            replica.kill()
        made = await soon(store.put(document(), EMPTY, author("b"), []))
        assert made.durable is False
