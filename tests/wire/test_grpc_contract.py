"""The gRPC of a real gateway: one data plane under both protocols, so that both say the same.

After each bad request a good one is answered, and no worker logs a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from gateway.wire.grpc import inference_pb2 as pb
from tests.servers.gateway import Gateway
from tests.servers.grpc_load import SERVICE, infer_call
from tests.wire.served import BODY_LIMIT, gateway, goes_on_serving, tensor

__all__ = ["gateway", "goes_on_serving"]


@pytest.fixture(scope="module")
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.grpc) as made:
        yield made


def asking(
    model: str, *inputs: dict[str, Any], version: str = "", timeout_us: int | None = None
) -> pb.ModelInferRequest:
    """The request that the tests of HTTP send as JSON."""
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    for given in inputs:
        made = request.inputs.add(name=given["name"], datatype=given["datatype"], shape=given["shape"])
        made.contents.fp32_contents.extend(given["data"])
    if timeout_us is not None:
        request.parameters["timeout"].int64_param = timeout_us
    return request


@dataclass(frozen=True)
class Bad:
    """A request in both protocols, and what they answer."""

    id: str
    status: int
    code: StatusCode
    model: str = "number"
    inputs: tuple[dict[str, Any], ...] = (tensor(),)
    version: str = ""
    timeout_us: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


BAD = [
    Bad("unknown model", 404, StatusCode.NOT_FOUND, model="nobody"),
    Bad("unknown version", 404, StatusCode.NOT_FOUND, version="99"),
    Bad("a version that is not known", 404, StatusCode.NOT_FOUND, model="known", version="2"),
    Bad("unknown variant", 404, StatusCode.NOT_FOUND, headers={"turnout-variant": "nope"}),
    Bad("no override", 403, StatusCode.PERMISSION_DENIED, model="sum", headers={"turnout-variant": "stable"}),
    Bad("wrong shape", 400, StatusCode.INVALID_ARGUMENT, inputs=(tensor(shape=(4, 1)),)),
    Bad("wrong count", 400, StatusCode.INVALID_ARGUMENT, inputs=(tensor(shape=(2, 4)),)),
    Bad("wrong input", 400, StatusCode.INVALID_ARGUMENT, inputs=(tensor("x"),)),
    Bad("missing input", 400, StatusCode.INVALID_ARGUMENT, model="sum"),
    Bad("an input twice", 400, StatusCode.INVALID_ARGUMENT, model="sum", inputs=(tensor("a"), tensor("a"))),
    Bad("no traffic", 503, StatusCode.UNAVAILABLE, model="idle"),
    Bad("deadline", 504, StatusCode.DEADLINE_EXCEEDED, model="slow", timeout_us=50_000),
    Bad("negative timeout", 400, StatusCode.INVALID_ARGUMENT, timeout_us=-1),
]  # fmt: skip


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.id) for bad in BAD])
def test_an_error_is_the_same_over_both_protocols(gateway: Gateway, channel: grpc.Channel, bad: Bad) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        infer_call(channel)(
            asking(bad.model, *bad.inputs, version=bad.version, timeout_us=bad.timeout_us),
            metadata=tuple(bad.headers.items()),
            timeout=20,
        )
    error = raised.value
    assert error.code() is bad.code
    document: dict[str, Any] = {"inputs": list(bad.inputs)}
    if bad.timeout_us is not None:
        document["parameters"] = {"timeout": bad.timeout_us}
    path = f"/v2/models/{bad.model}" + (f"/versions/{bad.version}" if bad.version else "")
    answer = httpx.post(f"{gateway.data}{path}/infer", json=document, headers=bad.headers, timeout=20)
    assert (answer.status_code, answer.json()["error"]) == (bad.status, error.details())
    trailing = dict(error.trailing_metadata())
    for name in ("turnout-revision", "turnout-version", "retry-after"):
        assert trailing.get(name) == answer.headers.get(name), name


def unary(channel: grpc.Channel, method: str, answer: Any) -> Any:
    call = channel.unary_unary(
        SERVICE + method, lambda message: message.SerializeToString(), answer.FromString
    )
    return lambda message: MessageToDict(call(message, timeout=20), preserving_proto_field_name=True)


@pytest.mark.parametrize("version", ["", "1"])
def test_what_is_told_of_a_model_is_the_same(gateway: Gateway, channel: grpc.Channel, version: str) -> None:
    path = f"{gateway.data}/v2/models/number" + (f"/versions/{version}" if version else "")
    metadata = unary(channel, "ModelMetadata", pb.ModelMetadataResponse)
    told = metadata(pb.ModelMetadataRequest(name="number", version=version))
    assert strings(told) == strings(httpx.get(path).json())
    config = unary(channel, "ModelConfig", pb.ModelConfigResponse)
    told = config(pb.ModelConfigRequest(name="number", version=version))["config"]
    expected = httpx.get(f"{path}/config").json()
    expected["dynamic_batching"] = {}  # no delay, which protobuf does not write
    assert strings(told) == strings(expected)


def strings(document: Any) -> Any:
    """Numbers as text: protobuf's JSON has 64 bits in strings, and leaves out zeros."""
    if isinstance(document, dict):
        return {name: strings(value) for name, value in document.items()}
    return list(map(strings, document)) if isinstance(document, list) else str(document)


def test_both_protocols_count_into_the_same_metrics(gateway: Gateway, channel: grpc.Channel) -> None:
    def counted(code: int) -> float:
        labels = f'code="{code}",route="number",variant="stable",version="1"'
        return gateway.metrics().get(f"turnout_requests_total{{{labels}}}", 0.0)

    before = counted(200), counted(400)
    answer, call = infer_call(channel).with_call(asking("number", tensor()), timeout=20)
    assert answer.outputs[0].contents.fp32_contents == [1.0]
    with pytest.raises(grpc.RpcError):
        infer_call(channel)(asking("number", tensor(shape=(4, 1))), timeout=20)
    assert (counted(200), counted(400)) == (before[0] + 1, before[1] + 1)
    origin = dict(call.initial_metadata())
    same = httpx.post(f"{gateway.data}/v2/models/number/infer", json={"inputs": [tensor()]})
    for name in ("turnout-version", "turnout-variant", "turnout-revision", "turnout-digest"):
        assert origin[name] == same.headers[name]


def test_a_message_over_the_limit(channel: grpc.Channel) -> None:
    request = pb.ModelInferRequest(model_name="number", raw_input_contents=[bytes(BODY_LIMIT)])
    with pytest.raises(grpc.RpcError) as raised:
        infer_call(channel)(request, timeout=20)
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED


def test_a_bomb_of_compressed_zeros(channel: grpc.Channel) -> None:
    request = pb.ModelInferRequest(model_name="number", raw_input_contents=[bytes(64 * BODY_LIMIT)])
    with pytest.raises(grpc.RpcError) as raised:
        infer_call(channel)(request, timeout=20, compression=grpc.Compression.Gzip)
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryIndex", "RepositoryModelLoad"])
def test_what_is_no_message(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(SERVICE + method)(b"\xff\xff", timeout=20)
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == f"the request is no valid {method}Request"


def test_a_call_that_is_not_there(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(SERVICE + "SystemSharedMemoryStatus")(b"", timeout=20)
    assert raised.value.code() is StatusCode.UNIMPLEMENTED


def test_reflection_tells_the_whole_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
    told = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
    (ours,) = pb.DESCRIPTOR.services_by_name.values()
    assert [method.name for method in told.methods] == [method.name for method in ours.methods]
