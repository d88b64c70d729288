"""What every `ExposureStore` promises. Subclasses give `opener`, which opens stores on the same data by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from gateway.control.exposure_store import Ask, ExposureStore, Found
from gateway.routing.exposure import Count
from gateway.routing.state import DenyKey

Opener = Callable[[str], ExposureStore]
KEY = DenyKey("fraud", "d" * 64)
OTHER = DenyKey("fraud", "e" * 64)


async def ask(store: ExposureStore, limit: int = 100, requests: int = 0, **more: object) -> Found:
    return (await store.ask({KEY: Ask(limit=limit, requests=requests, **more)}))[KEY]  # type: ignore[arg-type]


async def all_of(store: ExposureStore, limit: int, requests: int = 1000) -> int:
    """Everything that is left."""
    total = 0
    while (found := await ask(store, limit, requests)).requests:
        total += found.requests
    return total


class ExposureContract:
    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, opener: Opener) -> AsyncIterator[ExposureStore]:
        store = opener("one")
        yield store
        await store.aclose()

    @pytest.fixture
    async def other(self, opener: Opener) -> AsyncIterator[ExposureStore]:
        store = opener("two")
        yield store
        await store.aclose()

    async def lose(self, store: ExposureStore) -> None:
        """Every count is gone, and the state is still there."""
        raise NotImplementedError

    async def test_a_first_look_begins_the_count_and_the_lease(self, store: ExposureStore) -> None:
        found = await ask(store)
        assert found.count is not None and (found.requests, found.keys) == (0, ())
        assert (found.count.number, found.count.requests, found.count.errors, found.count.keys) == (
            1,
            0,
            0,
            0,
        )
        assert 0 <= found.now_us - found.count.renewed_us < 1_000_000 and found.now_us > 1_500_000_000_000_000
        again = await ask(store, seen=found.count)
        assert again.count == found.count

    @pytest.mark.parametrize(
        ("limit", "asks", "given"),
        [
            # An eighth of what is left at once, at least one, and never more than is asked for.
            (100, [5, 50, 50], [5, 11, 10]),
            (7, [5, 5, 5], [1, 1, 1]),
            (2, [5, 5, 5], [1, 1, 0]),
            (1, [1, 1], [1, 0]),
        ],
    )
    async def test_what_is_given_at_once(
        self, store: ExposureStore, limit: int, asks: list[int], given: list[int]
    ) -> None:
        assert [(await ask(store, limit, requests)).requests for requests in asks] == given
        found = await ask(store, limit)
        assert found.count is not None and found.count.requests == sum(given)

    @pytest.mark.parametrize(("limit", "given"), [(1000, 2), (127, 1), (63, 0)])
    async def test_ahead_of_any_request_little_is_given(
        self, store: ExposureStore, limit: int, given: int
    ) -> None:
        assert (await ask(store, limit, 2, ahead=True)).requests == given

    async def test_never_more_than_the_limit_however_many_ask(
        self, store: ExposureStore, other: ExposureStore
    ) -> None:
        given = await asyncio.gather(*(all_of(each, 500, 7) for each in (store, other) for _ in range(8)))
        assert sum(given) == 500
        assert await all_of(store, 400) == 0, "a limit that is lowered below what was given"
        assert await all_of(other, 600) == 100

    async def test_versions_are_counted_apart(self, store: ExposureStore) -> None:
        assert await all_of(store, 20) == 20
        found = await store.ask({KEY: Ask(limit=20, requests=1), OTHER: Ask(limit=20, requests=1)})
        assert {key: each.requests for key, each in found.items()} == {KEY: 0, OTHER: 1}

    async def test_errors_of_replicas_add_up_and_those_told_twice_do_not(
        self, store: ExposureStore, other: ExposureStore
    ) -> None:
        for each, errors, total in (
            (store, 3, 3),
            (other, 2, 5),
            (store, 3, 5),
            (store, 4, 6),
            (store, 1, 6),
        ):
            found = await ask(each, errors=errors)
            assert found.count is not None and found.count.errors == total

    async def test_keys_are_admitted_once_for_all(self, store: ExposureStore, other: ExposureStore) -> None:
        assert (await ask(store, keys_limit=3, keys=(b"a", b"b"))).keys == (b"a", b"b")
        found = await ask(other, keys_limit=3, keys=(b"b", b"c\x00\xff", b"d"))
        assert found.keys == (b"b", b"c\x00\xff")
        assert found.count is not None and found.count.keys == 3
        assert (await ask(store, keys_limit=3, keys=(b"d", b"a"))).keys == (b"a",)

    async def test_a_renewal_is_seen_by_all(self, store: ExposureStore, other: ExposureStore) -> None:
        first = (await ask(store)).count
        await other.renew([KEY, OTHER])
        second = (await ask(store)).count
        assert first is not None and second is not None and second.renewed_us > first.renewed_us
        assert msgspec.structs.replace(second, renewed_us=0) == msgspec.structs.replace(first, renewed_us=0)
        assert (await store.ask({OTHER: Ask()}))[OTHER].count is not None

    async def test_a_restart_begins_the_count_anew(self, store: ExposureStore, other: ExposureStore) -> None:
        await all_of(store, 10)
        before = (await ask(store, errors=4, keys_limit=1, keys=(b"a",))).count
        assert before is not None and (before.requests, before.errors, before.keys) == (10, 4, 1)
        await other.restart({KEY: 0})
        found = await ask(store, 10, 1, errors=4, seen=before, keys_limit=1)
        after = found.count
        assert after is not None and after.life == before.life
        assert (found.requests, after.number, after.errors, after.keys) == (1, 2, 0, 0)
        assert after.renewed_us > before.renewed_us

    async def test_what_was_never_counted_has_nothing_to_restart(self, store: ExposureStore) -> None:
        await store.restart({KEY: 0})
        found = await ask(store)
        assert found.count is not None and found.count.number == 1

    async def test_a_count_that_was_lost_gives_nothing(
        self, store: ExposureStore, other: ExposureStore
    ) -> None:
        await ask(store, 100, 10)
        seen = (await ask(store, 100, 10)).count
        assert seen is not None
        await self.lose(store)
        lost = await ask(store, 100, 1, seen=seen, keys_limit=9, keys=(b"a",))
        assert (lost.count, lost.requests, lost.keys) == (None, 0, ())
        # Somebody who knows of nothing makes it anew, and it comes to be as high as it was.
        await all_of(other, 90)
        assert (await ask(store, 100, 1, seen=seen)).count is None
        # What is allowed on purpose after that is a later count than the one that was seen.
        await store.restart({KEY: seen.number})
        found = await ask(store, 100, 1, seen=seen)
        assert found.count is not None and (found.count.number, found.requests) == (seen.number + 1, 1)

    @pytest.mark.parametrize("lower", ["requests", "keys"])
    async def test_a_count_that_went_back_gives_nothing(self, store: ExposureStore, lower: str) -> None:
        held = (await ask(store, 100, 5, keys_limit=9, keys=(b"a",))).count
        assert held is not None
        ahead = msgspec.structs.replace(held, **{lower: getattr(held, lower) + 1})
        assert (await ask(store, 100, 1, seen=ahead)).count is None
        found = await ask(store, 100, 1, seen=held)
        assert found.requests == 1


__all__ = ["KEY", "Count", "ExposureContract", "Opener", "ask"]
