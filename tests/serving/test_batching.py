from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gateway.serving.batching import LOOP_BUDGET_NS, Batcher, Work
from gateway.serving.engine import Array, EngineError
from gateway.serving.tensors import InferenceError
from gateway.telemetry import observations as obs
from gateway.telemetry.observations import Labels, VersionObservations
from tests.serving.fake_engine import ALWAYS_IN_THREADS, SCALAR, FakeEngine, batcher, observing

SOON_S = 10.0
Outcome = list[Array] | InferenceError


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
async def loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    yield asyncio.get_running_loop()


class Client:
    """Submits requests to one batcher and keeps their answers."""

    def __init__(self, made: Batcher) -> None:
        self.batcher = made
        self.observations = observing().block(Labels("digits", "stable", "1"))
        self.order: list[int] = []

    def ask(
        self,
        *values: float,
        rows: int = 1,
        outputs: tuple[str, ...] = ("sum",),
        timeout_s: float = 60.0,
        observations: VersionObservations | None = None,
    ) -> asyncio.Future[Outcome]:
        """`rows` rows, each of `values`."""
        future, work = self.work(
            *values, rows=rows, outputs=outputs, timeout_s=timeout_s, observations=observations
        )
        self.batcher.submit(work)
        return future

    def work(
        self,
        *values: float,
        rows: int = 1,
        outputs: tuple[str, ...] = ("sum",),
        timeout_s: float = 60.0,
        observations: VersionObservations | None = None,
    ) -> tuple[asyncio.Future[Outcome], Work]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        number = len(self.order)
        self.order.append(number)
        work = Work(
            {"x": np.array([values] * rows, np.float32).reshape(rows, len(values))},
            outputs,
            batchable=self.batcher.batchable,
            deadline_ns=time.perf_counter_ns() + int(timeout_s * 1e9),
            observations=observations or self.observations,
            done=future.set_result,
        )
        return future, work

    @property
    def counts(self) -> obs.Counts:
        return self.observations.read()


async def sums(*answers: asyncio.Future[Outcome]) -> list[list[float]]:
    found = []
    for outcome in await asyncio.wait_for(asyncio.gather(*answers), SOON_S):
        assert not isinstance(outcome, InferenceError), outcome
        found.append([float(value) for value in outcome[0].ravel()])
    return found


async def error_of(answer: asyncio.Future[Outcome]) -> InferenceError:
    outcome = await asyncio.wait_for(answer, SOON_S)
    assert isinstance(outcome, InferenceError)
    return outcome


class TestTicks:
    async def test_all_of_one_tick_is_one_run(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop))
        answers = [client.ask(float(number), 100) for number in range(20)]
        assert not engine.runs, "nothing runs before the tick is over"
        assert await sums(*answers) == [[number + 100.0] for number in range(20)]
        assert engine.runs == [(20, 2)]
        assert engine.threads == [threading.get_ident()]

    async def test_the_next_tick_is_the_next_run(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop))
        await sums(client.ask(1.0))
        await sums(client.ask(2.0), client.ask(3.0))
        assert engine.runs == [(1, 1), (2, 1)]

    async def test_up_to_the_batch_size(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop, max_batch_size=4))
        answers = [client.ask(float(number)) for number in range(10)]
        assert await sums(*answers) == [[float(number)] for number in range(10)]
        assert engine.runs == [(4, 1), (4, 1), (2, 1)]

    async def test_rows_count_and_not_requests(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop, max_batch_size=8))
        answers = [client.ask(float(rows), rows=rows) for rows in (5, 4, 3, 9, 0)]
        assert await sums(*answers) == [[float(rows)] * rows for rows in (5, 4, 3, 9, 0)]
        # 5 and 3 fill a run; 4 would not fit there. 9 is more than a batch: it runs alone.
        assert engine.runs == [(8, 1), (4, 1), (9, 1)]

    async def test_only_rows_that_look_alike_share_a_run(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop))
        answers = [client.ask(1.0), client.ask(1.0, 2.0), client.ask(3.0), client.ask(3.0, 4.0)]
        assert await sums(*answers) == [[1], [3], [3], [7]]
        assert engine.runs == [(2, 1), (2, 2)]

    async def test_only_requests_for_the_same_outputs_share_a_run(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop))
        one, other = client.ask(5.0), client.ask(5.0, outputs=("count", "sum"))
        assert await sums(one) == [[5]]
        both = await asyncio.wait_for(other, SOON_S)
        assert not isinstance(both, InferenceError)
        assert [array.tolist() for array in both] == [[[1]], [[5]]]
        assert engine.runs == [(1, 1), (1, 1)]

    async def test_a_run_is_counted_for_one_variant(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop))
        canary = observing().block(Labels("digits", "canary", "1"))
        await sums(client.ask(1.0), client.ask(2.0, observations=canary), client.ask(3.0))
        assert engine.runs == [(2, 1), (1, 1)]
        assert (client.counts[obs.ROWS], canary.read()[obs.ROWS]) == (2, 1)

    @pytest.mark.parametrize("batching", [False, None, True])
    async def test_what_is_not_batchable_runs_alone(
        self, loop: asyncio.AbstractEventLoop, batching: bool | None
    ) -> None:
        engine = FakeEngine(SCALAR)
        client = Client(batcher(engine, loop, batching=batching))
        assert await sums(client.ask(1.0, rows=2), client.ask(2.0, rows=2)) == [[1, 1], [2, 2]]
        assert engine.runs == [(2, 1), (2, 1)]

    async def test_batching_can_be_switched_off(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop, batching=False))
        await sums(client.ask(1.0), client.ask(2.0))
        assert engine.runs == [(1, 1), (1, 1)]

    async def test_the_observations_of_a_run(self, loop: asyncio.AbstractEventLoop) -> None:
        client = Client(batcher(FakeEngine(), loop))
        await sums(*(client.ask(1.0) for _ in range(3)))
        counts = client.counts
        assert counts[obs.ROWS] == 3
        assert counts[obs.BATCHES + obs.batch_bucket_of(3)] == 1
        assert counts[obs.QUEUE_NS] > 0 and counts[obs.ENGINE_NS] > 0


def poison(inputs: Mapping[str, Array]) -> None:
    if (inputs["x"] == 666).any():
        raise EngineError("a bad number")


class TestFailures:
    async def test_after_a_failure_each_runs_alone_and_only_the_bad_one_fails(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        engine = FakeEngine()
        engine.fail = poison
        client = Client(batcher(engine, loop))
        one, bad, other = client.ask(1.0), client.ask(666.0), client.ask(2.0)
        assert await sums(one, other) == [[1], [2]]
        error = await error_of(bad)
        assert (error.status, str(error)) == (500, "the model failed: a bad number")
        assert engine.runs == [(3, 1), (1, 1), (1, 1), (1, 1)]

    async def test_what_else_an_engine_throws_tells_nothing_of_its_insides(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        def leak(_: Mapping[str, Array]) -> None:
            raise RuntimeError("secret path /srv/models")

        engine = FakeEngine()
        engine.fail = leak
        client = Client(batcher(engine, loop))
        error = await error_of(client.ask(1.0))
        assert (error.status, str(error)) == (500, "the model failed: RuntimeError")

    async def test_an_engines_own_refusal_is_the_clients_answer(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        def refuse(_: Mapping[str, Array]) -> None:
            raise InferenceError(400, "too many rows")

        engine = FakeEngine()
        engine.fail = refuse
        error = await error_of(Client(batcher(engine, loop)).ask(1.0))
        assert (error.status, str(error)) == (400, "too many rows")

    async def test_outputs_without_a_row_for_each_row_are_not_shared_out(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        class Reducing(FakeEngine):
            def run(self, inputs: Mapping[str, Array], outputs: Any) -> list[Array]:
                return [array.sum(axis=0, keepdims=True) for array in super().run(inputs, outputs)]

        engine = Reducing()
        client = Client(batcher(engine, loop))
        assert await sums(client.ask(1.0), client.ask(2.0)) == [[1], [2]]
        assert engine.runs == [(2, 1), (1, 1), (1, 1)]

    async def test_an_answer_that_cannot_be_delivered_keeps_nobody_else_waiting(
        self, loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = Client(batcher(FakeEngine(), loop, max_batch_size=2))
        _, broken = client.work(0.0)

        def burst(_: Outcome) -> None:
            raise ConnectionError("the client's socket is gone")

        broken.done = burst
        client.batcher.submit(broken)
        assert await sums(client.ask(1.0), client.ask(2.0)) == [[1], [2]]
        assert "could not be delivered" in caplog.text


class TestDeadlinesAndQueues:
    async def test_what_has_passed_its_deadline_is_not_run(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop))
        late, intime = client.ask(1.0, timeout_s=-0.001), client.ask(2.0)
        assert (await error_of(late)).status == 504
        assert await sums(intime) == [[2]]
        assert engine.runs == [(1, 1)]

    async def test_a_full_queue_refuses(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop, max_queue=3))
        answers = [client.ask(float(number)) for number in range(3)]
        with pytest.raises(InferenceError, match=r"full \(3 requests\)") as refused:
            client.ask(4.0)
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
        assert await sums(*answers) == [[0], [1], [2]]
        assert await sums(client.ask(5.0)) == [[5]]

    async def test_a_cancelled_request_is_not_run(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop))
        gone, work = client.work(1.0)
        client.batcher.submit(work)
        work.cancel()
        assert await sums(client.ask(2.0)) == [[2]]
        assert engine.runs == [(1, 1)]
        assert not gone.done()

    async def test_a_tick_of_cancelled_requests_runs_nothing(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop))
        for _ in range(3):
            _, work = client.work(1.0)
            client.batcher.submit(work)
            work.cancel()
        over = asyncio.Event()
        loop.call_soon(loop.call_soon, over.set)
        await over.wait()
        assert engine.runs == []
        assert await sums(client.ask(2.0)) == [[2]]


class TestThreads:
    async def test_a_slow_engine_runs_in_a_thread_and_the_loop_goes_on(
        self, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor
    ) -> None:
        engine = FakeEngine()
        engine.gate = threading.Event()
        client = Client(batcher(engine, loop, threads, loop_budget_ns=ALWAYS_IN_THREADS))
        first = client.ask(1.0)
        await asyncio.to_thread(engine.entered.wait, SOON_S)
        # What comes meanwhile waits, and shares the next run.
        meanwhile = [client.ask(2.0), client.ask(3.0)]
        engine.gate.set()
        assert await sums(first, *meanwhile) == [[1], [2], [3]]
        assert engine.runs == [(1, 1), (2, 1)]
        assert threading.get_ident() not in engine.threads

    async def test_what_is_measured_as_slow_moves_to_a_thread(
        self, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor
    ) -> None:
        engine = FakeEngine()
        engine.fail = lambda _: time.sleep(0.02)  # it computes that long
        client = Client(batcher(engine, loop, threads, run_ns=LOOP_BUDGET_NS // 2))
        for value in (1.0, 2.0, 3.0):
            await sums(client.ask(value))
        # One long run may be a disturbance; the second one is believed.
        assert [thread == threading.get_ident() for thread in engine.threads] == [True, True, False]

    async def test_what_is_measured_as_quick_comes_back_to_the_loop(
        self, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor
    ) -> None:
        engine = FakeEngine()
        client = Client(batcher(engine, loop, threads, run_ns=LOOP_BUDGET_NS * 2))
        async with asyncio.timeout(SOON_S):
            while threading.get_ident() not in engine.threads:
                await sums(client.ask(1.0))
        assert engine.threads[0] != threading.get_ident()

    async def test_a_model_that_hangs_keeps_nobody_past_the_deadline(
        self, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor
    ) -> None:
        engine = FakeEngine()
        engine.gate = threading.Event()
        client = Client(batcher(engine, loop, threads, loop_budget_ns=ALWAYS_IN_THREADS, max_queue=2))
        hanging = client.ask(1.0, timeout_s=0.03)
        await asyncio.to_thread(engine.entered.wait, SOON_S)
        waiting = [client.ask(2.0, timeout_s=0.03), client.ask(3.0, timeout_s=0.03)]
        for answer in (hanging, *waiting):
            error = await error_of(answer)
            assert (error.status, "deadline" in str(error)) == (504, True)
        # Those that gave up take no place in the queue.
        patient = [client.ask(4.0), client.ask(5.0)]
        engine.gate.set()
        assert await sums(*patient) == [[4], [5]]
        assert engine.runs == [(1, 1), (2, 1)], "what was given up is not run afterwards"

    async def test_what_runs_is_in_flight_like_what_waits(
        self, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor
    ) -> None:
        engine = FakeEngine()
        engine.gate = threading.Event()
        client = Client(batcher(engine, loop, threads, loop_budget_ns=ALWAYS_IN_THREADS, concurrency=2))
        running = client.ask(1.0)
        await asyncio.to_thread(engine.entered.wait, SOON_S)
        waiting = client.ask(2.0)
        with pytest.raises(InferenceError, match="2 requests in flight, and its limit is 2 now"):
            client.ask(3.0)
        engine.gate.set()
        assert await sums(running, waiting) == [[1], [2]]
        assert await sums(client.ask(4.0), client.ask(5.0)) == [[4], [5]]
        assert client.counts[obs.LIMIT] == 2 and client.counts[obs.REJECTED] == 1

    async def test_one_timer_however_many_runs_follow_each_other(
        self, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor
    ) -> None:
        class Counting:
            """The loop, and how many timers of a batcher are under way on it."""

            pending = most = 0

            def call_soon(self, callback: Any, *args: Any) -> Any:
                return loop.call_soon(callback, *args)

            def call_soon_threadsafe(self, callback: Any, *args: Any) -> Any:
                return loop.call_soon_threadsafe(callback, *args)

            def call_later(self, delay: float, callback: Any) -> Any:
                self.pending += 1
                self.most = max(self.most, self.pending)

                def fire() -> None:
                    self.pending -= 1
                    callback()

                return loop.call_later(delay, fire)

        counting = Counting()
        client = Client(
            batcher(FakeEngine(), counting, threads, loop_budget_ns=ALWAYS_IN_THREADS, max_batch_size=1)
        )
        await sums(*(client.ask(float(number)) for number in range(100)))
        assert counting.most == 1
