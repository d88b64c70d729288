"""One replica's hand on the counts: allowances for workers, denies for what is used up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.control.exposure import Allowance, Exposures
from gateway.control.exposure_store import Ask, ExposureStore, Found
from gateway.control.file_exposure import FileExposure
from gateway.control.operations import Operations
from gateway.control.store import StoreUnavailable
from gateway.routing.state import DenyKey, Exposure
from tests.control.replica import ControlPlane, author, soon


class Broken:
    """A store that can be cut off."""

    def __init__(self, store: ExposureStore) -> None:
        self._store = store
        self.away = False
        self.asks: list[Mapping[DenyKey, Ask]] = []

    async def ask(self, asks: Mapping[DenyKey, Ask]) -> dict[DenyKey, Found]:
        self.asks.append(asks)
        self._check()
        return await self._store.ask(asks)

    async def renew(self, keys: Collection[DenyKey]) -> None:
        self._check()
        await self._store.renew(keys)

    async def restart(self, numbers: Mapping[DenyKey, int]) -> None:
        self._check()
        await self._store.restart(numbers)

    async def aclose(self) -> None:
        await self._store.aclose()

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("cut off")


class Replica:
    """A control plane whose counts are shared with others of the same directory. Both clocks are the test's."""

    now = 1_000_000.0

    def __init__(self, plane: ControlPlane, counts: Path, name: str) -> None:
        self.plane = plane
        self.store = Broken(FileExposure(counts, name, clock_us=lambda: int(Replica.now * 1e6)))
        self.exposures = Exposures(
            self.store,
            plane.deliverer,
            on_trip=lambda key, trip, count: self.operations.exceeded(key, trip, count),
            clock=lambda: Replica.now,
        )
        self.operations = Operations(plane.store, plane.deliverer, plane.versions, self.exposures)
        plane.operations = self.operations

    @property
    def key(self) -> DenyKey:
        return DenyKey(
            "number", self.plane.deliverer.held.state.routes["number"].variants["canary"].pin.digest
        )

    async def asks(
        self, requests: int = 0, *, spent: bool = False, errors: int = 0, keys: tuple[bytes, ...] = ()
    ) -> Allowance:
        return await self.exposures.allowance(
            self.key, requests=requests, spent=spent, errors=errors, keys=keys
        )

    async def denied(self) -> list[tuple[str, str]]:
        """When what was under way is done: (actor, reason) of what is denied here."""
        async with asyncio.timeout(10):
            while self.operations._tasks:
                await asyncio.sleep(0.005)
        return [(deny.actor, deny.reason) for deny in self.plane.deliverer.held.denies.values()]


Make = Callable[..., Any]


@pytest.fixture
async def replica(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Replica]:
    made = Replica(plane, tmp_path / "counts", "one")
    plane.run()
    yield made


async def serve(replica: Replica, **exposure: Any) -> None:
    manifest = {"stable@1": 90.0, "canary@2": 10.0}
    made = replica.plane.manifest(manifest)
    route = made.routes["number"]
    variants = {**route.variants, "canary": replace(route.variants["canary"], exposure=Exposure(**exposure))}
    made = replace(made, routes={"number": replace(route, variants=variants)}, sha256=str(exposure))
    await soon(replica.operations.apply(made, author(f"apply{exposure}")))


async def test_what_is_used_up_is_denied_when_somebody_needs_more(replica: Replica) -> None:
    await serve(replica, requests=3)
    given = [(await replica.asks(5)).requests for _ in range(4)]
    assert given == [0, 0, 0, 0], "ahead of any request, of so little nothing is given"
    given = [(await replica.asks(5, spent=True)).requests for _ in range(3)]
    assert given == [1, 1, 1] and await replica.denied() == []
    assert (await replica.asks(5)).requests == 0 and await replica.denied() == []
    assert (await replica.asks(5, spent=True)).requests == 0
    assert await replica.denied() == [("limit", "its limit of 3 requests is reached")]
    assert (await replica.asks(5, spent=True)).requests == 0
    (newest, *_) = await replica.plane.store.history()
    assert (newest.type, newest.actor) == ("deny", "limit")
    assert not replica.exposures.watching()


async def test_allow_begins_the_count_anew(replica: Replica) -> None:
    await serve(replica, requests=2, errors=3)
    while (await replica.asks(5, spent=True, errors=1)).requests:
        pass
    assert await replica.denied()
    await replica.operations.allow("number", "2", author("allow"))
    assert await replica.denied() == []
    await replica.exposures.look()
    assert await replica.denied() == []
    (watching,) = replica.exposures.watching().values()
    assert (watching.requests, watching.errors) == (0, 0)
    assert (await replica.asks(5, spent=True)).requests == 1


async def test_an_allow_elsewhere_right_after_it_tripped_here_begins_anew_here(
    planes: Make, replica: Replica, tmp_path: Path
) -> None:
    await serve(replica, requests=2)
    other = Replica(planes(replica.plane.store), tmp_path / "counts", "two")
    other.plane.models = replica.plane.models
    other.plane.run(reader=True)
    await other.plane.until(lambda: "number" in other.plane.deliverer.acknowledged.state.routes)
    while (await other.asks(5, spent=True)).requests:
        pass
    assert await other.denied()
    await replica.operations.allow("number", "2", author("allow"))
    await other.plane.hears_of_denies()
    await other.exposures.look()
    assert (await other.asks(5, spent=True)).requests == 1


async def test_allow_is_refused_while_the_count_cannot_be_begun_anew(replica: Replica) -> None:
    await serve(replica, requests=1)
    await replica.asks(5, spent=True)
    await replica.asks(5, spent=True)
    assert await replica.denied()
    replica.store.away = True
    with pytest.raises(StoreUnavailable):
        await replica.operations.allow("number", "2", author("allow"))
    assert await replica.denied()


@pytest.mark.parametrize(("limit", "more"), [(10, 0), (200, 6)])
async def test_a_limit_that_is_changed_holds_for_what_was_given_before(
    replica: Replica, limit: int, more: int
) -> None:
    await serve(replica, requests=100)
    given = sum([(await replica.asks(50, spent=True)).requests for _ in range(20)])
    assert given > 80
    await serve(replica, requests=limit)
    assert (await replica.asks(6, spent=True)).requests == more
    assert bool(await replica.denied()) is not more


async def test_errors_trip_without_the_store(replica: Replica) -> None:
    await serve(replica, errors=5)
    replica.store.away = True
    assert (await replica.asks(errors=4)).errors == 1
    assert await replica.denied() == []
    assert (await replica.asks(errors=1)).errors == 0
    assert await replica.denied() == [("limit", "its limit of 5 errors is reached")]


async def test_errors_of_others_count(planes: Make, replica: Replica, tmp_path: Path) -> None:
    await serve(replica, errors=5)
    other = Replica(planes(replica.plane.store), tmp_path / "counts", "two")
    other.plane.models = replica.plane.models
    other.plane.run(reader=True)
    await other.plane.until(lambda: "number" in other.plane.deliverer.acknowledged.state.routes)
    assert (await replica.asks()).errors == 5
    assert (await other.asks(errors=3)).errors == 2
    await other.exposures.look()
    await replica.asks(errors=2)
    assert await replica.denied() == [], "not heard of yet"
    await replica.exposures.look()
    assert await replica.denied() == [("limit", "its limit of 5 errors is reached")]
    await other.exposures.look()
    await other.denied()
    assert [record.type for record in await replica.plane.store.history()] == ["deny", "put"]


async def test_a_key_too_many(replica: Replica) -> None:
    await serve(replica, keys=2)
    assert (await replica.asks(keys=(b"a", b"b"))).keys == [b"a", b"b"]
    assert (await replica.asks(keys=(b"a",))).keys == [b"a"]
    assert await replica.denied() == []
    assert (await replica.asks(keys=(b"c", b"a"))).keys == [b"a"]
    assert await replica.denied() == [("limit", "its limit of 2 keys is reached")]


async def test_without_the_store_nothing_is_given_and_it_is_said(replica: Replica) -> None:
    await serve(replica, requests=100)
    replica.store.away = True
    assert await replica.asks(5, spent=True) == Allowance()
    assert "cut off" in replica.exposures.trouble
    assert await replica.denied() == []
    replica.store.away = False
    assert (await replica.asks(5, spent=True)).requests == 5
    assert replica.exposures.trouble == ""


async def test_a_count_that_the_store_has_lost_ends_it(replica: Replica, tmp_path: Path) -> None:
    await serve(replica, requests=100)
    await replica.asks(5, spent=True)
    next((tmp_path / "counts").glob("*.json")).unlink()
    await replica.exposures.look()
    assert (await replica.denied())[0][1].startswith("the store has lost its count")
    await replica.operations.allow("number", "2", author("allow"))
    await replica.exposures.look()
    assert await replica.denied() == []
    assert (await replica.asks(5, spent=True)).requests == 5


class TestALease:
    async def test_renewed_and_lapsed(self, replica: Replica) -> None:
        await serve(replica, lease_ms=60_000)
        assert (await replica.asks()).lease_s == 60
        Replica.now += 50
        await replica.exposures.look()
        assert (await replica.asks()).lease_s == 10
        await replica.operations.renew("number", "canary")
        await replica.exposures.look()
        assert (await replica.asks()).lease_s == 60
        Replica.now += 59
        await replica.exposures.look()
        assert await replica.denied() == []
        Replica.now += 1
        assert (await replica.asks()).lease_s == 0
        assert await replica.denied() == [], "somebody may have renewed it: the store is asked first"
        await replica.exposures.look()
        assert await replica.denied() == [("lease", "nobody has renewed its lease for 1m")]

    async def test_renewed_in_the_last_moment_by_others(self, replica: Replica, tmp_path: Path) -> None:
        await serve(replica, lease_ms=60_000)
        await replica.asks()
        Replica.now += 59
        other = FileExposure(tmp_path / "counts", "two", clock_us=lambda: int(Replica.now * 1e6))
        await other.renew([replica.key])
        Replica.now += 10
        await replica.exposures.look()
        assert await replica.denied() == []
        assert (await replica.asks()).lease_s == 50

    async def test_it_lapses_without_the_store(self, replica: Replica) -> None:
        await serve(replica, lease_ms=60_000)
        await replica.asks()
        replica.store.away = True
        Replica.now += 60
        await replica.exposures.look()
        assert (await replica.denied())[0][0] == "lease"

    async def test_after_a_restart_without_the_store_nothing_is_leased_and_nothing_denied(
        self, replica: Replica
    ) -> None:
        await serve(replica, lease_ms=60_000)
        replica.store.away = True
        assert (await replica.asks()).lease_s == 0
        await replica.exposures.look()
        assert await replica.denied() == []

    async def test_setting_its_weight_renews_it(self, replica: Replica) -> None:
        await serve(replica, lease_ms=60_000)
        await replica.asks()
        await replica.operations.weights("number", {"canary": 0}, author("zero"))
        Replica.now += 600
        await replica.exposures.look()
        assert await replica.denied() == []
        await replica.operations.weights("number", {"canary": 20}, author("back"))
        await replica.exposures.look()
        assert await replica.denied() == []
        assert (await replica.asks()).lease_s == 60

    async def test_setting_the_weight_that_it_has_renews_it(self, replica: Replica) -> None:
        await serve(replica, lease_ms=60_000)
        await replica.asks()
        Replica.now += 50
        outcome = await replica.operations.weights("number", {"canary": 10}, author("as before"))
        assert not outcome.changed
        await replica.exposures.look()
        assert (await replica.asks()).lease_s == 60

    async def test_an_apply_that_changes_the_route_renews_it(self, replica: Replica) -> None:
        await serve(replica, lease_ms=60_000)
        await replica.asks()
        Replica.now += 30
        await serve(replica, lease_ms=600_000)
        await replica.exposures.look()
        assert (await replica.asks()).lease_s == 600


async def test_a_version_without_limits_is_not_asked_about(replica: Replica) -> None:
    await replica.plane.apply()
    await replica.exposures.look()
    assert await replica.asks(5, spent=True, errors=3) == Allowance()
    assert replica.store.asks == []
