"""Drives Triton's own Python client against a server: `python triton_http.py HOST:PORT`.

Runs in the environment of other people's clients. Prints one JSON object: behaviour → what the client gave,
or `{"exception", "status", "text"}` where it raised.
"""

import json
import sys
from collections.abc import Callable

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

client = InferenceServerClient(sys.argv[1], concurrency=1, network_timeout=20)
BEHAVIOURS: dict[str, Callable[[], object]] = {}


def behaviour(function: Callable[[], object]) -> Callable[[], object]:
    BEHAVIOURS[function.__name__] = function
    return function


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def scores(rows: int = 1, *, binary: bool = True) -> list[InferInput]:
    return [tensor("input", np.ones((rows, 16), np.float32), "FP32", binary=binary)]


def outputs(binary: bool, class_count: int = 0) -> list[InferRequestedOutput]:
    return [InferRequestedOutput("output", binary_data=binary, class_count=class_count)]


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
    return client.get_server_metadata()


@behaviour
def model_metadata() -> object:
    return client.get_model_metadata("scores")


@behaviour
def version_metadata() -> object:
    return client.get_model_metadata("scores", "2")


@behaviour
def model_ready() -> object:
    return {
        "declared": client.is_model_ready("scores"),
        "version": client.is_model_ready("scores", "1"),
        "unknown": client.is_model_ready("nobody"),
    }


@behaviour
def model_config() -> object:
    return client.get_model_config("scores")


@behaviour
def statistics() -> object:
    before = client.get_inference_statistics("sum")
    for _ in range(3):
        client.infer("sum", [tensor(name, np.ones((2, 3), np.float32), "FP32") for name in "ab"])
    return {
        "before": before,
        "model": client.get_inference_statistics("sum"),
        "version": client.get_inference_statistics("sum", "1"),
        "all": client.get_inference_statistics(),
    }


@behaviour
def repository_index() -> object:
    return client.get_model_repository_index()


@behaviour
def load_and_unload() -> object:
    """Asked often, because two workers answer in turn."""
    seen = {"before": [client.is_model_ready("scores", "3") for _ in range(4)]}
    client.load_model("scores", config=json.dumps({"parameters": {}}))
    client._post(
        "v2/repository/models/scores/load",
        json.dumps({"parameters": {"version": "3"}}),
        headers=None,
        query_params=None,
    )
    seen["loaded"] = [client.is_model_ready("scores", "3") for _ in range(4)]
    seen["index"] = client.get_model_repository_index()
    client.unload_model("scores")
    seen["unloaded"] = [client.is_model_ready("scores", "3") for _ in range(4)]
    seen["declared"] = client.is_model_ready("scores")
    return seen


@behaviour
def load_of_an_unknown_model() -> object:
    return client.load_model("nobody")


@behaviour
def infer_json() -> object:
    result = client.infer("scores", scores(binary=False), outputs=outputs(False))
    return {"response": result.get_response(), "output": floats(result.as_numpy("output"))}


@behaviour
def infer_binary() -> object:
    result = client.infer("scores", scores(3), outputs=outputs(True))
    return {"response": result.get_response(), "output": floats(result.as_numpy("output"))}


@behaviour
def infer_without_outputs() -> object:
    result = client.infer("scores", scores())
    return {"response": result.get_response(), "output": floats(result.as_numpy("output"))}


@behaviour
def infer_bytes() -> object:
    texts = np.array([["snö", ""], ["a" * 300, "b"]], dtype=object)
    found = {}
    for binary in (True, False):
        given = tensor("input", texts, "BYTES", binary=binary)
        result = client.infer("text", [given], outputs=outputs(binary))
        answer = result.as_numpy("output")
        found[str(binary)] = [
            item.decode() if isinstance(item, bytes) else item for item in answer.reshape(-1).tolist()
        ]
    return found


@behaviour
def infer_half_floats() -> object:
    given = np.array([[0.5, -2.0, 65504.0, 0.1]], np.float16)
    return floats(client.infer("half", [tensor("input", given, "FP16")]).as_numpy("output"))


@behaviour
def infer_half_floats_as_json() -> object:
    given = tensor("input", np.zeros((1, 4), np.float16), "FP16")
    return client.infer("half", [given], outputs=outputs(False)).get_response()


@behaviour
def infer_several_inputs() -> object:
    a, b = np.full((2, 3), 1.5, np.float32), np.full((2, 3), 2.0, np.float32)
    mixed = [tensor("b", b, "FP32", binary=False), tensor("a", a, "FP32")]
    return floats(client.infer("sum", mixed).as_numpy("sum"))


@behaviour
def compression() -> object:
    given = np.arange(2048, dtype=np.float32).reshape(2, 1024)
    found = {}
    for encoding in ("gzip", "deflate"):
        for binary in (True, False):
            result = client.infer(
                "wide",
                [tensor("input", given, "FP32", binary=binary)],
                outputs=outputs(binary),
                request_compression_algorithm=encoding,
                response_compression_algorithm=encoding,
            )
            found[f"{encoding} {binary}"] = bool((result.as_numpy("output") == given).all())
    return found


@behaviour
def classification() -> object:
    result = client.infer("scores", scores(2), outputs=outputs(True, class_count=2))
    labels = [[item.decode() for item in row] for row in result.as_numpy("output").tolist()]
    return {"labels": labels, "output": floats(client.infer("scores", scores(2)).as_numpy("output"))}


@behaviour
def explicit_version() -> object:
    return client.infer("scores", scores(), model_version="2").get_response()


@behaviour
def request_id() -> object:
    return client.infer("scores", scores(), request_id="request 7 ü").get_response()["id"]


@behaviour
def parameters() -> object:
    """The reserved ones and others: none of them is in the way."""
    return client.infer(
        "scores", scores(), priority=1, timeout=5_000_000, sequence_id=3, parameters={"mine": "x", "n": 2}
    ).get_response()["model_version"]


@behaviour
def asynchronous() -> object:
    waiting = [client.async_infer("scores", scores(rows)) for rows in (1, 2, 3)]
    return [list(one.get_result().as_numpy("output").shape) for one in waiting]


@behaviour
def own_headers() -> object:
    result = client.infer("scores", scores(), headers={"turnout-key": "user-7"})
    return result.get_response()["model_name"]


@behaviour
def unknown_model() -> object:
    return client.infer("nobody", scores())


@behaviour
def unknown_version() -> object:
    return client.infer("scores", scores(), model_version="99")


@behaviour
def unknown_model_metadata() -> object:
    return client.get_model_metadata("nobody")


@behaviour
def wrong_shape() -> object:
    return client.infer("scores", [tensor("input", np.ones((1, 5), np.float32), "FP32")])


@behaviour
def wrong_datatype() -> object:
    return client.infer("scores", [tensor("input", np.ones((1, 16), np.int64), "INT64")])


@behaviour
def wrong_input_name() -> object:
    return client.infer("scores", [tensor("inputs", np.ones((1, 16), np.float32), "FP32")])


@behaviour
def unknown_output() -> object:
    return client.infer("scores", scores(), outputs=[InferRequestedOutput("nothing")])


@behaviour
def deadline() -> object:
    return client.infer("scores", scores(), timeout=1)


def run(function: Callable[[], object]) -> object:
    try:
        return function()
    except InferenceServerException as error:
        return {"exception": type(error).__name__, "status": error.status(), "text": error.message()}
    except Exception as error:
        return {"exception": type(error).__name__, "status": None, "text": str(error)}


print(json.dumps({name: run(function) for name, function in BEHAVIOURS.items()}))
