from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from gateway.control.divergence import Verdict, judge
from gateway.control.file_store import FileStore
from gateway.control.redis_store import RedisStore
from gateway.control.store import Store, StoreUnavailable
from gateway.control.troubles import Trouble
from gateway.routing import change
from gateway.routing.state import EMPTY, InForce, Revision
from tests.control.replica import ControlPlane, author, soon
from tests.servers.meddler import Meddler
from tests.servers.redis import RedisServer
from tests.states import in_force, route

SPLIT = route({"stable 1": 90, "canary 2": 10})
OTHER = route({"stable 1": 80, "canary 2": 20})


def held(declared: object = SPLIT, revision: tuple[int, int] = (1, 5), denied: str = "") -> InForce:
    return in_force(declared, revision=Revision(*revision), denied=list(denied))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [
        # A replica that never held anything believes all that it is told, also that there is nothing.
        (EMPTY, None, Verdict.NOTHING),
        (EMPTY, held(), Verdict.TAKE),
        # The same.
        (held(), held(), Verdict.NOTHING),
        (held(denied="2"), held(denied="2"), Verdict.NOTHING),
        # Newer: a higher revision, whatever it holds, or a later life of the store.
        (held(), held(OTHER, (1, 6)), Verdict.TAKE),
        (held(), held(SPLIT, (1, 6)), Verdict.TAKE),
        (held(), held(OTHER, (2, 1)), Verdict.TAKE),
        # The same document with other denies.
        (held(), held(denied="2"), Verdict.TAKE),
        (held(denied="2"), held(), Verdict.TAKE),
        (held(denied="2"), held(denied="3"), Verdict.TAKE),
        # Somebody wrote past the compare-and-set.
        (held(), held(OTHER), Verdict.FORK),
        (held(), held(OTHER, denied="2"), Verdict.FORK),
        # The store lost what was in force here.
        (held(), held(SPLIT, (1, 4)), Verdict.REGRESSED),
        (held(), held(OTHER, (1, 4), denied="2"), Verdict.REGRESSED),
        (held(revision=(2, 1)), held(revision=(1, 99)), Verdict.REGRESSED),
        (held(), None, Verdict.EMPTIED),
        # Without routes there is nothing to lose.
        (in_force(), None, Verdict.NOTHING),
    ],
)
def test_what_the_stores_state_means(here: InForce, there: InForce | None, verdict: Verdict) -> None:
    assert judge(here, there) is verdict


class BrokenStore:
    """A real store that can be out of reach."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.down = False

    def __getattr__(self, name: str) -> object:
        if self.down and name not in ("shared", "aclose"):
            raise StoreUnavailable("connection refused")
        return getattr(self._store, name)

    async def watch(self) -> AsyncIterator[Sequence[object]]:
        async for signals in self._store.watch():
            if self.down:
                raise StoreUnavailable("connection refused")
            yield signals


@pytest.fixture
def broken(plane: ControlPlane, planes: Callable[..., ControlPlane]) -> tuple[BrokenStore, ControlPlane]:
    """A replica whose store can be out of reach; it has the registry of `plane`."""
    store = BrokenStore(plane.store)
    made = planes(store)
    made.models = plane.models
    return store, made


class TestOnAFile:
    async def test_it_follows(self, plane: ControlPlane) -> None:
        plane.run(reader=True)
        await soon(plane.reader.reached.wait())
        assert plane.reader.trouble == ""
        await plane.apply()
        current = await plane.store.read()
        assert current is not None
        state = change.set_weights(current, "number", {"canary": 50})
        await plane.store.put(state, current.revision, author("beside"), [])
        await soon(plane.deliverer.wait_for(Revision(1, 2)))
        assert plane.deliverer.held.state == state
        assert plane.reader.age_s < 5

    async def test_a_deny_while_the_store_is_away_is_published_when_it_is_back(
        self, broken: tuple[BrokenStore, ControlPlane]
    ) -> None:
        store, plane = broken
        plane.run(reader=True)
        await plane.apply()
        store.down = True
        outcome = await soon(plane.operations.rollback("number", None, author("rescue", "wrong digits")))
        assert (outcome.published, outcome.revision) == (False, "1.1+1")
        assert plane.workers.denied == {"2"}
        assert plane.deliverer.held.label == "1.1+1"
        assert await store._store.read() is not None
        store.down = False
        await soon(plane.deliverer.wait_for(Revision(1, 2)))
        assert plane.deliverer.held.label == "1.2"
        (record, _) = await plane.store.history()
        assert (record.type, record.actor, record.reason) == ("deny", "ann", "wrong digits")
        assert record.changes[0]["after"]["stable"]["share"] == 100

    async def test_what_was_denied_together_is_published_in_one_revision(
        self, broken: tuple[BrokenStore, ControlPlane]
    ) -> None:
        store, plane = broken
        plane.run(reader=True)
        await plane.apply(names=("number", "letter", "other"))
        store.down = True
        both = {"number": None, "letter": "2"}
        outcome = await soon(plane.operations.rollback_of(both, author("rescue")))
        assert (outcome.published, outcome.revision) == (False, "1.1+2")
        await soon(plane.operations.rollback("other", None, author("later")))
        store.down = False
        await soon(plane.deliverer.wait_for(Revision(1, 3)))
        published = [
            [change["route"] for change in record.changes]
            for record in await plane.store.history()
            if record.type == "deny"
        ]
        assert sorted(published) == [["letter", "number"], ["other"]]

    @pytest.mark.parametrize("cut", [10, None], ids=["unreadable", "another hash"])
    async def test_a_damaged_file_ends_nothing_and_hears_of_denies_when_it_is_mended(
        self, plane: ControlPlane, cut: int | None
    ) -> None:
        plane.run(reader=True)
        await plane.apply()
        assert isinstance(plane.store, FileStore)
        raw = plane.store.state_path.read_bytes()
        plane.store.state_path.write_bytes(raw.replace(b"stable", b"steady")[:cut])
        outcome = await soon(plane.operations.rollback("number", None, author("rescue")))
        assert (outcome.published, outcome.changed) == (False, True)
        assert plane.workers.denied == {"2"}
        await plane.until(lambda: Trouble.DAMAGED in plane.reader.troubles)
        await soon(plane.reader.synchronise())
        assert plane.failed() == []
        assert (await soon(plane.settlement.restore(author("restore")))).durable
        await plane.until(lambda: plane.reader.trouble == "")
        assert plane.deliverer.held.label == "2.1" and plane.workers.denied == {"2"}

    async def test_an_alert_that_was_published_later_undoes_no_decision(
        self, broken: tuple[BrokenStore, ControlPlane]
    ) -> None:
        store, plane = broken
        plane.run(reader=True)
        await plane.apply()
        store.down = True
        await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        store.down = False
        await soon(plane.deliverer.wait_for(Revision(1, 2)))
        await soon(plane.operations.allow("number", "2", author("a")))
        again = await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        assert (again.changed, plane.workers.denied) == (False, set())

    async def test_a_store_that_is_away_is_said_so_and_ends_nothing(
        self, broken: tuple[BrokenStore, ControlPlane]
    ) -> None:
        store, plane = broken
        store.down = True
        plane.run(reader=True)
        await plane.until(lambda: plane.reader.trouble == "connection refused")
        assert not plane.reader.reached.is_set()
        store.down = False
        await soon(plane.reader.reached.wait())
        assert plane.reader.trouble == ""
        assert plane.failed() == []


@pytest.fixture
async def shared(
    planes: Callable[..., ControlPlane], shared_redis: RedisServer, namespace: str
) -> ControlPlane:
    made = planes(RedisStore(shared_redis.url, namespace, "one"))
    made.publish("1")
    made.publish("2")
    made.publish("3")
    return made


class TestOnRedis:
    async def test_an_emptied_store_keeps_the_local_state(
        self, shared: ControlPlane, meddler: Meddler
    ) -> None:
        shared.run(reader=True)
        await shared.apply()
        before = shared.deliverer.held
        meddler.empty()
        meddler.wake()
        await shared.until(lambda: "is empty" in shared.reader.trouble)
        assert shared.deliverer.held is before
        # A rollback here works all the same, and is not taken for a failure.
        outcome = await soon(shared.operations.rollback("number", None, author("rescue")))
        assert (outcome.published, outcome.changed) == (False, True)
        assert shared.workers.denied == {"2"}
        assert shared.failed() == []

    async def test_a_store_that_went_back_is_given_its_denies_again(
        self, shared: ControlPlane, meddler: Meddler
    ) -> None:
        shared.run(reader=True)
        await shared.apply()
        await soon(shared.operations.weights("number", {"canary": 50}, author("w")))
        stale = meddler.dump()
        await soon(shared.operations.weights("number", {"canary": 60}, author("w2")))
        await soon(shared.operations.rollback("number", None, author("r", "wrong digits")))
        await soon(shared.deliverer.wait_for(Revision(1, 4)))
        before = shared.deliverer.held
        meddler.restore(stale)
        meddler.wake()
        await shared.until(lambda: "went back to revision 1.2" in shared.reader.trouble)
        async with asyncio.timeout(10):
            while (stored := await shared.store.read()) is None or not stored.denies:
                await asyncio.sleep(0.01)
        assert stored.denies.keys() == before.denies.keys()
        assert stored.revision == (1, 3)
        assert shared.deliverer.held.state == before.state, "the local document is kept"
        assert shared.workers.denied == {"2"}

    async def test_a_lost_deny_alone_heals_by_itself(self, shared: ControlPlane, meddler: Meddler) -> None:
        shared.run(reader=True)
        await shared.apply()
        stale = meddler.dump()
        await soon(shared.operations.rollback("number", None, author("r")))
        await soon(shared.deliverer.wait_for(Revision(1, 2)))
        meddler.restore(stale)
        meddler.wake()
        await shared.until(lambda: "went back" in shared.reader.trouble)
        await shared.until(lambda: shared.reader.trouble == "")
        stored = await shared.store.read()
        assert stored is not None
        assert (stored.revision, set(stored.denies)) == ((1, 2), set(shared.deliverer.held.denies))

    async def test_a_fork_keeps_the_local_state(self, shared: ControlPlane, meddler: Meddler) -> None:
        shared.run(reader=True)
        await shared.apply()
        stale = meddler.dump()
        await soon(shared.operations.weights("number", {"canary": 50}, author("w")))
        before = shared.deliverer.held
        meddler.restore(stale)
        first = await shared.store.read()
        assert first is not None
        elsewhere = change.set_weights(first, "number", {"canary": 77})
        await shared.store.put(elsewhere, Revision(1, 1), author("elsewhere"), [])
        await shared.until(lambda: "another document under revision 1.2" in shared.reader.trouble)
        assert shared.deliverer.held is before
        # A deny that is pushed into a fork would make it the higher revision.
        await soon(shared.deliverer.deny_now(change.rollback(before, "number"), author("here"), 1))
        await soon(shared.reader.synchronise())
        stored = await shared.store.read()
        assert stored is not None and (stored.revision, stored.denies) == ((1, 2), {})

    async def test_a_deny_that_somebody_else_lifted_is_not_pushed_again(self, shared: ControlPlane) -> None:
        shared.run()
        await shared.apply()
        await soon(shared.operations.rollback("number", None, author("r")))
        await shared.store.undeny(list(shared.deliverer.held.denies), author("elsewhere"), [])
        await soon(shared.reader.synchronise())
        stored = await shared.store.read()
        assert stored is not None and (stored.revision, stored.denies) == ((1, 3), {})
        assert shared.deliverer.newest.denies == {}

    async def test_a_lifted_deny_is_not_pushed_again(self, shared: ControlPlane) -> None:
        shared.run(reader=True)
        await shared.apply()
        await soon(shared.operations.rollback("number", None, author("r")))
        await soon(shared.operations.allow("number", "2", author("a")))
        await soon(shared.deliverer.wait_for(Revision(1, 3)))
        assert shared.deliverer.held.denies == {}
        await soon(shared.reader.synchronise())
        stored = await shared.store.read()
        assert stored is not None and (stored.revision, stored.denies) == ((1, 3), {})

    async def test_a_damaged_document_keeps_the_local_state(
        self, shared: ControlPlane, meddler: Meddler
    ) -> None:
        shared.run(reader=True)
        await shared.apply()
        before = shared.deliverer.held
        meddler.redis.hset(meddler.prefix + "state", "sha256", "0" * 64)
        meddler.wake()
        await shared.until(lambda: "sha256" in shared.reader.trouble)
        assert shared.deliverer.held is before
        outcome = await soon(shared.operations.rollback("number", None, author("rescue")))
        assert outcome.changed and shared.workers.denied == {"2"}
        assert shared.failed() == []
