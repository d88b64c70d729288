"""Drives Triton's own gRPC client against a server: `python triton_grpc.py HOST:PORT`.

Runs in the environment of other people's clients. Prints one JSON object: behaviour → what the client gave,
or `{"exception", "status", "text"}` where it raised.
"""

import asyncio
import json
import queue
import sys
from collections.abc import Callable

import numpy as np
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    InferResult,
    service_pb2,
)
from tritonclient.utils import InferenceServerException

ADDRESS = sys.argv[1]
client = InferenceServerClient(ADDRESS)
BEHAVIOURS: dict[str, Callable[[], object]] = {}


def behaviour(function: Callable[[], object]) -> Callable[[], object]:
    BEHAVIOURS[function.__name__] = function
    return function


def tensor(name: str, array: np.ndarray, datatype: str) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def scores(rows: int = 1) -> list[InferInput]:
    return [tensor("input", np.ones((rows, 16), np.float32), "FP32")]


def outputs(class_count: int = 0) -> list[InferRequestedOutput]:
    return [InferRequestedOutput("output", class_count=class_count)]


def floats(array: np.ndarray) -> list:
    return np.asarray(array, np.float64).round(4).tolist()


@behaviour
def live() -> object:
    return client.is_server_live()


@behaviour
def ready() -> object:
    return client.is_server_ready()


@behaviour
def server_metadata() -> object:
    return client.get_server_metadata(as_json=True)


@behaviour
def model_metadata() -> object:
    return client.get_model_metadata("scores", as_json=True)


@behaviour
def version_metadata() -> object:
    return client.get_model_metadata("scores", "2", as_json=True)


@behaviour
def model_ready() -> object:
    return {
        "declared": client.is_model_ready("scores"),
        "version": client.is_model_ready("scores", "1"),
        "unknown": client.is_model_ready("nobody"),
    }


@behaviour
def model_config() -> object:
    return client.get_model_config("scores", as_json=True)


@behaviour
def statistics() -> object:
    before = client.get_inference_statistics("sum", as_json=True)
    for _ in range(3):
        client.infer("sum", [tensor(name, np.ones((2, 3), np.float32), "FP32") for name in "ab"])
    return {
        "before": before,
        "model": client.get_inference_statistics("sum", as_json=True),
        "version": client.get_inference_statistics("sum", "1", as_json=True),
        "all": client.get_inference_statistics(as_json=True),
    }


@behaviour
def repository_index() -> object:
    return client.get_model_repository_index(as_json=True)


@behaviour
def load_and_unload() -> object:
    seen = {"before": client.is_model_ready("scores", "3")}
    client.load_model("scores", config=json.dumps({"parameters": {}}), files={"file:1/model.onnx": b"\x00"})
    request = service_pb2.RepositoryModelLoadRequest(model_name="scores")
    request.parameters["version"].string_param = "3"
    client._client_stub.RepositoryModelLoad(request)
    seen["loaded"] = client.is_model_ready("scores", "3")
    client.unload_model("scores")
    seen["unloaded"] = client.is_model_ready("scores", "3")
    seen["declared"] = client.is_model_ready("scores")
    return seen


@behaviour
def load_of_an_unknown_model() -> object:
    return client.load_model("nobody")


@behaviour
def infer() -> object:
    result = client.infer("scores", scores(3), outputs=outputs())
    return {"response": result.get_response(as_json=True), "output": floats(result.as_numpy("output"))}


@behaviour
def infer_without_outputs() -> object:
    return floats(client.infer("scores", scores()).as_numpy("output"))


@behaviour
def infer_bytes() -> object:
    texts = np.array([["snö", ""], ["a" * 300, "b"]], dtype=object)
    result = client.infer("text", [tensor("input", texts, "BYTES")])
    return [item.decode() for item in result.as_numpy("output").reshape(-1).tolist()]


@behaviour
def infer_half_floats() -> object:
    given = np.array([[0.5, -2.0, 65504.0, 0.1]], np.float16)
    return floats(client.infer("half", [tensor("input", given, "FP16")]).as_numpy("output"))


@behaviour
def infer_several_inputs() -> object:
    a, b = np.full((2, 3), 1.5, np.float32), np.full((2, 3), 2.0, np.float32)
    return floats(client.infer("sum", [tensor("b", b, "FP32"), tensor("a", a, "FP32")]).as_numpy("sum"))


@behaviour
def infer_typed() -> object:
    """Triton's client always sends raw bytes; its stubs may send anything."""
    request = service_pb2.ModelInferRequest(model_name="scores", id="typed")
    given = request.inputs.add(name="input", datatype="FP32", shape=[1, 16])
    given.contents.fp32_contents.extend([1.0] * 16)
    response = client._client_stub.ModelInfer(request)
    (output,) = response.outputs
    return {"id": response.id, "raw": len(response.raw_output_contents),
            "output": floats(np.array(output.contents.fp32_contents))}  # fmt: skip


@behaviour
def compression() -> object:
    given = np.arange(2048, dtype=np.float32).reshape(2, 1024)
    found = {}
    for encoding in ("gzip", "deflate"):
        result = client.infer("wide", [tensor("input", given, "FP32")], compression_algorithm=encoding)
        found[encoding] = bool((result.as_numpy("output") == given).all())
    return found


@behaviour
def classification() -> object:
    result = client.infer("scores", scores(2), outputs=outputs(class_count=2))
    labels = [[item.decode() for item in row] for row in result.as_numpy("output").tolist()]
    return {"labels": labels, "output": floats(client.infer("scores", scores(2)).as_numpy("output"))}


@behaviour
def explicit_version() -> object:
    return client.infer("scores", scores(), model_version="2").get_response().model_version


@behaviour
def request_id() -> object:
    return client.infer("scores", scores(), request_id="request 7 ü").get_response().id


@behaviour
def parameters() -> object:
    """The reserved ones and others: none of them is in the way."""
    return client.infer(
        "scores", scores(), priority=1, timeout=5_000_000, sequence_id=3, parameters={"mine": "x", "n": 2, "d": 0.5}
    ).get_response().model_version  # fmt: skip


@behaviour
def own_headers() -> object:
    return client.infer("scores", scores(), headers={"turnout-key": "user-7"}).get_response().model_name


@behaviour
def asynchronous() -> object:
    answers: queue.Queue = queue.Queue()
    for rows in (1, 2, 3):
        client.async_infer(
            "scores", scores(rows), callback=lambda result, error: answers.put(error or result)
        )
    return sorted(list(answers.get(timeout=20).as_numpy("output").shape) for _ in range(3))


@behaviour
def stream() -> object:
    """Answers and errors in the order of the requests, on one stream that goes on behind an error."""
    answers: queue.Queue = queue.Queue()
    with InferenceServerClient(ADDRESS) as own:
        own.start_stream(callback=lambda result, error: answers.put(error or result))
        for number, model in enumerate(("scores", "nobody", "scores")):
            own.async_stream_infer(model, scores(number + 1), request_id=str(number))
        found = [answers.get(timeout=20) for _ in range(3)]
        own.stop_stream()
    return [
        {"id": one.get_response().id, "shape": list(one.as_numpy("output").shape),
         "variant": one.get_response().parameters["turnout-variant"].string_param}
        if isinstance(one, InferResult) else one.message()
        for one in found
    ]  # fmt: skip


@behaviour
def asyncio_client() -> object:
    async def ask() -> object:
        async with triton_aio.InferenceServerClient(ADDRESS) as own:
            inputs = triton_aio.InferInput("input", [2, 16], "FP32")
            inputs.set_data_from_numpy(np.ones((2, 16), np.float32))
            return floats((await own.infer("scores", [inputs])).as_numpy("output"))

    return asyncio.run(ask())


@behaviour
def unknown_model() -> object:
    return client.infer("nobody", scores())


@behaviour
def unknown_version() -> object:
    return client.infer("scores", scores(), model_version="99")


@behaviour
def wrong_shape() -> object:
    return client.infer("scores", [tensor("input", np.ones((1, 5), np.float32), "FP32")])


@behaviour
def wrong_datatype() -> object:
    return client.infer("scores", [tensor("input", np.ones((1, 16), np.int64), "INT64")])


@behaviour
def unknown_output() -> object:
    return client.infer("scores", scores(), outputs=[InferRequestedOutput("nothing")])


@behaviour
def deadline() -> object:
    return client.infer("scores", scores(), timeout=1)


@behaviour
def shared_memory() -> object:
    """A call of Triton's that this server does not have."""
    return client.get_system_shared_memory_status()


def run(function: Callable[[], object]) -> object:
    try:
        return function()
    except InferenceServerException as error:
        return {"exception": type(error).__name__, "status": error.status(), "text": error.message()}
    except Exception as error:
        return {"exception": type(error).__name__, "status": None, "text": str(error)}


def stubs() -> dict:
    """Message → field → (number, type, repeated), and the calls, of the stubs that the client was built with."""
    files = (service_pb2.DESCRIPTOR, *service_pb2.DESCRIPTOR.dependencies)
    found: dict = {}
    waiting = [message for file in files for message in file.message_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        waiting += message.nested_types
        found[message.full_name] = {
            field.name: [field.number, field.type, field.is_repeated] for field in message.fields
        }
    for file in files:
        for enum in file.enum_types_by_name.values():
            found[enum.full_name] = {value.name: value.number for value in enum.values}
        for service in file.services_by_name.values():
            found[service.full_name] = {
                method.name: [method.input_type.full_name, method.output_type.full_name]
                for method in service.methods
            }
    return found


print(json.dumps({"stubs": stubs()} | {name: run(function) for name, function in BEHAVIOURS.items()}))
