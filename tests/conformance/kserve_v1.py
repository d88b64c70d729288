"""Drives KServe's own REST client with its v1 protocol: `python kserve_v1.py http://HOST:PORT`.

Runs in the environment of other people's clients. Prints one JSON object: behaviour → what the client gave,
or `{"exception", "status", "text"}` where it raised.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

import httpx
from kserve import InferenceRESTClient, RESTConfig

URL = sys.argv[1]
Behaviour = Callable[[InferenceRESTClient], Awaitable[object]]
BEHAVIOURS: dict[str, Behaviour] = {}
ROWS = {"instances": [[1.0] * 16] * 2}


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function
    return function


@behaviour
async def live(client: InferenceRESTClient) -> object:
    return await client.is_server_live(URL)


@behaviour
async def model_ready(client: InferenceRESTClient) -> object:
    return await client.is_model_ready(URL, "scores")


@behaviour
async def unknown_model_ready(client: InferenceRESTClient) -> object:
    return await client.is_model_ready(URL, "nobody")


@behaviour
async def predict(client: InferenceRESTClient) -> object:
    return await client.infer(URL, ROWS, "scores")


@behaviour
async def predict_named(client: InferenceRESTClient) -> object:
    rows = [{"a": [1.5] * 3, "b": [2.0] * 3}]
    return await client.infer(URL, {"instances": rows}, "sum")


@behaviour
async def predict_text(client: InferenceRESTClient) -> object:
    return await client.infer(URL, {"instances": [["snö", ""], ["a" * 300, "b"]]}, "text")


@behaviour
async def response_headers(client: InferenceRESTClient) -> object:
    headers: dict[str, str] = {}
    await client.infer(URL, ROWS, "scores", response_headers=headers)
    return {name: value for name, value in headers.items() if name.startswith("turnout-")}


@behaviour
async def unknown_model(client: InferenceRESTClient) -> object:
    return await client.infer(URL, ROWS, "nobody")


@behaviour
async def wrong_shape(client: InferenceRESTClient) -> object:
    return await client.infer(URL, {"instances": [[1.0] * 5]}, "scores")


@behaviour
async def explain(client: InferenceRESTClient) -> object:
    return await client.explain(URL, "scores", ROWS)


async def run(client: InferenceRESTClient, function: Behaviour) -> object:
    try:
        return await function(client)
    except httpx.HTTPStatusError as error:
        return {"exception": "HTTPStatusError", "status": error.response.status_code, "text": str(error)}
    except Exception as error:
        return {"exception": type(error).__name__, "status": None, "text": str(error)}


async def main() -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=20, retries=0)) as client:
        found = {name: await run(client, function) for name, function in BEHAVIOURS.items()}
    print(json.dumps(found))


asyncio.run(main())
