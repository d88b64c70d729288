"""A store that lost writes, or has others: what is kept, what is denied, and how a person settles it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from gateway.control.divergence import Divergence, Verdict, judge
from gateway.control.redis_store import RedisStore
from gateway.control.store import Conflict, StoreDiverged
from gateway.control.troubles import Trouble
from gateway.routing import change
from gateway.routing.change import ChangeRefused
from gateway.routing.state import DenyKey, InForce, Revision
from tests.contracts.store import member
from tests.control.replica import ControlPlane, author, soon
from tests.servers.meddler import Meddler
from tests.servers.redis import RedisServer
from tests.states import deny, in_force, route

SPLIT = route({"stable 1": 90, "canary 2": 10})
OTHER = route({"stable 1": 80, "canary 2": 20})


def state(revision: str, declared: object = SPLIT, *, base: str = "0.0", denied: str = "") -> InForce:
    """`denied="2@4 3@0"`: version 2, denied with rev 4, and version 3, which only this replica knows."""
    held = in_force(declared, revision=Revision.parse(revision))  # type: ignore[arg-type]
    tombs = dict(deny(text[0], rev=int(text[2:])) for text in denied.split())
    return msgspec.structs.replace(held, base=Revision.parse(base), denies=tombs)


@pytest.mark.parametrize(
    ("stored", "verdict"),
    [
        # Of another line, so a higher revision is no newer; only a new epoch is.
        (state("1.6"), Verdict.FORK),
        (state("1.6", OTHER), Verdict.FORK),
        (state("2.1", OTHER), Verdict.TAKE),
        # The store has found back.
        (state("1.5"), Verdict.NOTHING),
        (state("1.4", OTHER), Verdict.REGRESSED),
        (None, Verdict.EMPTIED),
    ],
)
def test_what_a_state_means_to_a_replica_whose_line_the_store_has_left(
    stored: InForce | None, verdict: Verdict
) -> None:
    assert judge(state("1.5"), stored, apart=True) is verdict


@pytest.mark.parametrize(
    ("held", "seen_before", "stored", "lost"),
    [
        # One epoch: what is newer than the store was lost, what is older was lifted there.
        ("2@4", None, state("1.6"), ""),
        ("2@4", None, state("1.3"), "2"),
        ("2@4", None, state("1.6", denied="2@4"), ""),
        # Never published.
        ("2@0", None, state("1.6"), "2"),
        ("2@0", None, state("2.6", base="1.5"), "2"),
        # A new epoch continues a state that knew of the deny, or did not.
        ("2@4", None, state("2.3", base="1.4"), ""),
        ("2@4", None, state("2.3", base="1.3"), "2"),
        # An epoch that continues nothing, or one that was never seen here: nobody can say.
        ("2@4", None, state("2.3"), "2"),
        ("2@4", None, state("3.3", base="2.9"), "2"),
        # A store that went back may have gone on by others since: its revision says nothing of what it knew.
        ("2@2", None, state("1.3"), "2"),
        ("2@4", state("1.3"), state("1.6"), "2"),
        ("2@4", state("1.3", denied="2@2"), state("1.6"), ""),
        # Of two lines of one epoch: revisions do not compare …
        ("2@4", state("1.5", OTHER), state("1.9", OTHER), "2"),
        ("2@4", state("1.5", OTHER), state("2.1", OTHER, base="1.5"), "2"),
        # … but what the other one had since, was lifted there.
        ("2@4", state("1.5", OTHER, denied="2@4"), state("1.9", OTHER), ""),
    ],
)
def test_denies_that_the_store_lost(
    held: str, seen_before: InForce | None, stored: InForce, lost: str
) -> None:
    divergence = Divergence()
    here = state("1.5", denied=held)
    if seen_before is not None:
        assert divergence.look(here, seen_before).verdict in (Verdict.FORK, Verdict.REGRESSED)
    found = divergence.look(here, stored).lost
    assert "".join(tomb.version for tomb in found.values()) == lost


Planes = Callable[..., ControlPlane]


@pytest.fixture
def replicas(planes: Planes, shared_redis: RedisServer, namespace: str) -> Callable[[str], ControlPlane]:
    """Control planes on one server and one registry, that nothing runs yet."""
    made: list[ControlPlane] = []

    def make(name: str) -> ControlPlane:
        plane = planes(RedisStore(shared_redis.url, namespace, name))
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
    """Both follow, and both hold revision 1.1."""
    one, other = replicas("one"), replicas("other")
    one.run(reader=True)
    await one.apply()
    other.run(reader=True)
    await soon(other.deliverer.wait_for(Revision(1, 1)))
    return one, other


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.005)


async def in_both(two: tuple[ControlPlane, ControlPlane], revision: tuple[int, int]) -> None:
    for plane in two:
        await soon(plane.deliverer.wait_for(Revision(*revision)))
    assert {plane.deliverer.held.revision for plane in two} == {revision}


async def fork(two: tuple[ControlPlane, ControlPlane], meddler: Meddler) -> InForce:
    """The store lost revision 1.2, and has another one now. What both hold."""
    one, _ = two
    stale = meddler.dump()
    await soon(one.operations.weights("number", {"canary": 50}, author("w")))
    await in_both(two, (1, 2))
    meddler.restore(stale)
    first = await one.store.read()
    assert first is not None
    elsewhere = change.set_weights(first, "number", {"canary": 77})
    await one.store.put(elsewhere, Revision(1, 1), author("elsewhere"), [])
    for plane in two:
        await until(lambda plane=plane: Trouble.FORK in plane.reader.troubles)  # type: ignore[misc]
    return one.deliverer.held


class TestAnEmptiedStore:
    async def test_restore_gives_it_back_and_every_replica_takes_it(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, other = two
        meddler.empty()
        meddler.wake()
        for plane in two:
            await until(lambda plane=plane: Trouble.EMPTIED in plane.reader.troubles)  # type: ignore[misc]
        # Rolled back on one, restored by the other: nobody has heard of the deny.
        outcome = await soon(one.operations.rollback("number", None, author("r", "wrong digits")))
        assert not outcome.published and "not what this replica holds" in outcome.message
        restored = await soon(other.settlement.restore(author("restore")))
        assert restored.revision == "2.1"
        await in_both(two, (2, 2))
        assert one.workers.denied == other.workers.denied == {"2"}
        assert all("2" in {d.version for d in rung.denies.values()} for rung in one.workers.rung[-3:]), (
            "the deny is in force all the time"
        )
        for plane in two:
            await until(lambda plane=plane: plane.reader.trouble == "")  # type: ignore[misc]
        history = await one.store.history()
        assert [(line.type, line.reason) for line in history] == [
            ("deny", "wrong digits"),
            ("restore", "because (continues 1.1)"),
        ]
        stored = await one.store.read()
        assert stored is not None and stored.base == Revision(1, 1)

    async def test_changes_wait_until_it_is_settled(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, _ = two
        meddler.empty()
        with pytest.raises(StoreDiverged, match="turnout restore"):
            await one.operations.weights("number", {"canary": 50}, author("w"))
        with pytest.raises(StoreDiverged, match="turnout restore"):
            await one.apply()
        with pytest.raises(ChangeRefused, match="the store is empty"):
            await one.settlement.adopt(author("a"))
        assert await one.store.read() is None

    async def test_a_new_replica_does_not_begin_anew_in_it(
        self,
        two: tuple[ControlPlane, ControlPlane],
        replicas: Callable[[str], ControlPlane],
        meddler: Meddler,
    ) -> None:
        one, _ = two
        meddler.empty()
        await one.store.report(member("one", rev=7))
        fresh = replicas("fresh")
        with pytest.raises(StoreDiverged, match=r"one holds revision 1\.7.*turnout restore"):
            await fresh.apply()
        assert await one.store.read() is None

    async def test_a_replica_that_is_behind_undoes_nothing(
        self, two: tuple[ControlPlane, ControlPlane], replicas: Callable[[str], ControlPlane]
    ) -> None:
        one, _ = two
        late = replicas("late")
        await late.deliverer.start(one.deliverer.held)
        await soon(one.operations.weights("number", {"canary": 50}, author("w")))
        with pytest.raises(ChangeRefused, match=r"at revision 1\.2, ahead of 1\.1 here"):
            await late.settlement.restore(author("r"))
        await in_both(two, (1, 2))

    async def test_a_replica_that_is_behind_the_others_undoes_nothing(
        self,
        two: tuple[ControlPlane, ControlPlane],
        replicas: Callable[[str], ControlPlane],
        meddler: Meddler,
    ) -> None:
        """Thawed after the store lost everything, it cannot tell by the store how much it has missed."""
        one, _ = two
        late = replicas("late")
        await late.deliverer.start(one.deliverer.held)
        await soon(one.operations.weights("number", {"canary": 50}, author("w")))
        await in_both(two, (1, 2))
        meddler.empty()
        await one.store.report(member("one", rev=2))
        with pytest.raises(
            ChangeRefused, match=r"replica one is at revision 1\.2, ahead of 1\.1 here.*--force"
        ):
            await late.settlement.restore(author("r"))
        assert await one.store.read() is None
        assert (await soon(late.settlement.restore(author("f"), force=True))).revision == "2.1"

    async def test_where_all_agree_there_is_nothing_to_settle(
        self, two: tuple[ControlPlane, ControlPlane]
    ) -> None:
        one, other = two
        for settle in (one.settlement.restore, other.settlement.adopt):
            with pytest.raises(ChangeRefused, match=r"agree on revision 1\.1: there is nothing to settle"):
                await settle(author("r"))
            with pytest.raises(Conflict):
                await settle(author("r"), Revision(1, 7))
        await other.store.report(msgspec.structs.replace(member("other"), status="NACK", error="fork"))
        assert (await soon(one.settlement.adopt(author("r")))).revision == "2.1"
        await in_both(two, (2, 1))
        await other.store.report(msgspec.structs.replace(member("other"), epoch=2))
        assert (await soon(one.settlement.adopt(author("r")))).revision == "2.1", "asked again"

    async def test_a_replica_that_holds_nothing_has_nothing_to_give(
        self, replicas: Callable[[str], ControlPlane]
    ) -> None:
        with pytest.raises(ChangeRefused, match="holds no state"):
            await replicas("one").settlement.restore(author("r"))

    async def test_a_new_line_of_the_same_epoch_is_a_fork_however_far_it_comes(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, _ = two
        before = one.deliverer.held
        meddler.empty()
        meddler.wake()
        for plane in two:
            await until(lambda plane=plane: Trouble.EMPTIED in plane.reader.troubles)  # type: ignore[misc]
        begun = change.set_weights(before, "number", {"canary": 33})
        revision = await one.store.put(begun, Revision(0, 0), author("p"), [])
        await one.store.put(before.state, revision, author("q"), [])
        for plane in two:
            await until(lambda plane=plane: Trouble.FORK in plane.reader.troubles)  # type: ignore[misc]
        assert one.deliverer.held.revision == (1, 1)


class TestAFork:
    async def test_its_denies_are_taken_and_its_document_never(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, other = two
        before = await fork(two, meddler)
        stored = await one.store.read()
        assert stored is not None
        denies = change.rollback(stored, "number")
        assert await one.store.deny(denies, author("theirs"), []) == Revision(1, 3)
        await one.hears_of_denies("2")
        await other.hears_of_denies("2")
        for plane in two:
            assert plane.deliverer.held.revision == (1, 2)
            assert plane.deliverer.held.state == before.state
            assert "another document" in plane.reader.refusal
            assert plane.failed() == []
        refusals = [line for line in await one.store.history() if line.type == "reject"]
        assert 1 <= len(refusals) <= 2 and "another document" in refusals[0].reason

    async def test_adopt_takes_the_stores_document_and_no_deny_is_lost(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, other = two
        await fork(two, meddler)
        # A rollback on a forked replica is in force there at once, and for all when it is settled.
        outcome = await soon(one.operations.rollback("number", None, author("r")))
        assert not outcome.published and one.workers.denied == {"2"}
        stored = await one.store.read()
        assert stored is not None and stored.denies == {}
        adopted = await soon(other.settlement.adopt(author("a")))
        assert adopted.revision == "2.1"
        await in_both(two, (2, 2))
        assert one.deliverer.held.state == other.deliverer.held.state == stored.state
        assert one.workers.denied == other.workers.denied == {"2"}
        for plane in two:
            await until(lambda plane=plane: plane.reader.trouble == "")  # type: ignore[misc]

    async def test_restore_gives_the_store_the_local_document(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, _ = two
        before = await fork(two, meddler)
        assert (await soon(one.settlement.restore(author("r")))).revision == "2.1"
        await in_both(two, (2, 1))
        stored = await one.store.read()
        assert stored is not None and stored.state == before.state

    async def test_one_that_came_while_nobody_looked_is_found_in_the_history(
        self,
        two: tuple[ControlPlane, ControlPlane],
        replicas: Callable[[str], ControlPlane],
        meddler: Meddler,
    ) -> None:
        one, _ = two
        late = replicas("late")
        stale = meddler.dump()
        await soon(one.operations.weights("number", {"canary": 50}, author("w")))
        await in_both(two, (1, 2))
        lost = await one.store.read()
        assert lost is not None
        meddler.restore(stale)
        for percent, expect in ((77, 1), (78, 2), (79, 3)):
            current = await one.store.read()
            assert current is not None
            await one.store.put(
                change.set_weights(current, "number", {"canary": percent}), Revision(1, expect),
                author(f"p{percent}"), [],
            )  # fmt: skip
        # It held 1.2 of the lost line when it went away, and sees 1.4 of the other one.
        await late.deliverer.start(lost)
        late.run(reader=True)
        await until(lambda: Trouble.FORK in late.reader.troubles)
        assert late.deliverer.held.revision == (1, 2)
        assert late.deliverer.held.state == lost.state

    async def test_a_deny_that_was_lost_while_nobody_looked_is_given_back(
        self,
        replicas: Callable[[str], ControlPlane],
        meddler: Meddler,
    ) -> None:
        """The documents of both lines are the same, and the store's revision is the higher one."""
        one = replicas("one")
        one.run(reader=True)
        await one.apply()
        stale = meddler.dump()
        await soon(one.operations.rollback("number", "2", author("bad")))
        lost = await one.store.read()
        assert lost is not None and lost.revision == (1, 2) and len(lost.denies) == 1
        await one.aclose()
        meddler.restore(stale)
        current = await one.store.read()
        assert current is not None
        for number in (1, 2):
            (key,) = change.rollback(current, "number", "2")
            elsewhere = key._replace(route=f"other{number}")
            await one.store.deny({elsewhere: "2"}, author(f"d{number}"), [])
        late = replicas("late")
        await late.deliverer.start(lost)
        late.run(reader=True)
        async with asyncio.timeout(15):
            while (
                stored := await late.store.read()
            ) is None or not stored.denies.keys() > lost.denies.keys():
                await asyncio.sleep(0.01)
        assert {key.route for key in stored.denies} == {"number", "other1", "other2"}
        assert late.deliverer.held.denies.keys() >= lost.denies.keys()
        assert late.failed() == []

    async def test_denies_that_a_hand_took_away_are_given_back(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        """The revision is the same, or a later one: nobody lifts a deny without a line of the history."""
        one, other = two
        for later in (False, True):
            await soon(one.operations.rollback("number", "2", author(f"bad{later}")))
            await other.hears_of_denies("2")
            meddler.redis.delete(meddler.prefix + "deny")
            if later:
                elsewhere = DenyKey("letter", "1" * 64)
                await one.store.deny({elsewhere: "1"}, author("another"), [{"route": "letter"}])
            meddler.wake()
            async with asyncio.timeout(15):
                while True:
                    stored = await one.store.read()
                    if stored and any(key.route == "number" for key in stored.denies):
                        break
                    await asyncio.sleep(0.01)
            assert "2" in one.workers.denied and "2" in other.workers.denied
            await soon(one.operations.allow("number", "2", author(f"good{later}")))
            await until(lambda: not {"2"} & (one.workers.denied | other.workers.denied))

    async def test_a_replica_that_was_only_away_goes_on(
        self, two: tuple[ControlPlane, ControlPlane], replicas: Callable[[str], ControlPlane]
    ) -> None:
        one, _ = two
        late = replicas("late")
        await late.deliverer.start(one.deliverer.held)
        for percent in (50, 60):
            await soon(one.operations.weights("number", {"canary": percent}, author(f"w{percent}")))
        await one.store.reject(author("x"), "no such route")
        late.run(reader=True)
        await soon(late.deliverer.wait_for(Revision(1, 3)))
        assert late.deliverer.held.revision == (1, 3)


class TestARegressedStore:
    async def test_changes_wait_until_it_is_settled_and_restore_settles_it(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, _ = two
        stale = meddler.dump()
        await soon(one.operations.weights("number", {"canary": 50}, author("w")))
        await in_both(two, (1, 2))
        meddler.restore(stale)
        with pytest.raises(StoreDiverged, match=r"went back to revision 1\.1"):
            await one.operations.weights("number", {"canary": 20}, author("w2"))
        await soon(one.settlement.restore(author("r"), Revision(1, 1)))
        await in_both(two, (2, 1))
        stored = await one.store.read()
        assert stored is not None and stored.state.routes["number"].variants["canary"].weight_bp == 5000
        await soon(one.operations.weights("number", {"canary": 20}, author("w3")))
        await in_both(two, (2, 2))

    async def test_with_the_same_document_it_heals_with_the_next_change(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, _ = two
        await soon(one.operations.rollback("number", None, author("r")))
        await in_both(two, (1, 2))
        stale = meddler.dump()
        await soon(one.operations.allow("number", "2", author("a")))
        await in_both(two, (1, 3))
        meddler.restore(stale)
        meddler.wake()
        for plane in two:
            # The lift was lost, and the deny is in force again.
            await plane.hears_of_denies("2")
            await until(lambda plane=plane: Trouble.REGRESSED in plane.reader.troubles)  # type: ignore[misc]
        await one.store.undeny(list(one.deliverer.held.denies), author("again"), [])
        for plane in two:
            await plane.hears_of_denies()
            await until(lambda plane=plane: plane.reader.trouble == "")  # type: ignore[misc]


class TestSignals:
    @pytest.mark.parametrize("how", ["emptied", "forked", "regressed", "damaged"])
    async def test_they_are_obeyed_at_once_and_published_when_it_is_settled(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler, how: str
    ) -> None:
        one, _ = two
        if how == "forked":
            await fork(two, meddler)
        else:
            stale = meddler.dump()
            await soon(one.operations.weights("number", {"canary": 50}, author("w")))
            await in_both(two, (1, 2))
            if how == "emptied":
                meddler.empty()
            elif how == "regressed":
                meddler.restore(stale)
            else:
                meddler.redis.hset(meddler.prefix + "state", "doc", "{}")
            meddler.wake()
            for plane in two:
                await until(lambda plane=plane: plane.reader.trouble != "")  # type: ignore[misc]
        meddler.signal(action="rollback", route="number", reason="5xx", actor="pager")
        for plane in two:
            await plane.hears_of_denies("2")
        await soon(one.settlement.restore(author("restore")))
        for plane in two:
            await until(lambda plane=plane: plane.reader.trouble == "")  # type: ignore[misc]
            assert plane.deliverer.held.revision.epoch == 2
            assert plane.workers.denied == {"2"}
            assert plane.failed() == []
        async with asyncio.timeout(15):
            while (stored := await one.store.read()) is None or not stored.denies:
                await asyncio.sleep(0.01)
        (tomb,) = stored.denies.values()
        assert (tomb.reason, tomb.actor) == ("5xx", "signal:pager")

    async def test_the_streams_gone_wrong_do_not_hide_the_state(
        self, two: tuple[ControlPlane, ControlPlane], meddler: Meddler
    ) -> None:
        one, other = two
        meddler.redis.delete(meddler.prefix + "signals")
        meddler.redis.set(meddler.prefix + "signals", "a string")
        for plane in two:
            await until(lambda plane=plane: Trouble.UNWATCHED in plane.reader.troubles)  # type: ignore[misc]
        await one.store.deny(change.rollback(one.deliverer.held, "number"), author("d"), [])
        await other.hears_of_denies("2")
        meddler.redis.delete(meddler.prefix + "signals")
        for plane in two:
            await until(lambda plane=plane: plane.reader.trouble == "")  # type: ignore[misc]
