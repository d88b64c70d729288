"""Every answer of a real gateway tells by which revision it was routed: of every protocol, errors too.

What is left out is what the gateway never sees: gRPC's core itself ends a call whose message is too large or
whose frames are broken, with no metadata of anybody's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from gateway.wire.app import DataPlane
from gateway.wire.grpc import inference_pb2 as pb
from gateway.wire.infer import InferEndpoint
from gateway.wire.lane import Lane
from gateway.wire.readiness import Readiness
from tests.servers.gateway import Gateway
from tests.servers.grpc_load import SERVICE
from tests.wire.raw_connection import RawConnection
from tests.wire.served import gateway, goes_on_serving, number, tensor

__all__ = ["gateway", "goes_on_serving"]

HEADER = b"turnout-revision: "
GOOD = json.dumps(number()).encode()


@pytest.fixture(scope="module")
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.grpc) as made:
        yield made


@pytest.fixture(params=["as it started", "one change later"], scope="module")
def revision(gateway: Gateway, request: pytest.FixtureRequest) -> str:
    """By which the worker routes; the table is gone through at each."""
    if request.param == "one change later":
        gateway.api("PATCH", "/routes/idle/weights", json={"weights": {"stable": 100}}).raise_for_status()
        gateway.api("PATCH", "/routes/idle/weights", json={"weights": {"stable": 0}}).raise_for_status()
    told = str(httpx.get(f"{gateway.admin}/readyz", timeout=10).json()["revision"])
    assert told == {"as it started": "1.1", "one change later": "1.3"}[request.param]
    return told


def post(path: str, body: bytes = GOOD, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: gateway", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()


def infer(route: str, body: bytes = GOOD, *lines: str) -> bytes:
    return post(f"/v2/models/{route}/infer", body, *lines)


def rows(name: str = "instances") -> bytes:
    return json.dumps({name: [[0.0] * 4]}).encode()


LARGE = json.dumps(number(shape=(20_000, 4), data=[0.0] * 80_000)).encode()
SLOW = json.dumps({**number(), "parameters": {"timeout": 50_000}}).encode()
TOO_MANY = "\r\n".join(f"x-{count}: 1" for count in range(300))

HTTP = [
    # Predictions, by every way.
    ("plain", 200, infer("number")),
    ("by ASGI", 200, infer("number?asgi=1", GOOD).replace(b"number?asgi=1/infer", b"number/infer?asgi=1")),
    ("explicit version", 200, post("/v2/models/number/versions/1/infer")),
    ("decoded in a thread", 200, infer("number", LARGE)),
    ("compressed", 200, infer("number", LARGE, "Accept-Encoding: gzip")),
    ("binary", 200, infer("number", json.dumps({**number(), "parameters": {"binary_data_output": True}}).encode())),
    # What a prediction may fail at.
    ("no JSON", 400, infer("number", b"{")),
    ("wrong input", 400, infer("number", json.dumps({"inputs": [tensor("x")]}).encode())),
    ("unknown route", 404, infer("nobody")),
    ("unknown version", 404, post("/v2/models/number/versions/99/infer")),
    ("unknown variant", 404, infer("number", GOOD, "turnout-variant: nope")),
    ("override forbidden", 403, infer("sum", GOOD, "turnout-variant: stable")),
    ("no traffic", 503, infer("idle")),
    ("deadline", 504, infer("slow", SLOW)),
    ("deadline by ASGI", 504, infer("slow", SLOW).replace(b"/infer", b"/infer?asgi=1")),
    ("bad encoding", 400, infer("number", GOOD, "Content-Encoding: gzip")),
    ("no such encoding", 415, infer("number", GOOD, "Content-Encoding: br")),
    ("body too large", 413, infer("number", b" " * (1024 * 1024 + 1))),
    ("no JSON for this number", 400, infer("log", json.dumps(number(data=[-1.0] * 4)).encode())),
    ("another method", 405, get("/v2/models/number/infer")),
    ("no name", 400, post("/v2/models/-/infer")),
    ("percent", 400, post("/v2/models/number/infer%20")),
    # The rest of the Open Inference Protocol.
    *(
        (path, status, get(path))
        for path, status in {
            "/v2": 200,
            "/v2/health/live": 200,
            "/v2/health/ready": 200,
            "/v2/models": 200,
            "/v2/models/stats": 200,
            "/v2/models/number": 200,
            "/v2/models/number/versions/1": 200,
            "/v2/models/number/ready": 200,
            "/v2/models/number/config": 200,
            "/v2/models/number/stats": 200,
            "/v2/models/nobody": 404,
            "/v2/models/number/versions/99": 404,
            "/v2/nothing": 404,
        }.items()
    ),
    ("index", 200, post("/v2/repository/index", b"{}")),
    ("load", 200, post("/v2/repository/models/number/load", b"{}")),
    ("load of no version", 404, post("/v2/repository/models/number/load", b'{"parameters":{"version":"99"}}')),
    ("unload", 200, post("/v2/repository/models/number/unload", b"{}")),
    ("no JSON for the repository", 400, post("/v2/repository/index", b"{")),
    ("another method there", 405, get("/v2/models", "DELETE")),
    # The neighbours.
    ("predict", 200, post("/v1/models/number:predict", rows())),
    ("predict of no route", 404, post("/v1/models/nobody:predict", rows())),
    ("predict of no JSON", 400, post("/v1/models/number:predict", b"{")),
    ("predict by GET", 405, get("/v1/models/number:predict")),
    ("classify", 400, post("/v1/models/number:classify", rows())),
    ("v1 status", 200, get("/v1/models/number")),
    ("v1 metadata", 200, get("/v1/models/number/metadata")),
    ("v1 status of no route", 404, get("/v1/models/nobody")),
    ("invocations", 200, post("/invocations", rows(), "turnout-route: number")),
    ("invocations of no route", 400, post("/invocations", rows())),
    ("invocations of an unknown route", 404, post("/invocations", rows(), "turnout-route: nobody")),
    ("invocations of a CSV file", 415, post("/invocations", b"1,2", "turnout-route: number", "Content-Type: text/csv")),
    ("ping", 200, get("/ping")),
    ("health", 200, get("/health")),
    ("version", 200, get("/version")),
    # What is no request at all.
    ("no HTTP", 400, b"hello\r\n\r\n"),
    ("no host", 400, b"GET /v2 HTTP/1.1\r\n\r\n"),
    ("two hosts", 400, b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("CONNECT", 400, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("too many headers", 431, f"GET /v2 HTTP/1.1\r\nHost: a\r\n{TOO_MANY}\r\n\r\n".encode()),
    ("broken chunks", 400, b"POST /v2/models/number/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "request_"), [pytest.param(*row[1:], id=row[0]) for row in HTTP])
def test_over_http(gateway: Gateway, revision: str, status: int, request_: bytes) -> None:
    with RawConnection(gateway.data) as connection:
        connection.write(request_)
        head = connection.read().partition(b"\r\n\r\n")[0].lower() + b"\r\n"
    assert (int(head[9:12]), head.count(HEADER)) == (status, 1), head
    assert HEADER + revision.encode() + b"\r\n" in head


def test_behind_a_request_that_is_under_way(gateway: Gateway, revision: str) -> None:
    """The words that end a connection say the revision of when they are said, not of when they were made."""
    with RawConnection(gateway.data) as connection:
        connection.write(infer("later"), b"hello\r\n\r\n")
        answers = [connection.read(), connection.read()]
    assert [int(answer[9:12]) for answer in answers] == [200, 400]
    assert all(HEADER + revision.encode() in answer.lower() for answer in answers)


@dataclass(frozen=True)
class Call:
    """One call of gRPC with one answer."""

    id: str
    code: StatusCode
    method: str
    message: Message
    metadata: tuple[tuple[str, str], ...] = ()


def asking(model: str, version: str = "", timeout_us: int = 0) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    given = request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    given.contents.fp32_contents.extend([0.0] * 4)
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    return request


INFER = SERVICE + "ModelInfer"
HEALTH = "/grpc.health.v1.Health/Check"
GRPC = [
    Call("infer", StatusCode.OK, INFER, asking("number")),
    Call("explicit version", StatusCode.OK, INFER, asking("number", "1")),
    Call("no inputs", StatusCode.INVALID_ARGUMENT, INFER, pb.ModelInferRequest(model_name="number")),
    Call("no name", StatusCode.INVALID_ARGUMENT, INFER, asking("-")),
    Call("unknown route", StatusCode.NOT_FOUND, INFER, asking("nobody")),
    Call("unknown version", StatusCode.NOT_FOUND, INFER, asking("number", "99")),
    Call("no override", StatusCode.PERMISSION_DENIED, INFER, asking("known"), (("turnout-variant", "stable"),)),
    Call("no traffic", StatusCode.UNAVAILABLE, INFER, asking("idle")),
    Call("deadline", StatusCode.DEADLINE_EXCEEDED, INFER, asking("slow", timeout_us=50_000)),
    *(
        Call(name, StatusCode.OK, SERVICE + name, message)
        for name, message in {
            "ServerLive": pb.ServerLiveRequest(),
            "ServerReady": pb.ServerReadyRequest(),
            "ServerMetadata": pb.ServerMetadataRequest(),
            "ModelReady": pb.ModelReadyRequest(name="nobody"),
            "ModelMetadata": pb.ModelMetadataRequest(name="number"),
            "ModelConfig": pb.ModelConfigRequest(name="number"),
            "ModelStatistics": pb.ModelStatisticsRequest(name="number"),
            "RepositoryIndex": pb.RepositoryIndexRequest(),
            "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="number"),
            "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name="number"),
        }.items()
    ),
    Call("metadata of no route", StatusCode.NOT_FOUND, SERVICE + "ModelMetadata", pb.ModelMetadataRequest(name="x")),
    Call("health", StatusCode.OK, HEALTH, health_pb2.HealthCheckRequest()),
    Call("health of no service", StatusCode.NOT_FOUND, HEALTH, health_pb2.HealthCheckRequest(service="nobody")),
    Call("no such call", StatusCode.UNIMPLEMENTED, SERVICE + "Nothing", pb.ServerLiveRequest()),
    Call("no such service", StatusCode.UNIMPLEMENTED, "/a.Service/Call", pb.ServerLiveRequest()),
]  # fmt: skip


def revisions(metadata: Any) -> list[str]:
    return [value for name, value in metadata or () if name == "turnout-revision"]


@pytest.mark.parametrize("call", [pytest.param(call, id=call.id) for call in GRPC])
def test_over_grpc(channel: grpc.Channel, revision: str, call: Call) -> None:
    """An answer's is ahead of it, an error's behind it; never two that might differ."""
    done = channel.unary_unary(call.method).future(
        call.message.SerializeToString(), metadata=call.metadata, timeout=20
    )
    error = done.exception()
    assert done.code() is call.code, done.details()
    told = revisions(done.initial_metadata()) + revisions(done.trailing_metadata())
    assert (told, bool(error)) == ([revision], call.code is not StatusCode.OK)


def test_over_a_stream_of_grpc(channel: grpc.Channel, revision: str) -> None:
    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        pb.ModelInferRequest.SerializeToString,
        pb.ModelStreamInferResponse.FromString,
    )(iter([asking("number"), asking("nobody"), asking("idle")]), timeout=20)
    answers = list(stream)
    assert [bool(answer.error_message) for answer in answers] == [False, True, True]
    told = [answer.infer_response.parameters["turnout-revision"].string_param for answer in answers]
    assert told == [revision] * 3
    assert revisions(stream.initial_metadata()) == revisions(stream.trailing_metadata()) == [revision]


@pytest.mark.parametrize(
    "call", ["/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]
)
def test_a_stream_that_fails(channel: grpc.Channel, revision: str, call: str) -> None:
    stream = channel.stream_stream(call)(iter([b"\xff"]), timeout=20)
    assert stream.code() is StatusCode.INVALID_ARGUMENT
    assert revisions(stream.trailing_metadata()) == [revision]


async def test_a_bug_of_ours_tells_it_too(caplog: pytest.LogCaptureFixture) -> None:
    """The real application around a way of predictions that breaks."""

    class _Broken:
        async def __call__(self, *_: Any) -> None:
            raise RuntimeError("the secret of /srv")

    class _Lane:
        revision = "7.3+1"

    class _Ready:
        draining = False

    broken = cast(InferEndpoint, _Broken())
    plane = DataPlane(broken, cast(Any, None), cast(Readiness, _Ready()), cast(Lane, _Lane()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(plane), base_url="http://gateway") as client:
        with caplog.at_level(logging.ERROR):
            answer = await client.post("/v2/models/number/infer", content=GOOD)
    assert (answer.status_code, answer.headers["turnout-revision"]) == (500, "7.3+1")
    assert answer.json() == {"error": "the request failed: RuntimeError, see the gateway's log"}
    assert "the secret of /srv" in caplog.text
