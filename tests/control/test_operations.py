from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.control import bootstrap as bootstrap_module
from gateway.control.bootstrap import Bootstrap
from gateway.control.deliver import PrepareFailed
from gateway.control.file_store import FileStore
from gateway.control.operations import Operations
from gateway.control.refusals import LINES
from gateway.control.store import (
    Author,
    Changes,
    Conflict,
    HistoryRecord,
    Signal,
    StoreUnavailable,
)
from gateway.routing.change import ChangeRefused, UnknownName
from gateway.routing.state import DenyKey, InForce, Revision
from registry_client.errors import NotFound
from tests.control.replica import ControlPlane, author, soon


class StoreUnderTest(FileStore):
    """A real store that notes its signals, and can be out of reach or frozen."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.down = False
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.done: list[str] = []

    async def _reachable(self) -> None:
        await self.thawed.wait()
        if self.down:
            raise StoreUnavailable("connection refused")

    async def read(self) -> InForce | None:
        await self._reachable()
        return await super().read()

    async def deny(self, denies: Mapping[DenyKey, str], author: Author, changes: Changes) -> Revision:
        await self._reachable()
        return await super().deny(denies, author, changes)

    async def known(self, op_id: str) -> bool:
        await self._reachable()
        return await super().known(op_id)

    async def reject(self, author: Author, error: str) -> None:
        await self._reachable()
        await super().reject(author, error)

    async def seen(self, signal_id: str) -> None:
        await self._reachable()
        self.done.append(signal_id)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    made = ControlPlane(tmp_path, StoreUnderTest(tmp_path / "store"))
    for version in "123":
        made.publish(version)
    made.run()
    yield made
    store(made).thawed.set()
    await made.aclose()


def store(plane: ControlPlane) -> StoreUnderTest:
    assert isinstance(plane.store, StoreUnderTest)
    return plane.store


async def history(plane: ControlPlane) -> Sequence[HistoryRecord]:
    return await plane.store.history()


class TestApply:
    async def test_a_plan_changes_nothing(self, plane: ControlPlane) -> None:
        planned = await plane.operations.plan(plane.manifest())
        assert planned.changes
        assert await plane.store.read() is None
        assert not plane.workers.rung and not plane.workers.loaded

    async def test_it_is_in_force_when_it_returns(self, plane: ControlPlane) -> None:
        plan, outcome = await soon(plane.operations.apply(plane.manifest(), author("a", "first")))
        assert (outcome.revision, outcome.changed, outcome.published) == ("1.1", True, True)
        assert len(plan.changes) > 5
        assert plane.deliverer.acknowledged.revision == (1, 1)
        (record,) = await history(plane)
        assert (record.type, record.actor, record.reason) == ("put", "ann", "first")
        assert record.changes[0]["after"]["canary"] == {"version": "2", "weight": 10, "share": 10}

    async def test_the_same_again_changes_nothing(self, plane: ControlPlane) -> None:
        await plane.apply()
        plan, outcome = await soon(plane.operations.apply(plane.manifest(), author("again")))
        assert (plan.changes, outcome.changed, outcome.revision) == ([], False, "1.1")
        assert len(await history(plane)) == 1

    async def test_whole_or_not_at_all(self, plane: ControlPlane) -> None:
        await plane.apply()
        held = plane.deliverer.held
        with pytest.raises(NotFound):
            await plane.apply({"stable@1": 90, "canary@9": 10})
        plane.workers.refuses.add("3")
        with pytest.raises(PrepareFailed):
            await plane.apply({"stable@3": 90, "canary@2": 10})
        assert plane.deliverer.held is held
        assert len(await history(plane)) == 1

    @pytest.mark.parametrize("expect", [(1, 0), (1, 2), (0, 0), (2, 1)])
    async def test_another_revision_is_a_conflict(self, plane: ControlPlane, expect: tuple[int, int]) -> None:
        await plane.apply()
        with pytest.raises(Conflict) as conflict:
            await plane.operations.apply(plane.manifest({"stable@1": 100}), author("b"), Revision(*expect))
        assert conflict.value.current == (1, 1)
        with pytest.raises(Conflict):
            await plane.operations.weights("number", {"canary": 5}, author("c"), Revision(*expect))
        assert (
            await plane.operations.weights("number", {"canary": 5}, author("d"), Revision(1, 1))
        ).revision == "1.2"

    async def test_of_two_at_once_one_conflicts(self, plane: ControlPlane) -> None:
        await plane.apply()
        results = await soon(
            asyncio.gather(
                *(plane.operations.weights("number", {"canary": w}, author(f"w{w}")) for w in (20, 30)),
                return_exceptions=True,
            )
        )
        assert sorted(isinstance(result, Conflict) for result in results) == [False, True]

    async def test_a_worker_that_hangs_holds_up_the_change_for_a_moment_only(
        self, plane: ControlPlane
    ) -> None:
        await plane.apply()
        plane.workers.answers.clear()
        outcome = await soon(plane.operations.weights("number", {"canary": 20}, author("w")))
        assert outcome.revision == "1.2"
        assert plane.workers.rung[-1].revision == (1, 2)
        assert plane.deliverer.acknowledged.revision == (1, 1)


class TestRollback:
    async def test_it_is_in_force_and_in_the_history(self, plane: ControlPlane) -> None:
        await plane.apply()
        outcome = await soon(plane.operations.rollback("number", None, author("r", "5xx")))
        assert (outcome.revision, outcome.published) == ("1.2", True)
        assert outcome.message == "number: version 2 is denied"
        assert plane.workers.denied == {"2"}
        record = (await history(plane))[0]
        assert (record.type, record.reason, record.op_id) == ("deny", "5xx", "r")
        assert record.changes[0]["after"]["stable"]["share"] == 100

    async def test_again_is_nothing(self, plane: ControlPlane) -> None:
        await plane.apply()
        await soon(plane.operations.rollback("number", None, author("r")))
        for version in (None, "2"):
            outcome = await soon(plane.operations.rollback("number", version, author("r2")))
            assert (outcome.changed, outcome.message) == (False, "number is rolled back already")
        assert len(await history(plane)) == 2

    @pytest.mark.parametrize("trouble", ["down", "frozen", "gone"])
    async def test_it_needs_no_store(self, plane: ControlPlane, trouble: str) -> None:
        await plane.apply()
        if trouble == "down":
            store(plane).down = True
        elif trouble == "frozen":
            store(plane).thawed.clear()
        else:
            for file in (store(plane).state_path, *store(plane).state_path.parent.glob("history*")):
                file.unlink()
        outcome = await soon(plane.operations.rollback("number", None, author("r")))
        assert (outcome.published, outcome.changed, outcome.revision) == (False, True, "1.1+1")
        assert "on this replica" in outcome.message
        assert plane.workers.denied == {"2"}

    async def test_a_store_that_thaws_hears_of_it(self, plane: ControlPlane) -> None:
        await plane.apply()
        store(plane).thawed.clear()
        await soon(plane.operations.rollback("number", None, author("r")))
        store(plane).thawed.set()
        await soon(plane.deliverer.wait_for(Revision(1, 2)))
        assert plane.deliverer.held.label == "1.2"
        assert (await history(plane))[0].type == "deny"

    async def test_a_worker_that_hangs_holds_nobody_up(self, plane: ControlPlane) -> None:
        await plane.apply({"stable@1": 80, "canary@2": 10, "other@3": 10})
        plane.workers.answers.clear()
        first = await soon(plane.operations.rollback("number", "2", author("a")))
        second = await soon(plane.operations.rollback("number", "3", author("b")))
        assert first.published and second.published
        assert "not every worker has answered" in second.message
        assert plane.workers.denied == {"2", "3"}

    async def test_what_makes_no_sense_is_refused(self, plane: ControlPlane) -> None:
        await plane.apply({"stable@1": 100})
        for name, version, kind in (
            ("nobody", None, UnknownName),
            ("number", "9", UnknownName),
            ("number", None, ChangeRefused),
        ):
            with pytest.raises(kind):
                await plane.operations.rollback(name, version, author("x"))
        assert len(await history(plane)) == 1

    async def test_lifting_it(self, plane: ControlPlane) -> None:
        await plane.apply()
        await soon(plane.operations.rollback("number", None, author("r")))
        outcome = await soon(plane.operations.allow("number", "2", author("a")))
        assert outcome.revision == "1.3"
        assert plane.workers.denied == set()
        assert plane.deliverer.acknowledged.label == "1.3"
        record = (await history(plane))[0]
        assert (record.type, record.changes[0]["after"]["canary"]["share"]) == ("undeny", 10)
        with pytest.raises(UnknownName):
            await plane.operations.allow("number", "2", author("b"))

    async def test_a_version_that_no_longer_loads_stays_denied(self, plane: ControlPlane) -> None:
        await plane.apply()
        await soon(plane.operations.rollback("number", None, author("r")))
        plane.workers.refuses.add("2")
        plane.workers.loaded.clear()
        with pytest.raises(PrepareFailed):
            await plane.operations.allow("number", "2", author("a"))
        assert plane.workers.denied == {"2"}


class TestSeveralRoutes:
    ROUTES = ("number", "letter")

    async def test_weights_come_in_one_revision(self, plane: ControlPlane) -> None:
        await plane.apply(names=self.ROUTES)
        weights = {name: {"canary": 60.0} for name in self.ROUTES}
        outcome = await soon(plane.operations.weights_of(weights, author("w"), Revision(1, 1)))
        assert outcome.revision == "1.2"
        record = (await history(plane))[0]
        assert [change["route"] for change in record.changes] == ["letter", "number"]
        again = await soon(plane.operations.weights_of(weights, author("w2")))
        assert (again.changed, again.revision) == (False, "1.2")

    async def test_a_rollback_is_one_ring_and_one_line(self, plane: ControlPlane) -> None:
        await plane.apply(names=self.ROUTES)
        outcome = await soon(plane.operations.rollback_of(dict.fromkeys(self.ROUTES), author("r")))
        assert outcome.revision == "1.2"
        assert outcome.message == "number: version 2 is denied; letter: version 2 is denied"
        assert len(await history(plane)) == 2
        seen = [{key.route for key in held.denies} for held in plane.workers.rung]
        assert all(routes in (set(), set(self.ROUTES)) for routes in seen) and set(self.ROUTES) in seen
        again = await soon(plane.operations.rollback_of(dict.fromkeys(self.ROUTES), author("r2")))
        assert (again.changed, again.message) == (False, "number, letter are rolled back already")

    async def test_one_that_is_refused_refuses_all(self, plane: ControlPlane) -> None:
        await plane.apply(names=self.ROUTES)
        with pytest.raises(UnknownName, match="nobody"):
            await plane.operations.rollback_of({"number": None, "nobody": None}, author("r"))
        with pytest.raises(ChangeRefused, match="letter"):
            await plane.operations.weights_of(
                {"number": {"canary": 1}, "letter": {"canary": 200}}, author("w")
            )
        assert len(await history(plane)) == 1
        assert plane.workers.denied == set()


class TestObeying:
    async def test_once(self, plane: ControlPlane) -> None:
        await plane.apply()
        first = await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        assert first.message == "number: version 2 is denied"
        await soon(plane.operations.allow("number", "2", author("a")))
        again = await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        assert (again.changed, "had its answer before" in again.message) == (False, True)
        assert plane.workers.denied == set()
        another = await soon(plane.operations.obey(lambda: {"number": None}, author("alert-2")))
        assert another.changed and plane.workers.denied == {"2"}

    async def test_what_there_was_nothing_to_do_for_does_nothing_later(self, plane: ControlPlane) -> None:
        await plane.apply()
        await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        await soon(plane.operations.obey(lambda: {"number": None}, author("alert-2", "5xx")))
        line = (await history(plane))[0]
        assert (line.type, line.op_id) == ("reject", "alert-2")
        assert line.reason == "5xx (refused: nothing to do, number is rolled back already)"
        await soon(plane.operations.allow("number", "2", author("a")))
        await soon(plane.operations.obey(lambda: {"number": None}, author("alert-2", "5xx")))
        assert plane.workers.denied == set()

    async def test_what_is_refused_has_its_line_and_is_raised(self, plane: ControlPlane) -> None:
        await plane.apply()
        with pytest.raises(UnknownName):
            await soon(plane.operations.obey(lambda: {"nobody": None}, author("alert-1")))
        line = (await history(plane))[0]
        assert (line.type, line.op_id) == ("reject", "alert-1|1.1") and "no route 'nobody'" in line.reason

    async def test_what_is_refused_is_tried_again_when_the_state_has_changed(
        self, plane: ControlPlane
    ) -> None:
        await plane.apply({"stable@1": 100})
        with pytest.raises(ChangeRefused, match="nothing to roll back to"):
            await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        again = await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        assert "had its answer before" in again.message
        assert len(await history(plane)) == 2, "the same refusal of the same state is one line"
        await plane.apply()
        outcome = await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        assert outcome.changed and plane.workers.denied == {"2"}
        await soon(plane.operations.allow("number", "2", author("a")))
        await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        assert plane.workers.denied == set(), "it has had its rollback"
        assert [line.type for line in await history(plane)] == ["undeny", "deny", "put", "reject", "put"]

    async def test_a_signal_of_the_stream_is_refused_once(self, plane: ControlPlane) -> None:
        await plane.apply({"stable@1": 100})
        signal = Signal(id="5-5", fields={"action": "rollback", "route": "number"})
        await soon(plane.operations.signal(signal))
        await plane.apply()
        await soon(plane.operations.signal(signal))
        assert plane.workers.denied == set()
        assert [line.op_id for line in await history(plane)][1] == "signal-5-5"

    async def test_a_flood_of_refusals_pushes_nothing_out_of_the_history(
        self, plane: ControlPlane, caplog: pytest.LogCaptureFixture
    ) -> None:
        await plane.apply()
        now = [0.0]
        operations = Operations(plane.store, plane.deliverer, plane.versions, clock_s=lambda: now[0])
        for number in range(100):
            with pytest.raises(UnknownName, match="no route 'nobody'"):
                await soon(operations.obey(lambda: {"nobody": None}, author(f"alert-{number}")))
        lines = await plane.store.history(1000)
        assert [line.type for line in lines] == ["reject"] * LINES + ["put"]
        assert sum("is refused" in record.getMessage() for record in caplog.records) == LINES
        # What is obeyed has its line all the same, and what comes later says what is missing.
        await soon(operations.obey(lambda: {"number": None}, author("alert-real")))
        now[0] = 60.0
        with pytest.raises(UnknownName):
            await soon(operations.obey(lambda: {"nobody": None}, author("alert-last")))
        last, deny = (await history(plane))[:2]
        assert (deny.type, deny.op_id) == ("deny", "alert-real")
        assert "(40 refusals before it left no line" in last.reason
        assert "(40 refusals before it left no line" in caplog.text

    async def test_what_had_nothing_to_do_in_a_flood_does_nothing_later(self, plane: ControlPlane) -> None:
        await plane.apply()
        await soon(plane.operations.rollback("number", None, author("r")))
        for number in range(LINES + 5):
            again = await soon(plane.operations.obey(lambda: {"number": None}, author(f"alert-{number}")))
            assert not again.changed
        assert len(await plane.store.history(1000)) == LINES + 2
        await soon(plane.operations.allow("number", "2", author("a")))
        for number in range(LINES + 5):
            await soon(plane.operations.obey(lambda: {"number": None}, author(f"alert-{number}")))
        assert plane.workers.denied == set()

    @pytest.mark.parametrize("trouble", ["down", "frozen"])
    async def test_it_needs_no_store(self, plane: ControlPlane, trouble: str) -> None:
        await plane.apply()
        if trouble == "down":
            store(plane).down = True
        else:
            store(plane).thawed.clear()
        outcome = await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        assert (outcome.published, outcome.changed) == (False, True)
        assert plane.workers.denied == {"2"}
        # Again, while it still waits to be published: no second line, and nothing more is denied.
        again = await soon(plane.operations.obey(lambda: {"number": None}, author("alert-1")))
        assert not again.changed


class TestSignals:
    def signal(self, id_: str = "1-1", **fields: str) -> Signal:
        return Signal(id=id_, fields=fields)

    async def test_a_rollback(self, plane: ControlPlane) -> None:
        await plane.apply()
        await plane.operations.signal(
            self.signal(action="rollback", route="number", actor="pager", reason="r")
        )
        record = (await history(plane))[0]
        assert (record.type, record.actor, record.reason, record.op_id) == (
            "deny",
            "signal:pager",
            "r",
            "signal-1-1",
        )
        assert store(plane).done == ["1-1"]
        assert plane.workers.denied == {"2"}

    async def test_an_empty_store_has_no_history_and_the_signal_is_done_with(
        self, plane: ControlPlane
    ) -> None:
        await plane.operations.signal(self.signal(action="rollback", route="number"))
        assert store(plane).done == ["1-1"]
        assert await history(plane) == []

    async def test_a_store_that_goes_away_meanwhile_gets_it_again(self, plane: ControlPlane) -> None:
        await plane.apply()
        store(plane).down = True
        await plane.operations.signal(self.signal(action="rollback", route="number"))
        assert plane.workers.denied == {"2"}, "here it is in force all the same"
        store(plane).down = False
        await plane.operations.signal(self.signal(action="rollback", route="number"))
        assert store(plane).done == [], "the others have not heard of it yet"
        later = self.signal("10-1", action="rollback", route="nobody")
        await plane.operations.signal(later)
        assert store(plane).done == [], "done with it, the store would forget the one before"
        await plane.reader.synchronise()
        await plane.operations.signal(self.signal(action="rollback", route="number"))
        await plane.operations.signal(later)
        assert store(plane).done == ["1-1", "10-1"]
        assert [record.type for record in await history(plane)][:2] == ["deny", "reject"]

    async def test_a_bug_does_not_end_the_process_at_every_start(
        self, plane: ControlPlane, caplog: pytest.LogCaptureFixture
    ) -> None:
        await plane.apply()

        class Odd(dict[str, str]):
            def get(self, key: str, default: Any = None) -> Any:
                return 5 if key == "route" else super().get(key, default)

        await plane.operations.signal(Signal(id="7-7", fields=Odd(action="rollback")))
        assert store(plane).done == ["7-7"]
        assert (await history(plane))[0].type == "reject"
        assert "signal 7-7 failed" in caplog.text


class TestBootstrap:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bootstrap_module, "RETRY_S", 0.01)

    def write(
        self, plane: ControlPlane, path: Path, weights: Mapping[str, float], text: str | None = None
    ) -> Path:
        variants = {key.split("@")[0]: {"model": f"local/number@{key.split('@')[1]}", "weight": value}
                    for key, value in weights.items()}  # fmt: skip
        registries = {"local": {"type": "directory", "path": "./models"}}
        document = {"registries": registries, "routes": {"number": {"variants": variants}}}
        path.write_text(text if text is not None else yaml.safe_dump(document, sort_keys=False))
        return path

    async def settled(self, plane: ControlPlane, config: Path, *, shared: bool = False) -> Bootstrap:
        """One look at the file."""
        made = Bootstrap(config, plane.operations, plane.deliverer, shared=shared)
        await soon(made._settled(config))
        return made

    async def test_a_first_start_applies_the_file(self, plane: ControlPlane, tmp_path: Path) -> None:
        config = self.write(plane, tmp_path / "turnout.yaml", {"stable@1": 90, "canary@2": 10})
        made = Bootstrap(config, plane.operations, plane.deliverer, shared=True)
        reached = asyncio.Event()
        running = asyncio.create_task(made.run(reached))
        try:
            await asyncio.sleep(0)
            assert await plane.store.read() is None, "the store is asked first"
            reached.set()
            await plane.until(lambda: plane.deliverer.acknowledged.revision == (1, 1))
            assert made.trouble == ""
            path = plane.deliverer.held.state.registries["local"].options["path"]
            assert path == str(plane.models), "relative to the file"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    @pytest.mark.parametrize(("shared", "canary"), [(False, 5000), (True, 1000)])
    async def test_a_file_that_was_edited(
        self, plane: ControlPlane, tmp_path: Path, shared: bool, canary: int
    ) -> None:
        config = self.write(plane, tmp_path / "turnout.yaml", {"stable@1": 90, "canary@2": 10})
        await self.settled(plane, config)
        self.write(plane, config, {"stable@1": 50, "canary@2": 50})
        made = await self.settled(plane, config, shared=shared)
        assert plane.deliverer.held.state.routes["number"].variants["canary"].weight_bp == canary
        assert made.trouble == ""

    async def test_a_file_as_it_was_undoes_no_change_made_since(
        self, plane: ControlPlane, tmp_path: Path
    ) -> None:
        config = self.write(plane, tmp_path / "turnout.yaml", {"stable@1": 90, "canary@2": 10})
        await self.settled(plane, config)
        await soon(plane.operations.weights("number", {"canary": 0}, author("w")))
        await self.settled(plane, config)
        assert plane.deliverer.held.revision == (1, 2)

    @pytest.mark.parametrize("text", ["", "routes: {a: {}}", "{"])
    async def test_a_file_that_is_refused_is_said_so_and_ends_nothing(
        self, plane: ControlPlane, tmp_path: Path, text: str
    ) -> None:
        config = self.write(plane, tmp_path / "turnout.yaml", {"stable@1": 100})
        await self.settled(plane, config)
        self.write(plane, config, {}, text)
        made = await self.settled(plane, config)
        assert "is refused" in made.trouble
        assert plane.deliverer.held.revision == (1, 1)
        gone = await self.settled(plane, tmp_path / "nowhere.yaml")
        assert "cannot be read" in gone.trouble

    async def test_a_registry_that_is_away_is_asked_again(self, plane: ControlPlane, tmp_path: Path) -> None:
        config = self.write(plane, tmp_path / "turnout.yaml", {"stable@1": 100})
        bring_back = plane.hide("1")
        made = Bootstrap(config, plane.operations, plane.deliverer, shared=False)
        reached = asyncio.Event()
        reached.set()
        running = asyncio.create_task(made.run(reached))
        try:
            async with asyncio.timeout(10):
                while "cannot be applied yet" not in made.trouble:
                    await asyncio.sleep(0.001)
            bring_back()
            await plane.until(lambda: plane.deliverer.acknowledged.revision == (1, 1))
            async with asyncio.timeout(10):
                while made.trouble:
                    await asyncio.sleep(0.001)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
