"""The calls of one worker's gRPC server: what is counted, cancelled, bounded and drained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from gateway.routing.state import Revision
from gateway.serving.tensors import InferenceError
from gateway.wire.grpc import calls, infer_calls
from gateway.wire.grpc import inference_pb2 as pb
from gateway.wire.grpc.status import CODES, code_of
from tests.states import in_force, route
from tests.wire.grpc_desk import SERVICE, SOON_S, GrpcDesk, digits, grpc_desk, refused

STABLE = ("digits", "stable", "1")
ORIGIN = {
    "turnout-revision": "1.1",
    "turnout-version": "1",
    "turnout-variant": "stable",
    "turnout-digest": "1" * 64,
}


@pytest.fixture
async def desk(caplog: pytest.LogCaptureFixture) -> AsyncIterator[GrpcDesk]:
    async with grpc_desk() as made:
        yield made
    # Whatever a client did: a log that it can fill is a disk that it can fill.
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def of(metadata: Any) -> dict[str, str]:
    """What metadata says that is ours."""
    return {name: value for name, value in dict(metadata).items() if name.startswith("turnout-")}


def sums(response: pb.ModelInferResponse) -> float:
    (total,) = response.outputs[0].contents.fp32_contents
    return float(total)


async def test_an_answer_says_which_version_it_is(desk: GrpcDesk) -> None:
    call = desk.infer()(digits(1, 2, 3, id="seven"))
    answer = await call
    assert (answer.model_name, answer.model_version, answer.id) == ("digits", "1", "seven")
    assert sums(answer) == 6.0
    assert of(await call.initial_metadata()) == ORIGIN
    assert await desk.counted(*STABLE) == {200: 1}


async def test_an_error_says_which_version_it_was(desk: GrpcDesk) -> None:
    def fail(_: Any) -> None:
        raise InferenceError(500, "the engine failed")

    desk.engine.fail = fail
    code, text, trailing = await refused(desk.infer()(digits(1)))
    assert (code, of(trailing)) == (grpc.StatusCode.INTERNAL, ORIGIN)
    assert await desk.counted(*STABLE) == {500: 1}
    assert text


async def test_an_answer_is_leased_until_it_is_handed_over(desk: GrpcDesk) -> None:
    desk.hold()
    call = desk.infer()(digits(1))
    await desk.running()
    assert desk.arm.busy
    idle = asyncio.Event()
    desk.arm.when_idle(idle.set)
    desk.release()
    await call
    async with asyncio.timeout(SOON_S):
        await idle.wait()


async def test_a_client_that_goes_is_counted_and_its_request_is_cancelled(desk: GrpcDesk) -> None:
    desk.hold()
    first = desk.infer()(digits(1))
    await desk.running()
    others = [desk.infer()(digits(2)) for _ in range(3)]
    await desk.in_flight(4)
    for call in (first, *others):
        call.cancel()
    async with asyncio.timeout(SOON_S):
        while (await desk.counted(*STABLE)) != {499: 4}:
            await asyncio.sleep(0.005)
    desk.release()
    assert sums(await desk.infer()(digits(7))) == 7.0
    # The one that was running ran to its end, those behind it never began.
    assert len(desk.engine.runs) == 2


async def test_the_deadline_of_a_call_bounds_its_request(desk: GrpcDesk) -> None:
    desk.hold()
    code, _, _ = await refused(desk.infer()(digits(1), timeout=0.1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await desk.counted(*STABLE) == {504: 1}


@pytest.mark.parametrize(("deadline_s", "timeout_us"), [(30.0, 1), (30.0, 0), (None, 1)])
async def test_the_smaller_of_deadline_and_timeout_wins(
    desk: GrpcDesk, deadline_s: float | None, timeout_us: int
) -> None:
    code, text, _ = await refused(desk.infer()(digits(1, timeout=timeout_us), timeout=deadline_s))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "the request's deadline has passed" in text
    assert desk.engine.runs == []


async def test_the_deadline_beats_a_longer_timeout(desk: GrpcDesk) -> None:
    desk.hold()
    code, _, _ = await refused(desk.infer()(digits(1, timeout=30_000_000), timeout=0.1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_message_that_does_not_come_ends_its_call(
    desk: GrpcDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MESSAGE_S", 0.05)
    silent = desk.channel.stream_unary(SERVICE + "ModelInfer")
    code, text, _ = await refused(silent(timeout=SOON_S))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert text == "the request's message was not whole within 0.05 s"


async def test_a_call_without_a_message(desk: GrpcDesk) -> None:
    call = desk.channel.stream_unary(SERVICE + "ModelInfer")(timeout=SOON_S)
    await call.done_writing()
    assert (await refused(call))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")


async def test_what_went_wrong_inside_stays_inside(desk: GrpcDesk, caplog: pytest.LogCaptureFixture) -> None:
    desk.trouble = RuntimeError("secret")
    code, text, _ = await refused(desk.bytes_call("ModelStatistics")(b""))
    assert (code, text) == (
        grpc.StatusCode.INTERNAL,
        "the call failed: RuntimeError, see the gateway's log",
    )
    assert "secret" in caplog.text
    caplog.clear()


async def test_a_client_that_goes_while_it_is_answered_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """As gRPC's core says it when a deadline passes between the engine's answer and the client's."""

    async def gone(_: Any, __: Any) -> bytes:
        raise aio.InternalError("Failed execute_batch")

    with pytest.raises(asyncio.CancelledError):
        await calls.guarded(gone, lambda: "1.1")(None, None)
    assert not caplog.records


async def test_when_to_come_back_is_in_the_metadata(desk: GrpcDesk) -> None:
    code, text, trailing = await refused(desk.bytes_call("ModelStatistics")(b""))
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "the supervisor is away")
    assert trailing["retry-after"] == "7"


async def test_a_long_error_is_cut(desk: GrpcDesk) -> None:
    request = digits(1)
    request.inputs[0].name = "x" * 50_000
    code, text, _ = await refused(desk.infer()(request))
    assert (code, len(text)) == (grpc.StatusCode.INVALID_ARGUMENT, 1024)


def test_every_status_has_a_code() -> None:
    assert {code_of(status) for status in CODES} == set(CODES.values())
    assert code_of(500) is code_of(599) is grpc.StatusCode.INTERNAL


async def ask(stream: Any, *requests_: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    for request in requests_:
        await stream.write(request)
    await stream.done_writing()
    return [answer async for answer in stream]


async def test_a_stream_answers_in_order_and_goes_on_behind_an_error(desk: GrpcDesk) -> None:
    wrong = digits(1, id="wrong")
    wrong.inputs[0].name = "y"
    nobody = digits(1, id="nobody")
    nobody.model_name = "nobody"
    stream = desk.stream()()
    answers = await ask(stream, digits(1, id="a"), wrong, nobody, digits(1, 1, id="b"))
    assert [answer.infer_response.id for answer in answers] == ["a", "wrong", "nobody", "b"]
    first, second, third, last = answers
    assert (sums(first.infer_response), sums(last.infer_response)) == (1.0, 2.0)
    assert "unexpected inference input 'y'" in second.error_message
    assert third.error_message == "Request for unknown model: 'nobody' is not found"
    told = {name: value.string_param for name, value in last.infer_response.parameters.items()}
    assert {name: told[name] for name in ORIGIN} == ORIGIN
    assert last.infer_response.parameters["triton_final_response"].bool_param
    assert await stream.code() is grpc.StatusCode.OK
    assert await desk.counted(*STABLE) == {200: 2, 400: 1}


async def test_a_stream_reads_no_further_than_its_bound(
    desk: GrpcDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_calls, "STREAM_IN_FLIGHT", 2)
    desk.hold()
    stream = desk.stream()()
    for _ in range(5):
        await stream.write(digits(1))
    await desk.running()
    await desk.in_flight(2)
    # A later call on the same connection is behind all of them, and so is its answer.
    assert await desk.bytes_call("ServerLive")(b"")
    assert desk.arm._in_flight == 2
    desk.release()
    assert len(await ask(stream)) == 5


async def test_a_stream_whose_client_goes_leaves_nothing_behind(desk: GrpcDesk) -> None:
    desk.hold()
    stream = desk.stream()()
    for _ in range(4):
        await stream.write(digits(1))
    await desk.in_flight(4)
    stream.cancel()
    async with asyncio.timeout(SOON_S):
        while (await desk.counted(*STABLE)).get(499, 0) < 4:
            await asyncio.sleep(0.005)
    assert not desk.arm.busy
    desk.release()


async def test_a_stream_of_damaged_messages_is_answered(desk: GrpcDesk) -> None:
    stream = desk.channel.stream_stream(SERVICE + "ModelStreamInfer")()
    await stream.write(b"\xff\xff")
    await stream.done_writing()
    (answer,) = [pb.ModelStreamInferResponse.FromString(each) async for each in stream]
    assert answer.error_message == "the request is no valid ModelInferRequest"


async def test_a_drain_answers_what_is_in_flight_and_ends_what_is_open(desk: GrpcDesk) -> None:
    desk.hold()
    idle, busy = desk.stream()(), desk.stream()()
    await idle.write(digits(1))
    await desk.running()
    await busy.write(digits(2))
    one = desk.infer()(digits(3))
    await desk.in_flight(3)
    watching = health(desk, "Watch")(HealthCheckRequest(), timeout=SOON_S)
    assert (await watching.read()).status == HealthCheckResponse.SERVING
    desk.readiness.drain()
    assert (await watching.read()).status == HealthCheckResponse.NOT_SERVING
    stopping = asyncio.ensure_future(desk.server.stop())
    code, _, trailing = await refused(watching.read())
    assert (code, trailing["turnout-revision"]) == (grpc.StatusCode.UNAVAILABLE, "1.1")
    assert not stopping.done()
    desk.release()
    assert sums(await one) == 3.0
    for stream, total in ((idle, 1.0), (busy, 2.0)):
        assert sums((await stream.read()).infer_response) == total
        code, text, _ = await refused(stream.read())
        assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "this worker is going away: try again")
    async with asyncio.timeout(SOON_S):
        await stopping
    assert (await refused(desk.infer()(digits(1))))[0] is grpc.StatusCode.UNAVAILABLE


def health(desk: GrpcDesk, method: str) -> Any:
    make = desk.channel.unary_unary if method == "Check" else desk.channel.unary_stream
    return make(
        f"/grpc.health.v1.Health/{method}",
        HealthCheckRequest.SerializeToString,
        HealthCheckResponse.FromString,
    )


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "grpc.health.v1.Health"])
async def test_health(desk: GrpcDesk, service: str) -> None:
    asked = HealthCheckRequest(service=service)
    assert (await health(desk, "Check")(asked)).status == HealthCheckResponse.SERVING
    desk.readiness.drain()
    assert (await health(desk, "Check")(asked)).status == HealthCheckResponse.NOT_SERVING
    assert not pb.ServerReadyResponse.FromString(await desk.bytes_call("ServerReady")(b"")).ready
    assert pb.ServerLiveResponse.FromString(await desk.bytes_call("ServerLive")(b"")).live


async def test_health_of_what_is_not_there(desk: GrpcDesk) -> None:
    nothing = HealthCheckRequest(service="nothing")
    code, text, _ = await refused(health(desk, "Check")(nothing))
    assert (code, text) == (grpc.StatusCode.NOT_FOUND, "there is no service 'nothing' here")
    watching = health(desk, "Watch")(nothing)
    assert (await watching.read()).status == HealthCheckResponse.SERVICE_UNKNOWN


async def test_a_worker_without_a_state_is_not_serving_until_it_has_one() -> None:
    async with grpc_desk() as desk:
        desk.live.swap(in_force(revision=Revision(1, 0)))
        watching = health(desk, "Watch")(HealthCheckRequest(), timeout=SOON_S)
        assert (await watching.read()).status == HealthCheckResponse.NOT_SERVING
        desk.live.swap(in_force(route({"stable 1": 100})))
        desk.readiness.announce()
        assert (await watching.read()).status == HealthCheckResponse.SERVING


async def test_the_limit_of_a_message_is_the_bodys() -> None:
    from gateway.wire.oip_json import Limits

    async with grpc_desk(limits=Limits(body_bytes=1000)) as desk:
        assert sums(await desk.infer()(digits(*[1] * 200))) == 200.0
        code, text, _ = await refused(desk.infer()(digits(*[1] * 300)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in text and "1000" in text


async def test_metadata_has_a_limit(desk: GrpcDesk) -> None:
    code, _, _ = await refused(desk.infer()(digits(1), metadata=(("turnout-key", "x" * 20_000),)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sums(await desk.infer()(digits(1))) == 1.0


async def test_metadata_chooses_as_headers_do() -> None:
    split = route({"stable 1": 100, "spare 1": 0}, overrides=True)
    async with grpc_desk(split) as desk:
        call = desk.infer()(digits(1), metadata=(("turnout-variant", "spare"),))
        await call
        assert of(await call.initial_metadata())["turnout-variant"] == "spare"
        code, text, _ = await refused(desk.infer()(digits(1), metadata=(("turnout-variant", "nope"),)))
        assert (code, text) == (
            grpc.StatusCode.NOT_FOUND,
            "route 'digits' has no variant 'nope' (it has: stable, spare)",
        )
        # Binary metadata is bytes; of several values the last counts, as with headers.
        several = (("turnout-variant", "nope"), ("turnout-variant", "spare"), ("other-bin", b"\xff"))
        call = desk.infer()(digits(1), metadata=several)
        await call
        assert of(await call.initial_metadata())["turnout-variant"] == "spare"
