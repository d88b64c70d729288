"""After a fail-over that lost changes: the first change of a primary begins an epoch, and what was lost comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import redis

from gateway.control.redis_connection import RedisLine
from gateway.control.redis_store import RedisStore
from gateway.control.store import StoreBehind, StoreUnavailable
from gateway.routing.state import DenyKey, InForce, Revision
from tests.contracts.store import BAD, EMPTY, author, document, soon
from tests.control.replica import ControlPlane
from tests.servers.meddler import Meddler
from tests.servers.redis import RedisServer
from tests.servers.sentinel import SentinelGroup

OTHER = DenyKey("digits", "7" * 64)


class Lives:
    """How many fail-overs there were, as every connection's sentinels say it."""

    def __init__(self) -> None:
        self.now = 3


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> Lives:
    lives = Lives()
    monkeypatch.setattr(RedisLine, "life", property(lambda _: lives.now))
    return lives


@pytest.fixture
async def store(lives: Lives, shared_redis: RedisServer, namespace: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(shared_redis.url, namespace, "replica")
    yield store
    await store.aclose()


async def read(store: RedisStore) -> InForce:
    held = await soon(store.read())
    assert held is not None
    return held


class TestTheFirstChangeOfALife:
    async def test_begins_an_epoch_that_continues_the_revisions(
        self, store: RedisStore, lives: Lives
    ) -> None:
        assert await store.put(document(), EMPTY, author("a"), []) == (1, 1)
        assert await store.deny({BAD: "2"}, author("b"), []) == (1, 2)
        lives.now += 1
        assert await store.put(document(), Revision(1, 2), author("c"), []) == (2, 3)
        held = await read(store)
        assert (held.revision, held.base) == ((2, 3), (1, 2))
        # Within a life none does.
        assert await store.undeny([BAD], author("d"), []) == (2, 4)
        assert (await read(store)).base == (1, 2)
        # As many epochs as primaries: what one between took, and lost, has one of its own.
        lives.now += 2
        assert await store.deny({BAD: "2"}, author("e"), []) == (4, 5)

    async def test_whatever_the_first_change_is(self, store: RedisStore, lives: Lives) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({BAD: "2"}, author("b"), [])
        lives.now += 1
        await store.reject(author("r"), "no such route")
        assert (await read(store)).revision == (1, 2), "a refusal is no change"
        assert await store.undeny([BAD], author("c"), []) == (2, 3)

    async def test_that_is_made_twice_is_one(self, store: RedisStore, lives: Lives) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({BAD: "2"}, author("b"), [])
        lives.now += 1
        assert await store.deny({OTHER: "3"}, author("c"), []) == (2, 3)
        assert await store.deny({OTHER: "3"}, author("c"), []) == (2, 3)
        # What was there before is part of the epoch's first revision, and has no other label in it.
        assert await store.deny({BAD: "2"}, author("b"), []) == (2, 3)
        assert await store.deny({DenyKey("a", "0" * 64): ""}, author("e"), []) == (2, 4)
        assert await store.deny({OTHER: "3"}, author("c"), []) == (2, 3)

    async def test_two_primaries_that_lost_each_others_changes_share_no_revision(
        self, store: RedisStore, lives: Lives, meddler: Meddler
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        stale = meddler.dump()
        lives.now += 1
        lost = await store.deny({BAD: "2"}, author("b"), [])
        lives.now += 1
        meddler.restore(stale)
        store._newest = Revision(1, 1)  # another replica, that has not heard of it
        assert (lost, await store.deny({OTHER: "3"}, author("c"), [])) == ((2, 2), (3, 2))

    async def test_an_older_life_begins_none(self, store: RedisStore, lives: Lives) -> None:
        """Sentinels that were set up anew count from the beginning."""
        await store.put(document(), EMPTY, author("a"), [])
        lives.now = 0
        assert await store.deny({BAD: "2"}, author("b"), []) == (1, 2)

    async def test_its_line_is_part_of_the_chain(self, store: RedisStore, lives: Lives) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        lives.now += 1
        await store.deny({BAD: "2"}, author("b"), [])
        newest, first = await store.history()
        assert (newest.epoch, newest.rev, newest.prev) == (2, 2, first.head)


class TestChangesThatWereLost:
    async def test_none_is_made_past_them(self, store: RedisStore, lives: Lives, meddler: Meddler) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({OTHER: "3"}, author("b"), [])
        stale = meddler.dump()
        await store.deny({BAD: "2"}, author("c"), [])
        meddler.restore(stale)
        lives.now += 1
        with pytest.raises(StoreBehind, match=r"at revision 1\.2, before 1\.3"):
            await store.deny({BAD: "2"}, author("d"), [])
        with pytest.raises(StoreBehind):
            await store.undeny([OTHER], author("e"), [])
        assert (await read(store)).revision == (1, 2)

    async def test_are_given_back_once(self, store: RedisStore, lives: Lives, meddler: Meddler) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({OTHER: "3"}, author("b"), [])
        stale = meddler.dump()
        await store.undeny([OTHER], author("c"), [])
        await store.deny({BAD: "2"}, author("d"), [])
        held = await read(store)
        meddler.restore(stale)
        by = author("carry")
        assert await store.carry_over(held, Revision(1, 2), by, []) is None, "there was no fail-over"
        assert (await read(store)).revision == (1, 2)
        lives.now += 1
        assert await store.carry_over(held, Revision(1, 2), by, []) == (2, 1)
        now = await read(store)
        assert (now.revision, now.base, now.state) == ((2, 1), (1, 4), held.state)
        # What was lifted is not back.
        assert now.denies.keys() == {BAD}
        assert await store.carry_over(held, Revision(2, 1), author("again"), []) is None
        assert await store.deny({OTHER: "3"}, author("e"), []) == (2, 2), "one life, one epoch"

    async def test_the_highest_epoch_that_anybody_has_is_passed(
        self, store: RedisStore, lives: Lives, meddler: Meddler
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        held = await read(store)
        lives.now += 1
        assert await store.carry_over(held, Revision(1, 1), author("c"), [], known_epoch=8) == (9, 1)


@pytest.fixture
def replicas(
    planes: Callable[[RedisStore], ControlPlane], lives: Lives, shared_redis: RedisServer, namespace: str
) -> Callable[[str], ControlPlane]:
    return _replicas(planes, shared_redis.url, namespace)


def _replicas(
    planes: Callable[[RedisStore], ControlPlane], url: str, namespace: str
) -> Callable[[str], ControlPlane]:
    made: list[ControlPlane] = []

    def make(name: str) -> ControlPlane:
        plane = planes(RedisStore(url, namespace, name))
        if made:
            plane.models = made[0].models
        else:
            for version in "123":
                plane.publish(version)
        made.append(plane)
        return plane

    return make


@pytest.fixture
async def two(replicas: Callable[[str], ControlPlane]) -> tuple[ControlPlane, ControlPlane]:
    return await following(replicas)


async def following(replicas: Callable[[str], ControlPlane]) -> tuple[ControlPlane, ControlPlane]:
    """Both follow, and both hold revision 1.1."""
    one, other = replicas("one"), replicas("other")
    one.run(reader=True)
    await one.apply()
    other.run(reader=True)
    await soon(other.deliverer.wait_for(Revision(1, 1)))
    return one, other


async def hold(two: tuple[ControlPlane, ControlPlane], revision: tuple[int, int]) -> None:
    for plane in two:
        async with asyncio.timeout(15):
            while plane.deliverer.acknowledged.revision != revision:
                await asyncio.sleep(0.005)


def weight_bp(plane: ControlPlane) -> int:
    return plane.deliverer.held.state.routes["number"].variants["canary"].weight_bp


def denied(plane: ControlPlane) -> set[str]:
    return {deny.version for deny in plane.deliverer.held.denies.values()}


class TestReplicas:
    async def test_give_back_what_they_all_had(
        self, two: tuple[ControlPlane, ControlPlane], lives: Lives, meddler: Meddler
    ) -> None:
        one, _ = two
        await soon(one.operations.rollback("number", None, author("r")))
        stale = meddler.dump()
        await soon(one.operations.allow("number", "2", author("a")))
        await soon(one.operations.weights("number", {"canary": 50}, author("w")))
        await hold(two, (1, 4))
        meddler.restore(stale)
        lives.now += 1
        meddler.wake()
        await hold(two, (2, 1))
        for plane in two:
            assert (weight_bp(plane), denied(plane), plane.reader.trouble) == (5000, set(), "")
        (line, *_) = await one.store.history()
        assert (line.type, line.actor) == ("restore", "turnout")
        assert line.reason == "a fail-over lost what came after 1.2 (continues 1.4)"
        assert [each["route"] for each in line.changes] == ["number"]

    async def test_a_rollback_that_is_the_first_to_notice_loses_nothing(
        self, replicas: Callable[[str], ControlPlane], lives: Lives, meddler: Meddler
    ) -> None:
        one = replicas("one")
        one.run()
        await one.apply()
        stale = meddler.dump()
        await soon(one.operations.weights("number", {"canary": 50}, author("w")))
        meddler.restore(stale)
        lives.now += 1
        outcome = await soon(one.operations.rollback("number", None, author("r")))
        assert (outcome.revision, outcome.published) == ("2.2", True)
        stored = await one.store.read()
        assert stored is not None
        assert stored.state.routes["number"].variants["canary"].weight_bp == 5000
        assert {deny.version for deny in stored.denies.values()} == {"2"}
        assert [line.type for line in await one.store.history()][:2] == ["deny", "restore"]

    async def test_and_so_does_a_change_of_weights(
        self, replicas: Callable[[str], ControlPlane], lives: Lives, meddler: Meddler
    ) -> None:
        one = replicas("one")
        one.run()
        await one.apply()
        stale = meddler.dump()
        await soon(one.operations.apply(one.manifest(names=("number", "other")), author("a")))
        meddler.restore(stale)
        lives.now += 1
        outcome = await soon(one.operations.weights("number", {"canary": 50}, author("w")))
        assert outcome.revision == "2.2"
        assert weight_bp(one) == 5000
        assert one.deliverer.held.state.routes.keys() == {"number", "other"}

    async def test_one_that_was_further_publishes_its_denies_again(
        self,
        replicas: Callable[[str], ControlPlane],
        lives: Lives,
        meddler: Meddler,
        shared_redis: RedisServer,
        namespace: str,
    ) -> None:
        one, other = replicas("one"), replicas("other")
        one.run()
        await one.apply()
        other.run(reader=True)
        await soon(other.deliverer.wait_for(Revision(1, 1)))
        stale = meddler.dump()
        # Of one route: a deny and, on the new primary, the lift of another one.
        await soon(one.operations.rollback("number", "2", author("r")))
        await other.hears_of_denies("2")
        meddler.restore(stale)
        lives.now += 1
        key = DenyKey("number", one.deliverer.held.state.routes["number"].variants["stable"].pin.digest)
        behind = RedisStore(shared_redis.url, namespace, "behind")
        assert await behind.deny({key: "1"}, author("x"), []) == (2, 2)
        await behind.undeny([key], author("y"), [{"route": "number", "lifted": [str(key)]}])
        await behind.aclose()
        async with asyncio.timeout(15):
            while (stored := await one.store.read()) is None or len(stored.denies) != 1:
                await asyncio.sleep(0.01)
        assert {deny.version for deny in stored.denies.values()} == {"2"}
        await other.hears_of_denies("2")
        assert other.deliverer.held.revision.epoch == 2


@pytest.mark.timeout(60)
async def test_under_sentinel_what_was_acknowledged_and_not_durable_outlives_the_primary(
    sentinel_group: SentinelGroup,
    planes: Callable[[RedisStore], ControlPlane],
) -> None:
    two = await following(_replicas(planes, sentinel_group.url, "ns"))
    one, _ = two
    await soon(one.operations.rollback("number", None, author("r")))
    old, replicas = sentinel_group.primary(), sentinel_group.replicas()
    for server in replicas:
        server.freeze()
    # Or what comes now would lie in the kernel's buffers, for them to find when they thaw.
    with redis.Redis(port=old.port) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    outcome = await soon(one.operations.allow("number", "2", author("a")))
    await soon(one.operations.weights("number", {"canary": 50}, author("w")))
    await hold(two, (1, 4))
    assert outcome.durable is False
    old.kill()
    for server in replicas:
        server.thaw()
    await asyncio.to_thread(sentinel_group.promoted, instead_of=old)
    await hold(two, (2, 1))
    for plane in two:
        assert (weight_bp(plane), denied(plane), plane.reader.trouble) == (5000, set(), "")
    async with asyncio.timeout(10):
        while True:
            try:
                made = await one.operations.rollback("number", None, author("r2"))
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    assert made.revision == "2.2"
