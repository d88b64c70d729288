from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.control import deliver as deliver_module
from gateway.control import state_file
from gateway.control.deliver import PrepareFailed
from gateway.routing import change
from gateway.routing.state import Deny, DenyKey, InForce, Revision, State
from tests.control.replica import ControlPlane, author, soon


def later(held: InForce, **changed: object) -> InForce:
    return msgspec.structs.replace(held, revision=Revision(1, held.revision.rev + 1), **changed)


def deny_of(held: InForce, version: str) -> dict[DenyKey, str]:
    return change.rollback(held, "number", version)


def mirrored(plane: ControlPlane) -> InForce:
    held = state_file.read(plane.mirror)
    assert held is not None
    return held


class TestBringingIntoForce:
    async def test_a_state_is_fetched_loaded_rung_and_written_down(self, plane: ControlPlane) -> None:
        plane.run()
        assert await plane.apply() == "1.1"
        held = plane.deliverer.held
        assert held.revision == (1, 1) and plane.deliverer.acknowledged is held
        assert set(plane.workers.loaded) == {"1", "2"}
        assert plane.workers.rung[-1] == held
        pins = [variant.pin for variant in held.state.routes["number"].variants.values()]
        assert set(plane.workers.paths[-1]) == {pin.digest for pin in pins}
        assert mirrored(plane) == held
        assert plane.deliverer.in_use() == set(plane.workers.paths[-1])
        assert (plane.deliverer.error, plane.deliverer.mirror_error) == ("", "")

    async def test_an_older_state_is_nothing(self, plane: ControlPlane) -> None:
        plane.run()
        await plane.apply()
        held = plane.deliverer.held
        plane.deliverer.offer(msgspec.structs.replace(held, revision=Revision(1, 0)))
        plane.deliverer.offer(held)
        assert plane.deliverer.newest is held or plane.deliverer.newest == held
        assert plane.deliverer.held is held
        assert len(plane.workers.rung) == 1, "the same state is not rung again"

    async def test_a_restart_serves_what_is_in_the_cache_before_anything_is_asked(
        self, plane: ControlPlane, tmp_path: Path
    ) -> None:
        plane.run()
        await plane.apply()
        held = mirrored(plane)
        again = ControlPlane(tmp_path / "replica0", plane.store)
        bring_back = again.hide("1"), again.hide("2")
        try:
            await again.deliverer.start(held)
            assert again.workers.rung == [held]
            assert set(again.workers.paths[0]) == set(plane.workers.paths[-1])
        finally:
            for back in bring_back:
                back()
            await again.aclose()


class TestDenies:
    async def test_a_deny_overtakes_a_document_that_waits_for_its_weights(self, plane: ControlPlane) -> None:
        plane.run()
        await plane.apply()
        bring_back = plane.hide("3")
        held = plane.deliverer.held
        state = with_variant(held, "third", "3")
        plane.deliverer.offer(later(held, state=state))
        await plane.until(lambda: bool(plane.deliverer.error))
        assert "3" in plane.deliverer.error
        # The store's document 1.3 has the new variant and the deny; only the deny can be had.
        denies = in_store(deny_of(held, "2"), 3)
        plane.deliverer.offer(
            msgspec.structs.replace(later(held, state=state, denies=denies), revision=Revision(1, 3))
        )
        await soon(plane.deliverer.wait_for(Revision(1, 1)))
        assert plane.deliverer.held.state == held.state
        assert plane.deliverer.held.denies == denies
        assert plane.deliverer.held.label == "1.1+1"
        await plane.hears_of_denies("2")
        bring_back()

    async def test_one_of_a_new_epoch_is_ahead_of_the_document_however_it_counts(
        self, plane: ControlPlane
    ) -> None:
        """Or two answers of one revision would differ: 2.1 comes after 1.9, and 1 before 9."""
        plane.run()
        await plane.apply()
        held = msgspec.structs.replace(plane.deliverer.held, revision=Revision(1, 9))
        plane.deliverer.offer(held)
        await soon(plane.deliverer.wait_for(Revision(1, 9)))
        plane.hide("3")
        state, denies = with_variant(held, "third", "3"), in_store(deny_of(held, "2"), 1)
        plane.deliverer.offer(InForce(revision=Revision(2, 1), state=state, denies=denies))
        await plane.hears_of_denies("2")
        assert plane.deliverer.held.label == "1.9+1"
        assert plane.deliverer.newest.denies == denies

    async def test_a_deny_of_what_a_document_that_waits_allows_again_is_not_lost(
        self, plane: ControlPlane
    ) -> None:
        plane.run()
        await plane.apply()
        held = plane.deliverer.held
        denied = later(held, denies=in_store(deny_of(held, "2"), 2))
        plane.deliverer.offer(denied)
        await soon(plane.deliverer.wait_for(Revision(1, 2)))
        plane.hide("3")
        plane.deliverer.offer(later(denied, denies={}, state=with_variant(held, "third", "3")))
        await plane.until(lambda: bool(plane.deliverer.error))
        assert plane.workers.denied == {"2"}, "it is still in force"
        await soon(plane.deliverer.deny_now(deny_of(held, "2"), author("again"), 1))
        assert [deny.rev for deny in plane.deliverer.held.denies.values()] == [2]
        assert [deny.rev for deny in plane.deliverer.newest.denies.values()] == [0], (
            "the store has yet to hear"
        )

    async def test_a_deny_waits_for_no_worker_that_hangs(self, plane: ControlPlane) -> None:
        plane.run()
        await plane.apply({"stable@1": 60, "canary@2": 30, "other@3": 10})
        held = plane.deliverer.held
        plane.workers.answers.clear()
        first = plane.deliverer.deny_now(deny_of(held, "2"), author("a"), 1)
        second = plane.deliverer.deny_now(deny_of(held, "3"), author("b"), 2)
        await plane.hears_of_denies("2", "3")
        assert not first.done() and not second.done()
        assert plane.deliverer.acknowledged is held, "and nothing claims that they have taken it"
        plane.workers.answers.set()
        await soon(asyncio.gather(first, second))
        assert plane.deliverer.acknowledged is plane.deliverer.held
        assert set(mirrored(plane).denies) == set(deny_of(held, "2")) | set(deny_of(held, "3"))

    async def test_two_changes_at_once_lose_nothing_of_each_other(self, plane: ControlPlane) -> None:
        plane.run()
        await plane.apply({"stable@1": 60, "canary@2": 30, "other@3": 10})
        held = plane.deliverer.held
        state = change.set_weights(held, "number", {"canary": 40})
        plane.deliverer.offer(later(held, state=state))
        plane.deliverer.deny_now(deny_of(held, "2"), author("a"), 1)
        plane.deliverer.deny_now(deny_of(held, "3"), author("b"), 2)
        await soon(plane.deliverer.wait_for(Revision(1, 2)))
        assert plane.deliverer.held.state == state
        assert {deny.version for deny in plane.deliverer.held.denies.values()} == {"2", "3"}
        assert plane.deliverer.held.label == "1.2+2"
        assert mirrored(plane) == plane.deliverer.held == plane.workers.rung[-1]

    async def test_a_local_deny_outlives_a_store_that_does_not_know_it(self, plane: ControlPlane) -> None:
        plane.run()
        await plane.apply()
        held = plane.deliverer.held
        await soon(plane.deliverer.deny_now(deny_of(held, "2"), author("a"), 1))
        plane.deliverer.offer(later(held))
        await plane.hears_of_denies("2")
        assert {deny.version for deny in plane.deliverer.newest.denies.values()} == {"2"}
        # The store has it, then somebody lifts it: gone.
        committed = later(later(held), denies=in_store(deny_of(held, "2"), 3))
        plane.deliverer.offer(committed)
        assert {deny.rev for deny in plane.deliverer.newest.denies.values()} == {3}
        plane.deliverer.offer(later(later(later(held))))
        assert plane.deliverer.newest.denies == {}
        await soon(plane.deliverer.wait_for(Revision(1, 4)))
        assert plane.deliverer.held.label == "1.4"

    async def test_a_full_disk_does_not_hold_up_a_deny(self, plane: ControlPlane) -> None:
        plane.run()
        await plane.apply()
        held = plane.deliverer.held
        # A directory where the file should be: every replacement fails with an OSError.
        plane.mirror.unlink()
        plane.mirror.mkdir()
        await soon(plane.deliverer.deny_now(deny_of(held, "2"), author("a"), 1))
        assert plane.workers.denied == {"2"}
        assert plane.deliverer.acknowledged.denies
        assert "cannot be written" in plane.deliverer.mirror_error
        plane.mirror.rmdir()
        plane.deliverer.offer(later(held))
        await soon(plane.deliverer.wait_for(Revision(1, 2)))
        assert plane.deliverer.mirror_error == ""
        assert mirrored(plane) == plane.deliverer.held

    async def test_denying_again_changes_nothing(self, plane: ControlPlane) -> None:
        plane.run()
        await plane.apply()
        denies = deny_of(plane.deliverer.held, "2")
        await soon(plane.deliverer.deny_now(denies, author("a", "first"), 1))
        await soon(plane.deliverer.deny_now(denies, author("b", "second"), 2))
        (deny,) = plane.deliverer.held.denies.values()
        assert (deny.reason, deny.us) == ("first", 1)


class TestWhatCannotBePrepared:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deliver_module, "RETRY_S", (0.01,))
        monkeypatch.setattr(deliver_module, "RETRY_WORKERS_S", 0.01)

    async def test_the_old_state_stays_and_says_why(self, plane: ControlPlane) -> None:
        plane.run()
        await plane.apply()
        held = plane.deliverer.held
        plane.workers.refuses.add("3")
        with pytest.raises(
            PrepareFailed, match=r"number: local/number version 3 cannot be loaded: opset of 3"
        ):
            await plane.apply({"stable@1": 90, "canary@3": 10})
        assert plane.deliverer.held is held
        assert await plane.store.read() == held, "nothing was committed"

    async def test_a_state_of_another_replica_is_refused_and_tried_again(
        self, plane: ControlPlane, planes: Callable[..., ControlPlane]
    ) -> None:
        plane.run()
        await plane.apply()
        other = planes(plane.store)
        other.workers.refuses.add("2")
        other.run(reader=True)
        await other.until(lambda: "opset of 2" in other.deliverer.error)
        assert other.workers.rung[-1].revision == (1, 1), "the rest is served, for want of anything better"
        other.workers.refuses.clear()
        await other.until(lambda: other.deliverer.error == "")
        await soon(other.deliverer.wait_for(Revision(1, 1)))
        assert other.deliverer.acknowledged == plane.deliverer.held

    async def test_it_is_tried_again_when_the_registry_is_back(
        self, plane: ControlPlane, planes: Callable[..., ControlPlane]
    ) -> None:
        plane.run()
        await plane.apply()
        bring_back = plane.hide("2")
        other = planes(plane.store)
        other.run(reader=True)
        await other.until(lambda: "version 2 cannot be fetched" in other.deliverer.error)
        bring_back()
        await other.until(lambda: other.deliverer.error == "")
        assert other.deliverer.acknowledged == plane.deliverer.held
        assert len(other.workers.paths[-1]) == 2

    async def test_a_newer_state_is_not_kept_waiting_by_one_that_cannot_be_had(
        self, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deliver_module, "RETRY_S", (3600.0,))
        plane.run()
        await plane.apply()
        held = plane.deliverer.held
        route = held.state.routes["number"]
        broken = msgspec.structs.replace(route.variants["canary"].pin, digest="f" * 64, version="99")
        variants = {**route.variants, "canary": msgspec.structs.replace(route.variants["canary"], pin=broken)}
        state = change.replace_route(held.state, "number", msgspec.structs.replace(route, variants=variants))
        plane.deliverer.offer(later(held, state=state))
        await soon(plane.deliverer.wait_for(Revision(1, 2)))
        assert plane.deliverer.held is held and "99" in plane.deliverer.error
        good = later(later(held), state=change.set_weights(held, "number", {"canary": 50}))
        plane.deliverer.offer(good)
        await soon(plane.deliverer.wait_for(Revision(1, 3)))
        assert plane.deliverer.acknowledged == good
        assert plane.deliverer.error == ""

    async def test_workers_that_failed_are_rung_again(self, plane: ControlPlane) -> None:
        plane.run()
        plane.workers.errors.append("the other process is gone")
        await plane.apply()
        rings = len(plane.workers.rung)
        assert plane.deliverer.applied.errors
        plane.workers.errors.clear()
        while len(plane.workers.rung) == rings or plane.deliverer.applied.errors:
            await asyncio.sleep(0.001)
        assert plane.deliverer.applied.ok == 2
        assert plane.workers.rung[-1] == plane.deliverer.held


def with_variant(held: InForce, name: str, version: str) -> State:
    """A state with one variant more, on a version that only the registry has."""
    route = held.state.routes["number"]
    like = route.variants["canary"]
    pin = msgspec.structs.replace(like.pin, version=version, digest=version * 64, identity="")
    variants = {**route.variants, name: msgspec.structs.replace(like, pin=pin, weight_bp=0)}
    return change.replace_route(held.state, "number", msgspec.structs.replace(route, variants=variants))


def in_store(denies: dict[DenyKey, str], rev: int) -> dict[DenyKey, Deny]:
    return {key: Deny(version=version, rev=rev) for key, version in denies.items()}
