"""What every `Store` promises. Subclasses give a fixture `opener` that opens stores on the same data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

from gateway.control.store import Author, Conflict, Member, Store
from gateway.routing.state import DenyKey, Pin, Revision, Route, State, StateError, Variant

T = TypeVar("T")
Opener = Callable[[], Store]
EMPTY = Revision(0, 0)
SOON_S = 5.0
"""For what comes by itself; a test that waits this long has failed."""

BAD = DenyKey("fraud", "d" * 64)
WORSE = DenyKey("fraud", "e" * 64)


def author(op_id: str, reason: str = "because") -> Author:
    return Author(actor="ann", reason=reason, op_id=op_id)


def document(canary_bp: int = 0) -> State:
    def variant(version: str, weight_bp: int) -> Variant:
        pin = Pin(registry="r", model="fraud", version=version, digest=version * 64)
        return Variant(pin=pin, reference=f"r/fraud@{version}", weight_bp=weight_bp)

    variants = {"stable": variant("1", 10_000 - canary_bp), "canary": variant("2", canary_bp)}
    return State(routes={"fraud": Route(variants=variants, fallback="stable")})


def member(replica: str, rev: int = 1) -> Member:
    return Member(
        replica=replica,
        epoch=1,
        rev=rev,
        denies_rev=0,
        deny_n=0,
        sha256="5" * 64,
        status="ACK",
        workers_ok=2,
        workers_total=2,
    )


async def soon(what: Awaitable[T]) -> T:
    async with asyncio.timeout(SOON_S):
        return await what


class StoreContract:
    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, opener: Opener) -> AsyncIterator[Store]:
        store = opener()
        yield store
        await store.aclose()

    @pytest.fixture
    async def other(self, opener: Opener) -> AsyncIterator[Store]:
        store = opener()
        yield store
        await store.aclose()

    async def damage(self, store: Store) -> None:
        """Changes one byte of the document behind the store's back."""
        raise NotImplementedError

    async def test_an_empty_store_holds_nothing(self, store: Store) -> None:
        assert await store.read() is None
        assert await store.history() == []
        assert await store.members() == []

    async def test_the_first_put_begins_epoch_one(self, store: Store, other: Store) -> None:
        assert await store.put(document(500), EMPTY, author("a"), []) == Revision(1, 1)
        held = await other.read()
        assert held is not None
        assert (held.revision, held.state, dict(held.denies)) == (Revision(1, 1), document(500), {})

    async def test_a_put_follows_the_revision_that_it_expects(self, store: Store, other: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        assert await other.put(document(100), Revision(1, 1), author("b"), []) == Revision(1, 2)
        with pytest.raises(Conflict) as conflict:
            await store.put(document(200), Revision(1, 1), author("c"), [])
        assert conflict.value.current == Revision(1, 2)
        held = await store.read()
        assert held is not None and held.state == document(100)

    async def test_a_put_that_expects_an_empty_store_conflicts_with_a_full_one(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        for expect in (EMPTY, Revision(7, 0)):
            with pytest.raises(Conflict) as conflict:
                await store.put(document(), expect, author("b"), [])
            assert conflict.value.current == Revision(1, 1)

    async def test_a_put_that_expects_a_revision_conflicts_with_an_empty_store(self, store: Store) -> None:
        with pytest.raises(Conflict) as conflict:
            await store.put(document(), Revision(1, 9), author("a"), [])
        assert conflict.value.current == EMPTY
        assert await store.read() is None

    async def test_a_replica_gives_an_emptied_store_its_state_back_in_a_new_epoch(self, store: Store) -> None:
        assert await store.put(document(), Revision(4, 0), author("a"), []) == Revision(4, 1)
        assert [record.type for record in await store.history()] == ["restore"]

    async def test_a_retried_write_is_answered_with_its_first_revision(
        self, store: Store, other: Store
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.put(document(100), Revision(1, 1), author("b"), [])
        assert await store.deny({BAD: "2"}, author("c"), []) == Revision(1, 3)
        assert await store.undeny([BAD], author("d"), []) == Revision(1, 4)

        assert await other.put(document(), EMPTY, author("a"), []) == Revision(1, 1)
        assert await other.put(document(100), Revision(1, 1), author("b"), []) == Revision(1, 2)
        assert await other.deny({BAD: "2"}, author("c"), []) == Revision(1, 3)
        assert await other.undeny([BAD], author("d"), []) == Revision(1, 4)
        held = await store.read()
        assert held is not None and held.revision == Revision(1, 4) and not held.denies
        assert len(await store.history()) == 4

    async def test_of_concurrent_puts_exactly_one_wins(self, store: Store, other: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        puts = [
            which.put(document(bp), Revision(1, 1), author(f"p{bp}"), [])
            for bp in range(100, 900, 100)
            for which in (store, other)
        ]
        # The same op_id from both stores: a retry that overtakes its first try.
        results = await asyncio.gather(*puts, return_exceptions=True)
        won = {bp for bp, result in enumerate(results) if not isinstance(result, BaseException)}
        assert {index // 2 for index in won} == {min(won) // 2} and len(won) == 2
        assert all(isinstance(r, Conflict) or r == Revision(1, 2) for r in results)
        held = await store.read()
        assert held is not None and held.state == document(100 * (min(won) // 2 + 1))

    async def test_of_concurrent_first_puts_exactly_one_wins(self, store: Store, other: Store) -> None:
        puts = (which.put(document(), EMPTY, author(str(id(which))), []) for which in (store, other))
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert sorted(isinstance(result, Conflict) for result in results) == [False, True]

    async def test_a_deny_is_idempotent(self, store: Store, other: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        assert await store.deny({BAD: "2"}, author("b", "errors"), []) == Revision(1, 2)
        assert await other.deny({BAD: "2"}, author("c", "latency"), []) == Revision(1, 2)
        held = await store.read()
        assert held is not None and held.revision == Revision(1, 2)
        deny = held.denies[BAD]
        assert (deny.version, deny.rev, deny.op_id, deny.actor, deny.reason) == ("2", 2, "b", "ann", "errors")
        assert deny.us > 1_500_000_000_000_000
        assert len(await store.history()) == 2

    async def test_denies_commute(self, store: Store, other: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await asyncio.gather(
            store.deny({BAD: "2"}, author("b"), []), other.deny({WORSE: "3", BAD: "2"}, author("c"), [])
        )
        held = await store.read()
        assert held is not None and set(held.denies) == {BAD, WORSE}

    async def test_a_deny_lets_puts_that_were_planned_before_it_conflict(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({BAD: "2"}, author("b"), [])
        with pytest.raises(Conflict):
            await store.put(document(100), Revision(1, 1), author("c"), [])
        await store.put(document(100), Revision(1, 2), author("d"), [])
        held = await store.read()
        assert held is not None and set(held.denies) == {BAD}

    async def test_lifting_a_deny(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({BAD: "2", WORSE: "3"}, author("b"), [])
        assert await store.undeny([BAD], author("c"), []) == Revision(1, 3)
        assert await store.undeny([BAD], author("d"), []) == Revision(1, 3)
        held = await store.read()
        assert held is not None and set(held.denies) == {WORSE}
        assert await store.deny({BAD: "2"}, author("e"), []) == Revision(1, 4)

    async def test_an_empty_store_has_nothing_to_deny(self, store: Store) -> None:
        for change in (
            store.deny({BAD: "2"}, author("a"), []),
            store.undeny([BAD], author("b"), []),
            store.reject(author("c"), "no such route"),
        ):
            with pytest.raises(Conflict) as conflict:
                await change
            assert conflict.value.current == EMPTY

    async def test_the_history_tells_who_did_what_in_order(self, store: Store, other: Store) -> None:
        change: dict[str, Any] = {"route": "fraud", "before": None, "after": {"stable": "100 %", "ü": [1]}}
        await store.put(document(), EMPTY, author("a", "birth — ✓"), [change])
        await store.deny({BAD: "2"}, author("b"), [])
        await store.reject(author("c", "by signal"), "no such route")
        await store.reject(author("c", "by signal"), "no such route")
        await store.undeny([BAD], author("d"), [])
        records = await other.history()
        assert [(r.type, r.epoch, r.rev, r.op_id) for r in records] == [
            ("undeny", 1, 3, "d"),
            ("reject", 1, 2, "c"),
            ("deny", 1, 2, "b"),
            ("put", 1, 1, "a"),
        ]
        first = records[-1]
        assert (first.actor, first.reason, first.changes) == ("ann", "birth — ✓", [change])
        assert len(first.sha256) == 64
        assert records[1].reason == "by signal (refused: no such route)"
        times = [record.us for record in records]
        assert times == sorted(times, reverse=True)
        assert [record.op_id for record in await other.history(2)] == ["d", "c"]
        assert await other.history(0) == []

    async def test_watch_yields_at_once_and_after_each_change(self, store: Store, other: Store) -> None:
        watch = store.watch()
        try:
            assert await soon(anext(watch)) == []
            for rev in range(1, 4):
                changed = asyncio.ensure_future(anext(watch))
                await other.put(
                    document(rev), Revision(1, rev - 1) if rev > 1 else EMPTY, author(f"{rev}"), []
                )
                await soon(changed)
                held = await store.read()
                assert held is not None and held.revision == Revision(1, rev)
        finally:
            await watch.aclose()  # type: ignore[attr-defined]

    async def test_watch_does_not_miss_what_changes_before_the_next_look(
        self, store: Store, other: Store
    ) -> None:
        watch = store.watch()
        try:
            await soon(anext(watch))
            await other.put(document(), EMPTY, author("a"), [])
            await soon(anext(watch))
        finally:
            await watch.aclose()  # type: ignore[attr-defined]

    async def test_each_revision_says_when_it_was_committed_by_the_stores_clock(
        self, store: Store, other: Store
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await store.deny({BAD: "2"}, author("b"), [])
        held = await other.read()
        assert held is not None
        deny, put = await store.history()
        assert held.commit_us == deny.us >= held.denies[BAD].us >= put.us > 1_500_000_000_000_000
        assert held.base == EMPTY
        assert await other.report(member("one", rev=2)) >= held.commit_us, "both by one clock"

    async def test_what_is_on_the_disk_is_durable(self, store: Store) -> None:
        made = await store.put(document(), EMPTY, author("a"), [])
        denied = await store.deny({BAD: "2"}, author("b"), [])
        lifted = await store.undeny([BAD], author("c"), [])
        # Redis 7.0 cannot say.
        assert {made.durable, denied.durable, lifted.durable} in ({True}, {None})

    async def test_every_answer_is_a_sign_of_life(self, store: Store) -> None:
        opened = store.heard
        assert opened <= time.monotonic()
        await store.read()
        assert store.heard > opened
        watch = store.watch()
        await soon(anext(watch))
        waiting = asyncio.ensure_future(anext(watch))
        quiet = store.heard
        async with asyncio.timeout(SOON_S):
            while store.heard == quiet:
                await asyncio.sleep(0.01)
        assert not waiting.done(), "also where nothing is new"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    async def test_a_document_that_is_held_already_comes_with_new_denies(
        self, store: Store, other: Store
    ) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        first = await store.read()
        await other.deny({BAD: "2"}, author("b"), [])
        second = await store.read()
        assert first is not None and second is not None
        assert second.state is first.state, "it was not even decoded again"
        assert (second.revision, set(second.denies)) == (Revision(1, 2), {BAD})
        await other.put(document(100), Revision(1, 2), author("c"), [])
        third = await store.read()
        assert third is not None and third.state == document(100)

    async def test_a_damaged_document_is_an_error_that_says_so(self, store: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        await self.damage(store)
        with pytest.raises(StateError, match="sha256"):
            await store.read()

    async def test_a_replica_reports_itself(self, store: Store) -> None:
        await store.report(member("one"))
        (first,) = await store.members()
        assert first.applied_us > 1_500_000_000_000_000
        await store.report(member("one"))
        assert await store.members() == [first], "a heartbeat does not change when it was applied"
        assert await store.report(member("one")) == first.applied_us
        assert await store.report(member("one", rev=2)) > first.applied_us
        (second,) = await store.members()
        assert second.rev == 2 and second.applied_us > first.applied_us
