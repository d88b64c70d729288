from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest

from gateway.routing.state import Route
from gateway.serving.engine import Array, Signature
from gateway.serving.explicit import ExplicitVersions, Located
from gateway.serving.exposure import Quotas
from gateway.serving.inference import Answer, Inference
from gateway.serving.live import EngineKey, Live, LoadedVersion
from gateway.serving.loading import Loader
from gateway.serving.tensors import InferenceError, InferRequest, InputTensor, RequestedOutput
from gateway.telemetry.observations import UNKNOWN
from tests.serving.fake_engine import ALWAYS_IN_THREADS, ROWS, FakeEngine, batcher, load, observing, requests
from tests.states import in_force, pin, route

SPLIT = route({"stable 1": 90, "canary 2": 10})
ZERO = route({"stable 1": 0, "canary 2": 0}, overrides=True)
SOON_S = 10.0
DRAW_STABLE, DRAW_CANARY = 0.0, 0.95


class Desk:
    """The data plane of one worker, with fake engines; `adds` of version N is N hundred."""

    def __init__(
        self,
        *routes: Route,
        versions: str = "12",
        threads: Any = None,
        signature: Signature = ROWS,
        quotas: Quotas | None = None,
        **options: Any,
    ) -> None:
        self.writer = observing()
        self.live = Live(self.writer, quotas)
        self.loop = asyncio.get_running_loop()
        self.engines = {version: FakeEngine(signature, adds=100.0 * int(version)) for version in versions}
        for version, engine in self.engines.items():
            load(self.live, version, engine, batcher(engine, self.loop, threads, **options))
        self.live.swap(in_force(*(routes or (SPLIT,))))
        self.hold = asyncio.Event()
        self.hold.set()
        self.loading = asyncio.Event()
        self.trouble: BaseException | None = None
        explicit = ExplicitVersions(self.live, cast(Loader, self), self.locate)
        self.draws = DRAW_STABLE
        self.inference = Inference(self.live, explicit, lambda: self.draws)
        self.done: list[Answer] = []

    async def locate(self, _: str, version: str) -> Located:
        return Located(pin(version), version)

    async def load(self, key: EngineKey, path: str) -> LoadedVersion:
        self.loading.set()
        await self.hold.wait()
        if self.trouble is not None:
            raise self.trouble
        engine = self.engines[path] = FakeEngine(adds=100.0 * int(path))
        return LoadedVersion(key, engine, batcher(engine, self.loop), lambda closing: closing.close())

    def start(
        self,
        value: float = 1.0,
        *,
        name: str = "digits",
        version: str | None = None,
        headers: Mapping[bytes, bytes] | None = None,
        **fields: Any,
    ) -> tuple[Answer, asyncio.Event]:
        array = np.array([[value]], np.float32)
        inputs = [InputTensor(name="x", datatype="FP32", array=array)]
        request = InferRequest(**{"inputs": inputs, **fields})
        arrived = asyncio.Event()

        def done(answer: Answer) -> None:
            self.done.append(answer)
            arrived.set()

        header = (headers or {}).get
        answer = self.inference.start(name, version, request, header, done, time.perf_counter_ns())
        return answer, arrived

    async def ask(self, *args: Any, **options: Any) -> Answer:
        """The answer, finished as the wire would."""
        answer, arrived = self.start(*args, **options)
        await asyncio.wait_for(arrived.wait(), SOON_S)
        version = answer.served.pin.version if answer.served is not None else ""
        assert answer.response is None or answer.response.version == version
        answer.finish(answer.error.status if answer.error is not None else 200)
        return answer

    def counted(self, *labels: str) -> dict[int, int]:
        return requests(self.writer, *labels)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def value(answer: Answer, index: int = 0) -> float:
    assert answer.response is not None, answer.error
    return float(answer.response.outputs[index].array.ravel()[0])


def failure(answer: Answer) -> tuple[int, str]:
    assert answer.error is not None and answer.response is None
    return answer.error.status, str(answer.error)


class TestChoosing:
    async def test_without_a_key_the_draw_decides(self) -> None:
        desk = Desk()
        assert value(await desk.ask()) == 101
        desk.draws = DRAW_CANARY
        assert value(await desk.ask()) == 201
        assert (desk.counted("digits", "stable", "1"), desk.counted("digits", "canary", "2")) == (
            {200: 1},
            {200: 1},
        )

    async def test_a_header_sticks(self) -> None:
        # As the golden vectors of tests/routing/test_table.py: user-0 is the canary's, user-1 is not.
        desk = Desk(versions="12")
        desk.draws = DRAW_STABLE
        for _ in range(3):
            assert value(await desk.ask(headers={b"turnout-key": b"user-0"})) == 201
            assert value(await desk.ask(headers={b"turnout-key": b"user-1"})) == 101

    @pytest.mark.parametrize(("key", "expected"), [("user-0", 201), ("user-1", 101), (None, 101)])
    async def test_a_parameter_sticks(self, key: str | None, expected: float) -> None:
        desk = Desk(route({"stable 1": 90, "canary 2": 10}, sticky="parameter:User_id"))
        parameters = {} if key is None else {"User_id": key}
        assert value(await desk.ask(parameters=parameters, headers={b"turnout-key": b"user-0"})) == expected

    async def test_the_name_of_a_header_has_no_case(self) -> None:
        desk = Desk(route({"stable 1": 90, "canary 2": 10}, sticky="header:X-User"))
        assert value(await desk.ask(headers={b"x-user": b"user-0"})) == 201

    async def test_nothing_sticks(self) -> None:
        desk = Desk(route({"stable 1": 90, "canary 2": 10}, sticky="none"))
        assert value(await desk.ask(headers={b"turnout-key": b"user-0"})) == 101

    async def test_overrides(self) -> None:
        desk = Desk(ZERO)
        assert value(await desk.ask(headers={b"turnout-variant": b"canary"})) == 201
        status, text = failure(await desk.ask(headers={b"turnout-variant": b"nobody"}))
        assert (status, "it has: stable, canary" in text) == (404, True)
        refused = await Desk(SPLIT).ask(headers={b"turnout-variant": b"canary"})
        assert failure(refused)[0] == 403

    async def test_all_weights_zero(self) -> None:
        desk = Desk(ZERO)
        answer = await desk.ask()
        assert failure(answer) == (503, "route 'digits' takes no traffic: all its weights are 0")
        assert answer.error is not None and answer.error.retry_after_s is not None
        assert desk.counted("digits", "", "") == {503: 1}

    async def test_an_unknown_route_is_one_series(self) -> None:
        desk = Desk()
        for name in ("nobody", "no" * 1000):
            assert failure(await desk.ask(name=name))[0] == 404
        assert desk.counted(UNKNOWN, "", "") == {404: 2}

    async def test_a_version_that_is_not_loaded(self) -> None:
        desk = Desk(versions="1")
        desk.draws = DRAW_CANARY
        answer = await desk.ask()
        assert value(answer) == 101, "the fallback answers for it"
        assert failure(await Desk(versions="2").ask())[0] == 503


class TestOneRevision:
    async def test_a_request_sees_one_revision_whatever_happens_while_it_runs(
        self, threads: ThreadPoolExecutor
    ) -> None:
        desk = Desk(threads=threads, loop_budget_ns=ALWAYS_IN_THREADS)
        gate = desk.engines["2"].gate = threading.Event()
        desk.draws = DRAW_CANARY
        answer, arrived = desk.start()
        await asyncio.to_thread(desk.engines["2"].entered.wait, SOON_S)
        (leaving,) = desk.live.swap(in_force(SPLIT, denied=["2"]))
        desk.live.retire_unneeded()
        idle = asyncio.Event()
        leaving.when_idle(idle.set)
        # The next one is the fallback's already, while the old one is still computed.
        assert value(await desk.ask()) == 101
        assert desk.engines["2"].closed == 0 and not idle.is_set()
        gate.set()
        await asyncio.wait_for(arrived.wait(), SOON_S)
        assert value(answer) == 201
        assert answer.revision == "1.1"
        assert not idle.is_set(), "the client does not have the bytes yet"
        answer.finish(200)
        assert idle.is_set() and desk.engines["2"].closed == 1

    async def test_finish_gives_the_lease_back_once(self) -> None:
        desk = Desk()
        answer, arrived = desk.start()
        served = answer.served
        assert served is not None and served.busy
        await asyncio.wait_for(arrived.wait(), SOON_S)
        answer.finish(200)
        assert not served.busy and answer.served is None

    async def test_done_is_called_once(self) -> None:
        desk = Desk()
        await desk.ask()
        await desk.ask(name="nobody")
        assert len(desk.done) == 2


class TestErrors:
    async def test_a_request_that_does_not_fit_the_model(self) -> None:
        desk = Desk()
        wrong = [InputTensor(name="y", datatype="FP32", array=np.zeros((1, 1), np.float32))]
        assert failure(await desk.ask(inputs=wrong))[0] == 400
        assert desk.counted("digits", "stable", "1") == {400: 1}
        stable = desk.live.snapshot.routes["digits"].arms["stable"]
        assert not stable.busy

    async def test_a_model_that_fails(self) -> None:
        def fail(_: Mapping[str, Array]) -> None:
            raise RuntimeError("inside")

        desk = Desk()
        desk.engines["1"].fail = fail
        assert failure(await desk.ask()) == (500, "the model failed: RuntimeError")
        assert desk.counted("digits", "stable", "1") == {500: 1}

    async def test_a_model_that_returns_too_little_fails_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Miserly(FakeEngine):
            def run(self, inputs: Mapping[str, Array], outputs: Any) -> list[Array]:
                return super().run(inputs, outputs)[1:]

        desk = Desk()
        engine = Miserly()
        load(desk.live, "1", engine, batcher(engine, desk.loop))
        desk.live.swap(in_force(SPLIT))
        one, other = await asyncio.gather(desk.ask(), desk.ask())
        assert {failure(answer)[0] for answer in (one, other)} == {500}
        assert "cannot be used" in caplog.text

    async def test_a_full_queue(self) -> None:
        desk = Desk(versions="2")
        engine = FakeEngine()
        load(desk.live, "1", engine, batcher(engine, desk.loop, max_queue=1))
        desk.live.swap(in_force(SPLIT))
        first, arrived = desk.start()
        answer = await desk.ask()
        assert failure(answer)[0] == 503
        assert answer.error is not None and answer.error.retry_after_s == 1
        await asyncio.wait_for(arrived.wait(), SOON_S)
        first.finish(200)
        assert desk.counted("digits", "stable", "1") == {200: 1, 503: 1}
        assert not desk.live.snapshot.routes["digits"].arms["stable"].busy

    async def test_a_deadline_of_its_own_or_the_routes(self) -> None:
        desk = Desk()
        assert failure(await desk.ask(timeout_us=0))[0] == 504
        assert value(await desk.ask(timeout_us=10**400)) == 101
        patient = Desk(route({"stable 1": 100}, timeout_ms=1))
        patient.engines["1"].fail = lambda _: None
        assert value(await patient.ask(timeout_us=60_000_000)) == 101

    async def test_a_hanging_model_is_504_at_the_routes_deadline(self, threads: ThreadPoolExecutor) -> None:
        desk = Desk(
            route({"stable 1": 100}, timeout_ms=30), threads=threads, loop_budget_ns=ALWAYS_IN_THREADS
        )
        gate = desk.engines["1"].gate = threading.Event()
        assert failure(await desk.ask())[0] == 504
        gate.set()

    async def test_a_request_that_could_not_be_decoded_is_counted(self) -> None:
        desk = Desk()
        for name, labels in (("digits", ("digits", "", "")), ("nobody", (UNKNOWN, "", ""))):
            error = InferenceError(400, "no JSON")
            answer = desk.inference.refuse(name, error, desk.done.append, time.perf_counter_ns())
            assert desk.done[-1] is answer and answer.error is error
            answer.finish(400)
            assert desk.counted(*labels) == {400: 1}

    async def test_a_client_that_goes_is_499_and_is_not_run(self) -> None:
        desk = Desk()
        answer, arrived = desk.start()
        answer.cancel()
        answer.finish(499)
        assert value(await desk.ask()) == 101
        assert desk.engines["1"].runs == [(1, 1)]
        assert not arrived.is_set()
        assert desk.counted("digits", "stable", "1") == {200: 1, 499: 1}


class TestOutputs:
    async def test_all_or_those_that_are_named_in_their_order(self) -> None:
        desk = Desk()
        answer = await desk.ask(5.0, id="7")
        assert answer.response is not None
        assert [output.name for output in answer.response.outputs] == ["sum", "count"]
        assert (answer.response.id, answer.response.route) == ("7", "digits")
        named = [RequestedOutput(name="count", binary=True), RequestedOutput(name="sum")]
        answer = await desk.ask(5.0, outputs=named)
        assert answer.response is not None
        assert [(output.name, output.datatype, output.binary) for output in answer.response.outputs] == [
            ("count", "INT64", True),
            ("sum", "FP32", False),
        ]
        assert (value(answer, 0), value(answer, 1)) == (1, 105)

    async def test_binary_unless_asked_for_by_name(self) -> None:
        answer = await Desk().ask(binary_default=True)
        assert answer.response is not None
        assert all(output.binary for output in answer.response.outputs)

    async def test_classification(self) -> None:
        answer = await Desk().ask(outputs=[RequestedOutput(name="sum", classification=1)])
        assert answer.response is not None
        assert answer.response.outputs[0].array.ravel().tolist() == [b"101.000000:0"]


class TestExplicitVersions:
    async def test_it_is_loaded_and_run(self) -> None:
        desk = Desk()
        answer = await desk.ask(version="7")
        assert value(answer) == 701
        assert desk.counted("digits", "pinned", "7") == {200: 1}
        assert value(await desk.ask(version="7")) == 701
        assert value(await desk.ask(version="2")) == 201
        assert desk.counted("digits", "pinned", "2") == {200: 1}

    async def test_a_load_past_the_deadline_is_503_and_goes_on(self) -> None:
        desk = Desk()
        desk.hold.clear()
        answer = await desk.ask(version="7", timeout_us=1000)
        assert failure(answer)[0] == 503
        assert answer.error is not None and answer.error.retry_after_s is not None
        second, arrived = desk.start(version="7")
        desk.hold.set()
        await asyncio.wait_for(arrived.wait(), SOON_S)
        assert value(second) == 701
        second.finish(200)

    async def test_a_timeout_beyond_all_clocks(self) -> None:
        assert value(await Desk().ask(version="7", timeout_us=10**400)) == 701

    async def test_a_client_that_goes_while_it_loads_leases_nothing(self) -> None:
        desk = Desk()
        desk.hold.clear()
        gone, arrived = desk.start(version="7")
        await asyncio.wait_for(desk.loading.wait(), SOON_S)
        gone.cancel()
        gone.finish(499)
        patient, patient_arrived = desk.start(version="7")
        desk.hold.set()
        await asyncio.wait_for(patient_arrived.wait(), SOON_S)
        assert patient.served is not None
        patient_served = patient.served
        patient.finish(200)
        assert not patient_served.busy
        assert gone.served is None and not arrived.is_set()
        assert desk.engines["7"].runs == [(1, 1)]

    async def test_a_bug_in_the_load_is_an_answer(self, caplog: pytest.LogCaptureFixture) -> None:
        desk = Desk()
        desk.trouble = OSError("disk")
        status, text = failure(await desk.ask(version="7"))
        assert (status, text) == (500, "the version cannot be loaded: OSError")
        assert "loading version 7" in caplog.text

    async def test_a_load_that_is_cancelled_is_an_answer(self) -> None:
        desk = Desk()
        desk.trouble = asyncio.CancelledError()
        assert failure(await desk.ask(version="7"))[0] == 503


async def test_prepared_tensors_are_made_once_and_mistakes_are_told_by_start() -> None:
    desk = Desk()
    made: list[Signature] = []

    def untyped(signature: Signature) -> list[InputTensor]:
        made.append(signature)
        if len(made) == 2:
            raise InferenceError(400, "no tensor")
        return [InputTensor(name="x", datatype="FP32", array=np.array([[5.0]], np.float32))]

    request = InferRequest(inputs=[], untyped=untyped)
    desk.inference.prepare("nobody", request)
    assert made == []
    await asyncio.to_thread(desk.inference.prepare, "digits", request)
    assert value(await desk.ask(untyped=request.untyped)) == 105.0
    assert len(made) == 1
    wrong = InferRequest(inputs=[], untyped=untyped)
    desk.inference.prepare("digits", wrong)
    made.pop()
    assert failure(await desk.ask(untyped=wrong.untyped)) == (400, "no tensor")
