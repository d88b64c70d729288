"""What every `Store` promises of its history's hash chain: whatever is done to the lines is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from gateway.control.chain import Noted, Verified, Verifier, chained
from gateway.control.store import HistoryRecord, Store
from gateway.routing.state import DenyKey, Revision
from tests.contracts.store import BAD, EMPTY, Opener, author, document

Row = dict[str, Any]
"""A line as it lies in the store, its values as `HistoryRecord` has them."""
CHANGE = {"route": "fraud", "before": None, "after": {"stable": {"version": "1", "weight": 33.33, "ü": []}}}
CHANGED: Row = {
    "type": "undeny",
    "epoch": 2,
    "rev": 77,
    "us": 1,
    "actor": "eve",
    "reason": "",
    "op_id": "eve's",
    "sha256": "0" * 64,
    "changes": [{**CHANGE, "before": {}}],
    "prev": "1" * 64,
    "head": "2" * 64,
}


async def verify(store: Store, *noted: str) -> Verified:
    verifier = Verifier([Noted(head, "that was given") for head in noted])
    ledger = await store.ledger()
    async for lines in ledger.pages:
        verifier.read(lines)
    return verifier.verdict(ledger.head, ledger.kept)


async def six_lines(store: Store) -> None:
    """Of every type but one."""
    await store.put(document(), EMPTY, author("a", "birth — ✓"), [CHANGE])
    await store.put(document(100), Revision(1, 1), author("b"), [CHANGE, CHANGE])
    await store.deny({BAD: "2"}, author("c"), [])
    await store.reject(author("d", "by signal"), "no such route")
    await store.undeny([BAD], author("e"), [])
    await store.deny({BAD: "2"}, author("f"), [])


def again(rows: list[Row], prev: str = "") -> list[Row]:
    """The same lines in a chain of their own, as whoever can write to all of the store may compute it."""
    made = []
    for row in rows:
        record = chained(msgspec.convert(row, HistoryRecord), prev)
        made.append(msgspec.structs.asdict(record))
        prev = record.head
    return made


class ChainContract:
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

    def rows(self) -> list[Row]:
        """The lines, the oldest first."""
        raise NotImplementedError

    def rewrite(self, rows: list[Row]) -> None:
        """Puts these lines in the place of all."""
        raise NotImplementedError

    def set_head(self, head: str) -> None:
        """Writes to the state; "" takes it out."""
        raise NotImplementedError

    def lose_state(self) -> None:
        raise NotImplementedError

    def keep(self, monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
        """As if trimming left so few."""
        raise NotImplementedError

    async def test_an_empty_history_is_whole(self, store: Store) -> None:
        assert await verify(store) == Verified(lines=0, unprotected=0)

    async def test_what_nobody_touched_is_whole(self, store: Store, other: Store) -> None:
        await six_lines(store)
        verdict = await verify(other)
        assert (verdict.broken, verdict.lines, verdict.unprotected) == ("", 6, 0)
        assert (verdict.oldest, verdict.newest) == ("1.1", "1.5")
        newest, oldest = (await store.history())[0], (await store.history())[-1]
        assert (verdict.head, verdict.newest_us, verdict.oldest_us) == (newest.head, newest.us, oldest.us)
        held = await other.read()
        assert held is not None and held.head == newest.head

    @pytest.mark.parametrize("at", [0, 2, 5])
    @pytest.mark.parametrize("field", HistoryRecord.__struct_fields__)
    async def test_a_changed_field_is_found(self, store: Store, field: str, at: int) -> None:
        await six_lines(store)
        rows = self.rows()
        assert rows[at][field] != CHANGED[field]
        rows[at] = {**rows[at], field: CHANGED[field]}
        self.rewrite(rows)
        assert "was changed" in (await verify(store)).broken

    @pytest.mark.parametrize("at", [0, 2, 5])
    async def test_a_line_written_anew_with_its_hash_is_found(self, store: Store, at: int) -> None:
        await six_lines(store)
        rows = self.rows()
        rows[at : at + 1] = again([{**rows[at], "actor": "eve"}], rows[at]["prev"])
        self.rewrite(rows)
        broken = (await verify(store)).broken
        assert "does not continue" in broken if at < 5 else "its head is not the state's" in broken

    @pytest.mark.parametrize("at", [0, 2, 5])
    async def test_a_removed_line_is_found(self, store: Store, at: int) -> None:
        await six_lines(store)
        rows = self.rows()
        del rows[at]
        self.rewrite(rows)
        said = {0: "what was before is missing", 2: "does not continue", 5: "its head is not the state's"}
        assert said[at] in (await verify(store)).broken

    async def test_a_change_after_lines_were_removed_hides_nothing(self, store: Store) -> None:
        await six_lines(store)
        self.rewrite(self.rows()[:-2])
        await store.undeny([BAD], author("g"), [])
        assert "does not continue" in (await verify(store)).broken

    async def test_a_removed_reject_at_the_end_is_found(self, store: Store) -> None:
        await six_lines(store)
        await store.reject(author("g"), "no")
        assert (await verify(store)).broken == ""
        self.rewrite(self.rows()[:-1])
        assert "its head is not the state's" in (await verify(store)).broken

    async def test_a_history_that_is_gone_is_found(self, store: Store) -> None:
        await six_lines(store)
        self.rewrite([])
        assert "the history is empty, and its head is not" in (await verify(store)).broken

    @pytest.mark.parametrize("at", [0, 3])
    @pytest.mark.parametrize("hashed", [True, False])
    async def test_an_inserted_line_is_found(self, store: Store, at: int, hashed: bool) -> None:
        await six_lines(store)
        rows = self.rows()
        forged = {**rows[3], "op_id": "eve's", "prev": "", "head": ""}
        rows[at:at] = again([forged], rows[at]["prev"]) if hashed else [forged]
        self.rewrite(rows)
        assert (await verify(store)).broken

    async def test_lines_that_changed_places_are_found(self, store: Store) -> None:
        await six_lines(store)
        for a, b in ((0, 1), (2, 3), (4, 5)):
            rows = self.rows()
            rows[a], rows[b] = rows[b], rows[a]
            self.rewrite(rows)
            assert "does not continue" in (await verify(store)).broken
            rows[a], rows[b] = rows[b], rows[a]
            self.rewrite(rows)
            assert (await verify(store)).broken == ""

    async def test_the_first_break_is_named(self, store: Store) -> None:
        await six_lines(store)
        rows = self.rows()
        for at in (4, 1):
            rows[at] = {**rows[at], "reason": "another"}
        self.rewrite(rows)
        assert "(revision 1.2, put by ann) was changed" in (await verify(store)).broken

    async def test_a_whole_chain_written_anew_is_found_by_a_head_that_was_noted(self, store: Store) -> None:
        await six_lines(store)
        noted = (await verify(store)).head
        await store.undeny([BAD], author("g"), [])
        assert (await verify(store, noted)).broken == ""
        rows = self.rows()
        rows[1]["reason"] = "another"
        forged = again(rows)
        self.rewrite(forged)
        self.set_head(forged[-1]["head"])
        assert (await verify(store)).broken == ""
        assert f"the head {noted} that was given is not in the history" in (await verify(store, noted)).broken

    async def test_a_trimmed_history_is_whole_from_its_oldest_line(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await six_lines(store)
        self.rewrite(self.rows()[2:])
        assert "what was before is missing: trimming would have left" in (await verify(store)).broken
        self.keep(monkeypatch, 4)
        verdict = await verify(store)
        assert (verdict.broken, verdict.lines, verdict.oldest) == ("", 4, "1.3")
        rows = self.rows()
        rows[0]["actor"] = "eve"
        self.rewrite(rows)
        assert "was changed" in (await verify(store)).broken

    async def test_a_lost_state_begins_an_epoch_and_the_chain_goes_on(self, store: Store) -> None:
        await six_lines(store)
        self.lose_state()
        await store.put(document(), EMPTY, author("g"), [])
        verdict = await verify(store)
        assert (verdict.broken, verdict.lines) == ("", 7)
        self.rewrite(self.rows()[:5] + self.rows()[6:])
        assert "does not continue" in (await verify(store)).broken

    async def test_lines_from_before_the_chain_are_unprotected_and_not_wrong(self, store: Store) -> None:
        await six_lines(store)
        self.rewrite([{**row, "prev": "", "head": ""} for row in self.rows()])
        self.set_head("")
        verdict = await verify(store)
        assert (verdict.broken, verdict.lines, verdict.unprotected, verdict.head) == ("", 6, 6, "")
        await store.undeny([BAD], author("g"), [])
        await store.deny({BAD: "2"}, author("h"), [])
        verdict = await verify(store)
        assert (verdict.broken, verdict.lines, verdict.unprotected) == ("", 8, 6)
        rows = self.rows()
        for stripped in (6, 7):
            self.rewrite(
                [{**row, "prev": "", "head": ""} if n == stripped else row for n, row in enumerate(rows)]
            )
            assert (await verify(store)).broken

    async def test_hashes_that_were_taken_out_are_found(self, store: Store) -> None:
        await six_lines(store)
        rows = self.rows()
        self.rewrite([{**row, "prev": "", "head": ""} for row in rows])
        assert (await verify(store)).broken
        self.rewrite(rows)
        self.set_head("")
        assert "the state has lost the head" in (await verify(store)).broken
        await store.undeny([BAD], author("g"), [])
        assert "does not continue" in (await verify(store)).broken

    async def test_two_writers_make_one_chain(self, store: Store, other: Store) -> None:
        await store.put(document(), EMPTY, author("a"), [CHANGE])

        async def write(which: Store, name: str) -> None:
            for n in range(20):
                await which.deny({DenyKey("fraud", f"{name}{n}"): "2"}, author(f"{name}{n}"), [CHANGE])

        writing = asyncio.gather(write(store, "a"), write(other, "b"), write(store, "c"))
        looks = 0
        while not writing.done():
            assert (await verify(other)).broken == ""
            looks += 1
        await writing
        verdict = await verify(store)
        assert (verdict.broken, verdict.lines) == ("", 61)
        assert looks > 1
        assert len({row["head"] for row in self.rows()}) == 61
