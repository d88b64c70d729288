"""TensorFlow Serving's REST API and KServe's v1 protocol against a real gateway and real models."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.servers.gateway import Gateway
from tests.wire.neighbours_served import (
    BODY_LIMIT,
    counted,
    gateway,
    goes_on_serving,
    predict,
    predictions,
    wait_counted,
)

__all__ = ["gateway", "goes_on_serving"]

ROW = [0.0] * 4
ROWS = {"instances": [ROW]}
_SHAPES = st.integers(1, 3).flatmap(
    lambda rank: st.lists(st.integers(1, 4), min_size=rank, max_size=rank).map(tuple)
)
_ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    "UINT8": st.integers(0, 255),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-1000, 1000),
    "FP64": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-1000, 1000),
    "BYTES": st.text(max_size=5).filter(lambda text: max(text, default="") < "\ud800"),
}


def nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array.reshape(shape).tolist()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_rows_and_columns_are_answered_as_v2_answers_them(gateway: Gateway, data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(sorted(_ELEMENTS)))
    shape = data.draw(_SHAPES)
    size = int(np.prod(shape))
    flat = data.draw(st.lists(_ELEMENTS[datatype], min_size=size, max_size=size))
    values, route = nest(flat, shape), f"{datatype.lower()}-{len(shape)}"
    document = {"inputs": [{"name": "input", "shape": shape, "datatype": datatype, "data": flat}]}
    v2 = httpx.post(f"{gateway.data}/v2/models/{route}/infer", json=document, timeout=20).json()
    (output,) = v2["outputs"]
    expected = nest(output["data"], tuple(output["shape"]))
    assert predictions(gateway, route, {"instances": values}) == expected
    assert predictions(gateway, route, {"instances": [{"input": row} for row in values]}) == expected
    assert predictions(gateway, route, {"inputs": values}) == expected
    assert predictions(gateway, route, {"inputs": {"input": values}}) == expected


def test_several_inputs_and_one_output(gateway: Gateway) -> None:
    a, b = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[10.0, 0.0, 0.0], [20.0, 0.0, 0.0]]
    expected = [[11.0, 2.0, 3.0], [24.0, 5.0, 6.0]]
    rows = [{"b": second, "a": first} for first, second in zip(a, b, strict=True)]
    assert predict(gateway, "sum", {"instances": rows}).json() == {"predictions": expected}
    assert predict(gateway, "sum", {"inputs": {"a": a, "b": b}}).json() == {"outputs": expected}


def test_several_outputs_are_objects(gateway: Gateway) -> None:
    values = [[1.0, 2.0], [3.0, 4.0]]
    assert predictions(gateway, "classes", {"instances": values}) == [
        {"total": [3.0], "same": [1.0, 2.0]},
        {"total": [7.0], "same": [3.0, 4.0]},
    ]
    assert predictions(gateway, "classes", {"inputs": values}) == {"total": [[3.0], [7.0]], "same": values}


def test_columns_carry_what_has_no_rows(gateway: Gateway) -> None:
    given = {"input": [[1.0, 3.0]], "state": [[[1.0] * 8], [[2.0] * 8]], "sr": 16}
    answer = predictions(gateway, "state", {"inputs": given})
    assert answer == {"output": [[2.0]], "stateN": [[[17.0] * 8], [[18.0] * 8]]}
    assert predictions(gateway, "mean", {"inputs": [[1.0, 2.0]]}) == 1.5


def test_base64(gateway: Gateway) -> None:
    encoded = {"b64": base64.b64encode("snö".encode()).decode()}
    for value in (encoded, "snö"):
        # By its name the one output holds what is no text, the other one does.
        assert predictions(gateway, "raw", {"instances": [value]}) == [encoded]
        assert predictions(gateway, "bytes-1", {"instances": [value]}) == ["snö"]
        assert predictions(gateway, "bytes-1", {"inputs": {"input": [value]}}) == ["snö"]


def test_no_rows(gateway: Gateway) -> None:
    assert predictions(gateway, "fp32-1", {"instances": []}) == []


def test_signature_name(gateway: Gateway) -> None:
    assert predictions(gateway, "number", ROWS | {"signature_name": "serving_default"}) == [[1.0]]
    assert predictions(gateway, "number", ROWS | {"signature_name": ""}) == [[1.0]]


def test_versions_and_labels_choose(gateway: Gateway) -> None:
    for target, value, variant, version in [
        ("number", 1.0, "stable", "1"),
        ("number/labels/stable", 1.0, "stable", "1"),
        ("number/labels/canary", 2.0, "canary", "2"),
        ("number/versions/2", 2.0, "pinned", "2"),
        ("number/versions/3", 3.0, "pinned", "3"),
    ]:
        response = predict(gateway, target, ROWS)
        assert response.json() == {"predictions": [[value]]}
        headers = response.headers
        assert (headers["turnout-variant"], headers["turnout-version"]) == (variant, version)
        assert headers["turnout-revision"] == "1.1"
        assert len(headers["turnout-digest"]) == 64


def test_a_label_in_the_path_beats_the_header(gateway: Gateway) -> None:
    headers = {"turnout-variant": "canary"}
    assert predictions(gateway, "number", ROWS, **headers) == [[2.0]]
    assert predictions(gateway, "number/labels/stable", ROWS, **headers) == [[1.0]]


def test_the_split_and_the_counts_are_those_of_v2(gateway: Gateway) -> None:
    before = {variant: counted(gateway, route="halves", variant=variant) for variant in ("stable", "canary")}
    answers = [predict(gateway, "halves", ROWS) for _ in range(40)]
    variants = [answer.headers["turnout-variant"] for answer in answers]
    for variant, value in (("stable", 1.0), ("canary", 2.0)):
        assert 0 < variants.count(variant) < 40
        assert all(
            answer.json() == {"predictions": [[value]]}
            for answer in answers
            if answer.headers["turnout-variant"] == variant
        )
        wait_counted(gateway, before[variant] + variants.count(variant), route="halves", variant=variant)
    assert counted(gateway, route="halves") == sum(before.values()) + 40


def test_refusals_are_counted(gateway: Gateway) -> None:
    before = counted(gateway, route="sum", code="400")
    predict(gateway, "sum", {"instances": 7})
    predict(gateway, "sum", {"instances": [[1.0]]})
    wait_counted(gateway, before + 2, route="sum", code="400")


def test_large_and_compressed_bodies(gateway: Gateway) -> None:
    rows = np.random.default_rng(0).random((2500, 16)).astype(np.float32).tolist()
    content = json.dumps({"instances": rows}).encode()
    assert 256 * 1024 < len(content) < BODY_LIMIT
    url = f"{gateway.data}/v1/models/wide:predict"
    assert httpx.post(url, content=content, timeout=20).json() == {"predictions": rows}
    squeezed = httpx.post(
        url, content=gzip.compress(content), headers={"content-encoding": "gzip"}, timeout=20
    )
    assert squeezed.headers["content-encoding"] == "gzip"
    assert squeezed.json() == {"predictions": rows}
    rows[-1][-1] = "x"
    wrong = httpx.post(url, json={"instances": rows}, timeout=20)
    assert wrong.status_code == 400
    assert "element 39999 of input 'input', a string, is no FP32" in wrong.json()["error"]


def test_status(gateway: Gateway) -> None:
    def status(path: str) -> tuple[int, dict[str, Any]]:
        response = httpx.get(f"{gateway.data}/v1/models/{path}", timeout=20)
        return response.status_code, response.json()

    available = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    one, two = {"version": "1", **available}, {"version": "2", **available}
    code, document = status("strict")
    assert (code, document["ready"]) == (200, True)
    assert sorted(document["model_version_status"], key=lambda entry: entry["version"]) == [one, two]
    canary = {"name": "strict", "ready": True, "model_version_status": [two]}
    assert status("strict/labels/canary") == (200, canary)
    assert status("strict/versions/2") == (200, canary)
    assert status("strict/versions/9")[0] == 404
    assert status("nobody") == (404, {"error": "Request for unknown model: 'nobody' is not found"})


def test_metadata(gateway: Gateway) -> None:
    document = httpx.get(f"{gateway.data}/v1/models/columns/metadata", timeout=20).json()
    assert document["model_spec"] == {"name": "columns", "signature_name": "", "version": "1"}
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    shape = {"dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False}
    assert signature["inputs"] == {
        "age": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "age"},
        "town": {"dtype": "DT_STRING", "tensor_shape": shape, "name": "town"},
    }
    assert sorted(signature["outputs"]) == ["a", "t"]
    for path, version in (("labels/canary", "2"), ("versions/3", "3")):
        found = httpx.get(f"{gateway.data}/v1/models/number/{path}/metadata", timeout=20).json()
        assert found["model_spec"]["version"] == version


def test_what_kserve_asks_of_a_server(gateway: Gateway) -> None:
    assert httpx.get(f"{gateway.data}/", timeout=20).json() == {"status": "alive"}
    assert "number" in httpx.get(f"{gateway.data}/v1/models", timeout=20).json()["models"]


@dataclass(frozen=True)
class Bad:
    """A request and its answer; it is a POST to a route's `:predict` unless it says otherwise."""

    id: str
    status: int
    text: str
    document: Any = None
    content: bytes = b""
    target: str = "number"
    path: str = ""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


UNKNOWN = "Request for unknown model: 'nobody' is not found"
DEEP = b'{"instances":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
BAD = [
    Bad("unknown route", 404, UNKNOWN, ROWS, target="nobody"),
    Bad("unknown route, classify", 404, UNKNOWN, path="/v1/models/nobody:classify"),
    Bad("classify", 400, "'number' has no signature for :classify", path="/v1/models/number:classify"),
    Bad("regress", 400, "'number' has no signature for :regress", path="/v1/models/number/versions/1:regress"),
    Bad("explain", 400, "'number' has no signature for :explain", path="/v1/models/number:explain"),
    Bad("another verb", 400, "model 'number:guess' is no name", path="/v1/models/number:guess", method="GET"),
    Bad("no name", 400, "model '..' is no name", ROWS, target=".."),
    Bad("no label", 400, "label '-x' is no name", ROWS, target="number/labels/-x"),
    Bad("GET", 405, "use POST", path="/v1/models/number:predict", method="GET"),
    Bad("nothing there", 404, "there is nothing at /v1/nothing", path="/v1/nothing"),
    Bad("overrides not allowed", 403, "set overrides: true", ROWS, target="strict/labels/canary"),
    Bad("unknown label", 404, "route 'number' has no variant 'blue' (it has: canary, stable)", ROWS,
        target="number/labels/blue"),
    Bad("unknown label, status", 404, "has no variant 'blue'", path="/v1/models/number/labels/blue", method="GET"),
    Bad("unknown version", 404, "99", ROWS, target="number/versions/99"),
    Bad("versions are off", 404, "does not serve explicit versions", ROWS, target="strict/versions/2"),
    Bad("no traffic", 503, "takes no traffic", ROWS, target="idle"),
    Bad("empty", 400, "the body is empty"),
    Bad("no JSON", 400, "the request is not valid: Input data was truncated", content=b"{"),
    Bad("not UTF-8", 400, "the request is not valid", content=b'{"instances":["\xff"]}'),
    Bad("no object", 400, "Expected `object`, got `array`", []),
    Bad("neither", 400, "either 'instances' (rows) or 'inputs' (columns)", {}),
    Bad("both", 400, "either 'instances' (rows) or 'inputs' (columns)", {"instances": [], "inputs": []}),
    Bad("instances no list", 400, "Expected `array`, got `object`", {"instances": {}}),
    Bad("another signature", 400, "there is no signature 'other'", ROWS | {"signature_name": "other"}),
    Bad("signature no string", 400, "Expected `str | null`", ROWS | {"signature_name": 1}),
    Bad("too deep for JSON", 400, "nested too deeply", content=DEEP),
    Bad("too deep for a tensor", 400, "input 'input' is nested more than 32 deep",
        content=b'{"instances":' + b"[" * 40 + b"]" * 40 + b"}"),
    Bad("NaN", 400, "NaN is no JSON number", content=b'{"instances":[[NaN,0,0,0]]}'),
    Bad("Infinity", 400, "Infinity is no JSON number", content=b'{"inputs":[[Infinity,0,0,0]]}'),
    Bad("1e999", 400, "the request is not valid", content=b'{"instances":[[1e999,0,0,0]]}'),
    Bad("a float too large", 400, "is out of range for FP32", {"instances": [[1e39, 0, 0, 0]]}),
    Bad("an integer too large", 400, "is out of range for UINT8", {"instances": [256]}, target="uint8-1"),
    Bad("an integer below", 400, "is out of range for UINT8", {"instances": [-1]}, target="uint8-1"),
    Bad("2^63", 400, "is out of range for INT64", {"instances": [2**63]}, target="int64-1"),
    Bad("400 digits", 400, "is out of range for INT64", {"instances": [10**400]}, target="int64-1"),
    Bad("a float for an integer", 400, "element 0 of input 'input', 1.5, is no integer", {"instances": [1.5]},
        target="int64-1"),
    Bad("a boolean for a number", 400, "element 1 of input 'input', a boolean, is no FP32",
        {"instances": [0.5, True]}, target="fp32-1"),
    Bad("a number for a boolean", 400, "element 0 of input 'input', a number, is no BOOL", {"instances": [1]},
        target="bool-1"),
    Bad("a string for a number", 400, "a string, is no FP64", {"instances": ["1"]}, target="fp64-1"),
    Bad("null", 400, "element 2 of input 'input', null, is no FP32", {"instances": [[1, 2, None, 4]]}),
    Bad("null as the value", 400, "element 0 of input 'input', null, is no FP32", {"inputs": None}),
    Bad("a number for a string", 400, "element 0 of input 'input', a number, is no BYTES", {"instances": [1]},
        target="bytes-1"),
    Bad("no base64", 400, "element 0 of input 'input' is not valid base64", {"instances": [{"b64": "*"}]},
        target="bytes-1"),
    Bad("base64 for a number", 400, "element 0 of input 'input', an object, is no FP32",
        {"instances": [{"b64": "AA=="}]}, target="fp32-1"),
    Bad("base64 of no text", 400, "has an element that is not UTF-8", {"instances": [{"b64": "/w=="}]},
        target="bytes-1"),
    Bad("16 bits", 400, "input 'input' is FP16, which JSON cannot carry", {"instances": [[0.5] * 4]}, target="half"),
    Bad("ragged", 400, "dimension 1 is not 4 everywhere", {"instances": [ROW, ROW[1:]]}),
    Bad("ragged in depth", 400, "element 1 of input 'input', a list, is no FP32", {"instances": [0.5, [1]]},
        target="fp32-1"),
    Bad("ragged, number behind list", 400, "dimension 1 is not 1 everywhere", {"instances": [[1], 0.5]},
        target="fp32-2"),
    Bad("another shape", 400, "Expected [-1,4], got [1,3]", {"instances": [ROW[1:]]}),
    Bad("a row where rows are wanted", 400, "Expected [-1,4], got [4]", {"instances": ROW}),
    Bad("no rows of no width", 400, "Expected [-1,4], got [0]", {"instances": []}),
    Bad("an unknown input", 400, "unexpected inference input 'x'", {"instances": [{"x": ROW}]}),
    Bad("a missing input", 400, "Missing required input(s) 'b'", {"instances": [{"a": [1, 2, 3]}]}, target="sum"),
    Bad("an input too many", 400, "Unexpected input(s) 'c'",
        {"inputs": {"a": [[1, 2, 3]], "b": [[1, 2, 3]], "c": [[1]]}}, target="sum"),
    Bad("no names for several inputs", 400, "the model has 2 inputs ('a', 'b'): send objects that name them",
        {"instances": [[1, 2, 3]]}, target="sum"),
    Bad("names that differ", 400, "row 1 does not have the same names as row 0",
        {"instances": [{"a": [1, 2, 3], "b": [1, 2, 3]}, {"a": [1, 2, 3]}]}, target="sum"),
    Bad("a row without names", 400, "row 1 does not have the same names as row 0",
        {"instances": [{"input": ROW}, ROW]}),
    Bad("rows that disagree", 400, "its dimension 'batch' is 1, but that of input 'a' is 2",
        {"inputs": {"a": [[1, 2, 3]] * 2, "b": [[1, 2, 3]]}}, target="sum"),
    Bad("rows for what has none", 400, "unexpected shape for input 'state'",
        {"instances": [{"input": [1.0], "state": [[1.0] * 8], "sr": 16}]}, target="state"),
    Bad("an answer without rows", 400, "the outputs have not one row for each row of the request ('mean' [])",
        {"instances": [[1.0, 2.0]]}, target="mean"),
    Bad("not finite", 500, "output 'output' has values that are not finite", {"instances": [[-1.0, 1.0]]},
        target="log"),
    Bad("too large", 413, "the body has at least", content=b" " * (BODY_LIMIT + 1)),
    Bad("an unknown encoding", 415, "br", ROWS, headers={"content-encoding": "br"}),
    Bad("no gzip", 400, "gzip", ROWS, headers={"content-encoding": "gzip"}),
    Bad("a gzip bomb", 413, "behind its gzip", content=gzip.compress(bytes(10 * BODY_LIMIT)),
        headers={"content-encoding": "gzip"}),
]  # fmt: skip


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.id) for bad in BAD])
def test_bad_requests(gateway: Gateway, bad: Bad) -> None:
    content = bad.content if bad.document is None else json.dumps(bad.document).encode()
    target = (bad.path or f"/v1/models/{bad.target}:predict").encode()
    with httpx.Client(base_url=gateway.data, timeout=20) as client:
        response = client.request(
            bad.method, "/", content=content, headers=bad.headers, extensions={"target": target}
        )
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert (response.status_code, list(document)) == (bad.status, ["error"]), document
    assert bad.text in document["error"]
    assert len(document["error"]) < 1000
    assert ("retry-after" in response.headers) == (bad.status == 503)
