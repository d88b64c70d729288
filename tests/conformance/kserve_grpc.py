"""Drives KServe's own gRPC client against a server: `python kserve_grpc.py HOST:PORT`.

Runs in the environment of other people's clients. Prints one JSON object: behaviour → what the client gave,
or `{"exception", "status", "text"}` where it raised.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import InferResponse

ADDRESS = sys.argv[1]
Behaviour = Callable[[InferenceGRPCClient], Awaitable[object]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function
    return function


def request(model: str, *inputs: InferInput, **options: object) -> InferRequest:
    return InferRequest(model_name=model, infer_inputs=list(inputs), **options)


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool) -> InferInput:
    made = InferInput(name=name, shape=list(array.shape), datatype=datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def scores(rows: int = 1, *, binary: bool = False) -> InferInput:
    return tensor("input", np.ones((rows, 16), np.float32), "FP32", binary=binary)


def told(response: InferResponse) -> dict:
    return {
        "id": response.id,
        "model_name": response.model_name,
        "outputs": {
            output.name: np.asarray(output.as_numpy(), np.float64).round(4).tolist()
            for output in response.outputs
        },
    }


@behaviour
async def live(client: InferenceGRPCClient) -> object:
    return await client.is_server_live()


@behaviour
async def ready(client: InferenceGRPCClient) -> object:
    return await client.is_server_ready()


@behaviour
async def model_ready(client: InferenceGRPCClient) -> object:
    return {
        "scores": await client.is_model_ready("scores"),
        "nobody": await client.is_model_ready("nobody"),
    }


@behaviour
async def infer_typed(client: InferenceGRPCClient) -> object:
    return told(await client.infer(request("scores", scores(), request_id="seven")))


@behaviour
async def infer_raw(client: InferenceGRPCClient) -> object:
    return told(await client.infer(request("scores", scores(2, binary=True))))


@behaviour
async def infer_half_floats(client: InferenceGRPCClient) -> object:
    given = tensor("input", np.array([[0.5, -2.0, 65504.0, 0.0]], np.float16), "FP16", binary=True)
    return told(await client.infer(request("half", given)))


@behaviour
async def infer_bytes(client: InferenceGRPCClient) -> object:
    texts = np.array([["snö", ""], ["a" * 300, "b"]], dtype=object)
    found = {}
    for binary in (True, False):
        given = InferInput(name="input", shape=[2, 2], datatype="BYTES")
        if binary:
            given.set_data_from_numpy(np.char.encode(texts.astype(str)).astype(object), binary_data=True)
        else:
            given.data = [text.encode() for text in texts.reshape(-1).tolist()]
        answer = (await client.infer(request("text", given))).outputs[0].as_numpy().reshape(-1).tolist()
        found[str(binary)] = [item.decode() if isinstance(item, bytes) else item for item in answer]
    return found


@behaviour
async def infer_several_inputs(client: InferenceGRPCClient) -> object:
    a, b = np.full((2, 3), 1.5, np.float32), np.full((2, 3), 2.0, np.float32)
    inputs = (tensor("b", b, "FP32", binary=True), tensor("a", a, "FP32", binary=True))
    return told(await client.infer(request("sum", *inputs)))


@behaviour
async def mixed(client: InferenceGRPCClient) -> object:
    a, b = np.full((2, 3), 1.5, np.float32), np.full((2, 3), 2.0, np.float32)
    inputs = (tensor("b", b, "FP32", binary=True), tensor("a", a, "FP32", binary=False))
    return told(await client.infer(request("sum", *inputs)))


@behaviour
async def unknown_model(client: InferenceGRPCClient) -> object:
    return await client.infer(request("nobody", scores()))


@behaviour
async def wrong_shape(client: InferenceGRPCClient) -> object:
    given = tensor("input", np.ones((1, 5), np.float32), "FP32", binary=True)
    return await client.infer(request("scores", given))


async def run(client: InferenceGRPCClient, function: Behaviour) -> object:
    try:
        return await function(client)
    except grpc.RpcError as error:
        return {"exception": "RpcError", "status": str(error.code()), "text": error.details()}
    except Exception as error:
        return {"exception": type(error).__name__, "status": None, "text": str(error)}


async def main() -> None:
    async with InferenceGRPCClient(ADDRESS, timeout=20) as client:
        found = {name: await run(client, function) for name, function in BEHAVIOURS.items()}
    print(json.dumps(found))


asyncio.run(main())
