"""Drives KServe's own REST client against a server: `python kserve_rest.py http://HOST:PORT`.

Runs in the environment of other people's clients. Prints one JSON object: behaviour → what the client gave,
or `{"exception", "status", "text"}` where it raised.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import InferResponse, RequestedOutput

URL = sys.argv[1]
Behaviour = Callable[[InferenceRESTClient], Awaitable[object]]
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
async def live(client: InferenceRESTClient) -> object:
    return await client.is_server_live(URL)


@behaviour
async def ready(client: InferenceRESTClient) -> object:
    return await client.is_server_ready(URL)


@behaviour
async def model_ready(client: InferenceRESTClient) -> object:
    return {
        "scores": await client.is_model_ready(URL, "scores"),
        "nobody": await client.is_model_ready(URL, "nobody"),
    }


@behaviour
async def infer_json(client: InferenceRESTClient) -> object:
    return told(await client.infer(URL, request("scores", scores(), request_id="seven"), "scores"))


@behaviour
async def infer_dict(client: InferenceRESTClient) -> object:
    data = {"inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": [[1.0] * 16]}]}
    return told(await client.infer(URL, data, "scores"))


@behaviour
async def infer_binary(client: InferenceRESTClient) -> object:
    wanted = request("scores", scores(2, binary=True), parameters={"binary_data_output": True})
    return told(await client.infer(URL, wanted, "scores"))


@behaviour
async def infer_binary_in_json_out(client: InferenceRESTClient) -> object:
    return told(await client.infer(URL, request("scores", scores(2, binary=True)), "scores"))


@behaviour
async def infer_requested_output(client: InferenceRESTClient) -> object:
    wanted = [RequestedOutput("output", {"binary_data": True})]
    return told(await client.infer(URL, request("scores", scores(), request_outputs=wanted), "scores"))


@behaviour
async def infer_half_floats(client: InferenceRESTClient) -> object:
    given = tensor("input", np.array([[0.5, -2.0, 65504.0, 0.0]], np.float16), "FP16", binary=True)
    return told(
        await client.infer(URL, request("half", given, parameters={"binary_data_output": True}), "half")
    )


@behaviour
async def infer_bytes(client: InferenceRESTClient) -> object:
    texts = np.array([["snö", ""], ["a" * 300, "b"]], dtype=object)
    found = {}
    for binary in (True, False):
        given = InferInput(name="input", shape=[2, 2], datatype="BYTES")
        if binary:
            given.set_data_from_numpy(np.char.encode(texts.astype(str)).astype(object), binary_data=True)
        else:
            given.data = texts.reshape(-1).tolist()
        wanted = request("text", given, parameters={"binary_data_output": binary})
        answer = (await client.infer(URL, wanted, "text")).outputs[0].as_numpy().reshape(-1).tolist()
        found[str(binary)] = [item.decode() if isinstance(item, bytes) else item for item in answer]
    return found


@behaviour
async def infer_several_inputs(client: InferenceRESTClient) -> object:
    a, b = np.full((2, 3), 1.5, np.float32), np.full((2, 3), 2.0, np.float32)
    inputs = (tensor("b", b, "FP32", binary=True), tensor("a", a, "FP32", binary=True))
    return told(await client.infer(URL, request("sum", *inputs), "sum"))


@behaviour
async def response_headers(client: InferenceRESTClient) -> object:
    headers: dict[str, str] = {}
    await client.infer(URL, request("scores", scores()), "scores", response_headers=headers)
    return {name: value for name, value in headers.items() if name.startswith("turnout-")}


@behaviour
async def unknown_model(client: InferenceRESTClient) -> object:
    return await client.infer(URL, request("nobody", scores()), "nobody")


@behaviour
async def wrong_shape(client: InferenceRESTClient) -> object:
    given = tensor("input", np.ones((1, 5), np.float32), "FP32", binary=True)
    return await client.infer(URL, request("scores", given), "scores")


@behaviour
async def wrong_datatype(client: InferenceRESTClient) -> object:
    given = tensor("input", np.ones((1, 16), np.int32), "INT32", binary=False)
    return await client.infer(URL, request("scores", given), "scores")


async def run(client: InferenceRESTClient, function: Behaviour) -> object:
    try:
        return await function(client)
    except httpx.HTTPStatusError as error:
        return {"exception": "HTTPStatusError", "status": error.response.status_code, "text": str(error)}
    except Exception as error:
        return {"exception": type(error).__name__, "status": None, "text": str(error)}


async def main() -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=20, retries=0)) as client:
        found = {name: await run(client, function) for name, function in BEHAVIOURS.items()}
    print(json.dumps(found))


asyncio.run(main())
