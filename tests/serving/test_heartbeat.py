"""What a worker proves of its versions, and what it cannot: engines that fail, hang, refuse zeros and are busy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gateway.routing.state import EngineOptions
from gateway.serving.batching import Batcher, Work
from gateway.serving.engine import EngineError
from gateway.serving.heartbeat import GOOD_PERIODS, OVERDUE_S, PERIOD_S, SHARE, Heartbeat, version_token
from gateway.serving.live import EngineKey, Live, LoadedVersion
from gateway.serving.run_threads import RunThreads
from gateway.serving.turns import Turns
from gateway.telemetry.observations import Labels
from tests.serving.fake_engine import FakeEngine, observing
from tests.states import in_force, pin, route

SOON_S = 10.0
ZEROS = "zeros are no legal input"


class BeatenEngine(FakeEngine):
    """Counts its warm-ups, which fail and wait as told."""

    def __init__(self) -> None:
        super().__init__()
        self.beats = 0
        self.error: Exception | None = None
        self.warm_gate: threading.Event | None = None

    def warm(self) -> None:
        self.beats += 1
        if self.warm_gate is not None:
            assert self.warm_gate.wait(20)
        if self.error is not None:
            raise self.error


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> int:
        return int(self.now_s * 1e9)


class Worker:
    """Route `digits`: version 1 is the fallback, 2 the canary, 3 what the fallback was before."""

    def __init__(self, warm_ns: int = 1000) -> None:
        self.clock = Clock()
        self.live = Live(observing())
        self.loop = asyncio.get_running_loop()
        self.threads = ThreadPoolExecutor(2)
        self.run_threads = RunThreads(2)
        self.turns = Turns(self.loop)
        self.engines: dict[str, BeatenEngine] = {}
        for version in "123":
            self.load(version, warm_ns=warm_ns)
        self.swap()
        self.proved: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.good_for_s = 0.0
        self.told = 0
        self.heartbeat = Heartbeat(self.live, self.run_threads, self.loop, self.tell, clock_ns=self.clock)

    def swap(self) -> None:
        self.live.swap(in_force(route({"stable 1": 90, "canary 2": 10}, previous="3")))

    def load(self, version: str, *, refuses_zeros: str = "", warm_ns: int = 1000) -> None:
        engine = self.engines[version] = BeatenEngine()
        key = EngineKey(version * 64, EngineOptions())
        made = Batcher(
            engine, EngineOptions(), self.loop, self.threads, run_ns=warm_ns, turns=self.turns, loop_budget_ns=-1
        )  # fmt: skip
        self.live.engines[key] = LoadedVersion(key, engine, made, lambda _: None, refuses_zeros=refuses_zeros)

    def tell(self, *, proved: dict[str, str], failed: dict[str, str], good_for_s: float) -> None:
        names = {version_token(version * 64, EngineOptions()): version for version in "123"}
        for token, leaves_open in proved.items():
            self.proved[names[token]] = leaves_open
            self.failed.pop(names[token], None)
        for token, reason in failed.items():
            self.failed[names[token]] = reason
            self.proved.pop(names[token], None)
        self.good_for_s = good_for_s
        self.told += 1

    def batcher(self, version: str) -> Batcher:
        return self.live.engines[EngineKey(version * 64, EngineOptions())].batcher

    def ask(self, version: str) -> asyncio.Future[Any]:
        """One request of the version."""
        answered: asyncio.Future[Any] = self.loop.create_future()
        observations = self.live._observations.block(Labels("digits", "stable", version))
        inputs = {"x": np.zeros((1, 2), np.float32)}
        work = Work(inputs, ("sum",), True, self.clock() + 10**15, observations, answered.set_result)
        self.batcher(version).submit(work)
        return answered

    async def until(self, condition: Callable[[], bool], by_s: float = 0.0) -> None:
        """Ticks, as time goes by, until it is so."""
        async with asyncio.timeout(SOON_S):
            while not condition():
                self.clock.now_s += by_s
                self.heartbeat.tick()
                await asyncio.sleep(0.002)

    async def a_round(self) -> None:
        """Every version has its heartbeat, as long as none hangs."""
        before = {version: engine.beats for version, engine in self.engines.items()}
        self.clock.now_s += PERIOD_S
        await self.until(lambda: all(engine.beats > before[v] for v, engine in self.engines.items()))
        beating = self.heartbeat
        await self.until(lambda: beating._beat is None)
        self.heartbeat.announce()

    def close(self) -> None:
        for engine in self.engines.values():
            for gate in (engine.gate, engine.warm_gate):
                if gate is not None:
                    gate.set()
        self.threads.shutdown()
        self.run_threads.shutdown()


@pytest.fixture
async def worker() -> Any:
    made = Worker()
    yield made
    made.close()


async def test_what_was_loaded_has_proved_itself_by_its_warm_up(worker: Worker) -> None:
    worker.heartbeat.announce()
    assert worker.proved == {"1": "", "2": "", "3": ""}
    assert [engine.beats for engine in worker.engines.values()] == [0, 0, 0]


async def test_idle_versions_run_zeros_once_a_period(worker: Worker) -> None:
    worker.heartbeat.tick()
    for rounds in (1, 2, 3):
        worker.proved.clear()
        await worker.a_round()
        assert worker.proved == {"1": "", "2": "", "3": ""}
        assert [engine.beats for engine in worker.engines.values()] == [rounds] * 3
    assert worker.failed == {}


async def test_a_tick_without_news_is_told_too(worker: Worker) -> None:
    worker.heartbeat.tick()
    told = worker.told
    worker.heartbeat.tick()
    assert worker.told == told + 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [(EngineError("the model failed: no memory"), "no memory"), (RuntimeError("a secret"), "RuntimeError")],
)
async def test_an_engine_that_raises_fails_alone_and_until_it_answers(
    worker: Worker, error: Exception, reason: str
) -> None:
    worker.heartbeat.tick()
    worker.engines["3"].error = error
    await worker.a_round()
    assert list(worker.failed) == ["3"] and worker.failed["3"].endswith(reason)
    assert "a secret" not in worker.failed["3"]
    assert worker.proved == {"1": "", "2": ""}
    worker.engines["3"].error = None
    await worker.a_round()
    assert (worker.failed, worker.proved) == ({}, {"1": "", "2": "", "3": ""})


async def test_zeros_that_were_never_legal_prove_that_it_runs_and_no_more(worker: Worker) -> None:
    worker.load("3", refuses_zeros=ZEROS)
    worker.swap()
    worker.engines["3"].error = EngineError(ZEROS)
    worker.heartbeat.tick()
    await worker.a_round()
    assert (worker.failed, worker.proved) == ({}, {"1": "", "2": "", "3": ZEROS})
    # But what is no word of the model's about its input is the engine's fault.
    worker.engines["3"].error = MemoryError()
    await worker.a_round()
    assert list(worker.failed) == ["3"]


async def test_a_request_proves_more_than_zeros(worker: Worker) -> None:
    worker.load("3", refuses_zeros=ZEROS)
    worker.swap()
    worker.engines["3"].error = EngineError(ZEROS)
    worker.heartbeat.tick()
    assert worker.proved["3"] == ZEROS
    worker.clock.now_s = worker.clock.now_s + PERIOD_S
    await worker.ask("3")
    worker.batcher("3").answered_ns = worker.clock()  # the batcher's clock is the system's
    await worker.until(lambda: worker.proved["3"] == "")
    assert worker.engines["3"].beats == 0


async def test_a_request_that_failed_proves_nothing(worker: Worker) -> None:
    worker.engines["1"].fail = lambda _: (_ for _ in ()).throw(EngineError("broken"))
    await worker.ask("1")
    assert worker.batcher("1").answered_ns == 0
    worker.engines["1"].fail = lambda _: None
    await worker.ask("1")
    assert worker.batcher("1").answered_ns > 0


async def test_an_engine_that_hangs_fails_alone_and_until_it_answers(worker: Worker) -> None:
    worker.heartbeat.tick()
    hanging = worker.engines["2"]
    hanging.warm_gate = threading.Event()
    await worker.until(lambda: "2" in worker.failed, by_s=0.5)
    assert "has not ended for" in worker.failed["2"]
    assert hanging.beats == 1
    beats = worker.engines["1"].beats
    await worker.until(lambda: worker.engines["1"].beats > beats + 2, by_s=0.5)
    # The others go on, and the one that hangs is not run again beside itself.
    assert (list(worker.failed), set(worker.proved), hanging.beats) == (["2"], {"1", "3"}, 1)
    hanging.warm_gate.set()
    await worker.until(lambda: not worker.failed, by_s=0.1)
    assert set(worker.proved) == {"1", "2", "3"}


async def test_a_request_that_hangs_fails_its_version_although_zeros_are_answered(worker: Worker) -> None:
    worker.heartbeat.tick()
    worker.engines["1"].gate = threading.Event()
    answer = worker.ask("1")
    await asyncio.to_thread(worker.engines["1"].entered.wait, SOON_S)
    # What was expected of it was a microsecond; the batcher's own clock is the system's.
    worker.clock.now_s = worker.batcher("1")._began_ns / 1e9 + OVERDUE_S - 0.1
    worker.heartbeat.tick()
    assert worker.failed == {}
    worker.clock.now_s += 0.2
    worker.heartbeat.tick()
    assert list(worker.failed) == ["1"] and "a run of requests" in worker.failed["1"]
    worker.engines["1"].gate.set()
    await answer
    await worker.until(lambda: not worker.failed, by_s=1.0)


async def test_threads_that_are_all_held_up_fail_everybody(worker: Worker) -> None:
    held = threading.Event()
    lane = worker.run_threads.lane(10**9)
    for _ in range(3):
        lane.submit(held.wait, 20)
    worker.heartbeat.tick()
    worker.clock.now_s += 2 * OVERDUE_S + 0.1
    worker.heartbeat.tick()
    assert set(worker.failed) == {"1", "2", "3"}
    held.set()
    await worker.until(lambda: not worker.failed, by_s=1.0)


async def test_a_busy_version_is_left_in_peace_for_a_period_at_most(worker: Worker) -> None:
    worker.heartbeat.tick()
    worker.engines["1"].gate = threading.Event()
    answer = worker.ask("1")
    await asyncio.to_thread(worker.engines["1"].entered.wait, SOON_S)
    worker.clock.now_s += PERIOD_S
    await worker.until(lambda: worker.engines["2"].beats == worker.engines["3"].beats == 1)
    assert worker.engines["1"].beats == 0
    worker.clock.now_s += PERIOD_S + 0.1
    await worker.until(lambda: worker.engines["1"].beats == 1)
    worker.engines["1"].gate.set()
    await answer


async def test_heartbeats_have_a_share_of_the_time_and_no_more() -> None:
    """Three versions of 200 ms each would take 12 % of a worker, at one run a period."""
    worker = Worker(warm_ns=200_000_000)
    try:
        worker.heartbeat.tick()
        round_s = 3 * 0.2 / SHARE
        assert worker.good_for_s == pytest.approx(GOOD_PERIODS * round_s)
        started_s = worker.clock.now_s
        ended = worker.heartbeat._ended
        # They take no time here; what they are said to take is what counts.
        worker.heartbeat._ended = lambda pulse, error, _: ended(pulse, error, 200_000_000)  # type: ignore[method-assign]
        await worker.until(lambda: sum(engine.beats for engine in worker.engines.values()) >= 30, by_s=1.0)
        took_s = worker.clock.now_s - started_s
        assert 30 * 0.2 / took_s == pytest.approx(SHARE, rel=0.2)
        assert min(engine.beats for engine in worker.engines.values()) >= 9
    finally:
        worker.close()


async def test_a_version_that_goes_is_forgotten_and_one_that_comes_back_is_new(worker: Worker) -> None:
    worker.heartbeat.tick()
    worker.live.swap(in_force(route({"stable 1": 100})))
    worker.live.retire_unneeded()
    worker.proved.clear()
    await worker.until(lambda: worker.engines["1"].beats == 1, by_s=1.0)
    assert [worker.engines[version].beats for version in "23"] == [0, 0]
    worker.load("2")
    worker.live.swap(in_force(route({"stable 1": 90, "canary 2": 10})))
    worker.heartbeat.announce()
    assert "2" in worker.proved and "3" not in worker.proved


async def test_what_came_last_counts(worker: Worker) -> None:
    worker.heartbeat.announce()
    worker.proved.clear()
    first, second, _ = worker.heartbeat._pulses.values()
    worker.heartbeat._fail(first, "broken")
    worker.heartbeat._succeeded(first, "")
    worker.heartbeat._succeeded(second, "")
    worker.heartbeat._fail(second, "broken")
    worker.heartbeat.announce()
    assert (len(worker.proved), len(worker.failed)) == (1, 1)


def test_the_same_version_in_two_ways_is_two() -> None:
    digest = pin("1").digest
    assert version_token(digest, EngineOptions()) == version_token(digest, EngineOptions(threads=1))
    assert version_token(digest, EngineOptions()) != version_token(digest, EngineOptions(threads=2))
