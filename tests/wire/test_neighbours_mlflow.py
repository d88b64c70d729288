"""The protocol of MLflow's scoring server against a real gateway and real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway
from tests.wire.neighbours_served import (
    BODY_LIMIT,
    counted,
    gateway,
    goes_on_serving,
    invoke,
    predictions,
    wait_counted,
)

__all__ = ["gateway", "goes_on_serving"]

ROW = [0.0] * 4
_FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def answered(gateway: Gateway, route: str, document: Any, **headers: str) -> Any:
    response = invoke(gateway, route, document, **headers)
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


@given(rows=st.lists(st.lists(_FLOATS, min_size=3, max_size=3), min_size=1, max_size=4), data=st.data())
@settings(max_examples=50, deadline=None)
def test_every_form_is_answered_as_v2_answers_it(
    gateway: Gateway, rows: list[list[float]], data: st.DataObject
) -> None:
    flat = [value for row in rows for value in row]
    tensor = {"name": "input", "shape": [len(rows), 3], "datatype": "FP32", "data": flat}
    url = f"{gateway.data}/v2/models/fp32-2/infer"
    (output,) = httpx.post(url, json={"inputs": [tensor]}, timeout=20).json()["outputs"]
    expected = [output["data"][start : start + 3] for start in range(0, len(flat), 3)]
    names = data.draw(st.permutations(["x", "y", "input"]))
    records = [{"output": row} for row in expected]
    split = {"columns": names, "index": list(range(len(rows))), "data": rows}
    assert answered(gateway, "fp32-2", {"dataframe_split": split}) == records
    assert answered(gateway, "fp32-2", {"dataframe_split": {"data": rows}}) == records
    as_objects = [dict(zip(names, row, strict=True)) for row in rows]
    assert answered(gateway, "fp32-2", {"dataframe_records": as_objects}) == records
    assert answered(gateway, "fp32-2", {"instances": rows}) == {"output": expected}
    assert answered(gateway, "fp32-2", {"instances": [{"input": row} for row in rows]}) == {
        "output": expected
    }
    assert answered(gateway, "fp32-2", {"inputs": rows}) == {"output": expected}
    assert answered(gateway, "fp32-2", {"inputs": {"input": rows}}) == {"output": expected}


def test_a_column_for_each_input(gateway: Gateway) -> None:
    split = {"columns": ["town", "age"], "data": [["Bern", 33], ["Kyiv", 44.5]]}
    expected = [{"a": 33.0, "t": "Bern"}, {"a": 44.5, "t": "Kyiv"}]
    assert answered(gateway, "columns", {"dataframe_split": split}) == expected
    records = [{"age": 33, "town": "Bern"}, {"town": "Kyiv", "age": 44.5}]
    assert answered(gateway, "columns", {"dataframe_records": records}) == expected
    tensors = {"age": [[33.0], [44.5]], "town": [["Bern"], ["Kyiv"]]}
    assert answered(gateway, "columns", {"inputs": tensors}) == {"a": tensors["age"], "t": tensors["town"]}


def test_cells_that_are_lists(gateway: Gateway) -> None:
    a, b = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    split = {"columns": ["b", "a"], "data": [[b, a], [a, a]]}
    expected = [{"sum": [5.0, 7.0, 9.0]}, {"sum": [2.0, 4.0, 6.0]}]
    assert answered(gateway, "sum", {"dataframe_split": split}) == expected
    one = {"columns": ["input"], "data": [[[1.0, 2.0]], [[3.0, 4.0]]]}
    assert answered(gateway, "fp32-2", {"dataframe_split": one}) == [
        {"output": [1.0, 2.0]},
        {"output": [3.0, 4.0]},
    ]


def test_the_only_column_by_the_inputs_name(gateway: Gateway) -> None:
    split = {"columns": ["input"], "data": [[1.0], [2.0]]}
    assert answered(gateway, "fp32-1", {"dataframe_split": split}) == [{"output": 1.0}, {"output": 2.0}]


def test_one_record_for_each_row(gateway: Gateway) -> None:
    split = {"data": [[1.0, 2.0], [3.0, 4.0]]}
    assert answered(gateway, "classes", {"dataframe_split": split}) == [
        {"total": 3.0, "same": [1.0, 2.0]},
        {"total": 7.0, "same": [3.0, 4.0]},
    ]
    assert answered(gateway, "mean", {"inputs": split["data"]}) == {"mean": 2.5}


def test_no_rows(gateway: Gateway) -> None:
    assert answered(gateway, "fp32-1", {"dataframe_split": {"columns": ["input"], "data": []}}) == []
    assert answered(gateway, "fp32-1", {"dataframe_records": []}) == []
    assert answered(gateway, "fp32-1", {"inputs": []}) == {"output": []}


def test_headers_choose_and_tell(gateway: Gateway) -> None:
    response = invoke(gateway, "number", {"inputs": [ROW]}, **{"turnout-variant": "canary"})
    assert response.json() == {"predictions": {"output": [[2.0]]}}
    assert (response.headers["turnout-variant"], response.headers["turnout-version"]) == ("canary", "2")


def test_params_carry_the_sticky_key(gateway: Gateway) -> None:
    def variant(user: Any) -> str:
        document = {"inputs": [ROW], "params": {"user": user, "temperature": [0.5, {}]}}
        return invoke(gateway, "halves", document).headers["turnout-variant"]

    before = counted(gateway, route="halves")
    found = {user: {variant(user) for _ in range(5)} for user in range(20)}
    assert all(len(variants) == 1 for variants in found.values())
    assert set.union(*found.values()) == {"stable", "canary"}
    wait_counted(gateway, before + 100, route="halves")


def test_server(gateway: Gateway) -> None:
    for path in ("/ping", "/health"):
        assert httpx.get(gateway.data + path, timeout=20).status_code == 200
    version = httpx.get(f"{gateway.data}/version", timeout=20)
    metadata = httpx.get(f"{gateway.data}/v2", timeout=20).json()
    assert version.text == metadata["version"]


def test_the_only_route_needs_no_name(gateways: Callable[..., Gateway]) -> None:
    one = gateways(
        "registries: {local: {type: directory, path: ./models}}\n"
        "routes: {only: {variants: {stable: {model: local/number@1}}}}\n",
        "--workers",
        "1",
    )
    source = models.save(models.constant(4.0), one.directory / "model.onnx")
    publish(one.directory / "models", "number", source, version="1")
    one.start()
    response = httpx.post(f"{one.data}/invocations", json={"inputs": [ROW]}, timeout=20)
    assert response.json() == {"predictions": {"output": [[4.0]]}}


@dataclass(frozen=True)
class Bad:
    """A POST to `/invocations` and its answer."""

    id: str
    status: int
    text: str
    document: Any = None
    content: bytes = b""
    route: str | None = "number"
    headers: dict[str, str] = field(default_factory=dict)
    code: str = "BAD_REQUEST"


def split(columns: list[Any] | None, *rows: Any) -> dict[str, Any]:
    return {"dataframe_split": {"data": list(rows)} | ({"columns": columns} if columns is not None else {})}


CSV = {"content-type": "text/csv"}
UNKNOWN = "Request for unknown model: 'nobody' is not found"
BAD = [
    Bad("unknown route", 404, UNKNOWN, {"inputs": [ROW]}, route="nobody", code="RESOURCE_DOES_NOT_EXIST"),
    Bad("no route is named", 400, "there are 31 routes: name one in the header turnout-route (bool-1, bool-2",
        {"inputs": [ROW]}, route=None),
    Bad("no name of a route", 400, "turnout-route '../x' is no name", {"inputs": [ROW]}, route="../x"),
    Bad("overrides not allowed", 403, "set overrides: true", {"inputs": [ROW]}, route="strict",
        headers={"turnout-variant": "canary"}, code="PERMISSION_DENIED"),
    Bad("no traffic", 503, "takes no traffic", {"inputs": [ROW]}, route="idle", code="TEMPORARILY_UNAVAILABLE"),
    Bad("not finite", 500, "output 'output' has values that are not finite", {"inputs": [[-1.0, 1.0]]}, route="log",
        code="INTERNAL_ERROR"),
    Bad("CSV", 415, "content-type 'text/csv' is not taken: send application/json", content=b"a,b\n1,2\n",
        headers=CSV),
    Bad("a form", 415, "send application/json", {"inputs": []},
        headers={"content-type": "application/x-www-form-urlencoded"}),
    Bad("another charset", 415, "send application/json in UTF-8", {"inputs": []},
        headers={"content-type": "application/json; charset=latin-1"}),
    Bad("too large", 413, "the body has at least", content=b" " * (BODY_LIMIT + 1)),
    Bad("empty", 400, "the body is empty"),
    Bad("no JSON", 400, "the request is not valid", content=b"x"),
    Bad("no object", 400, "Expected `object`, got `array`", []),
    Bad("NaN", 400, "NaN is no JSON number", content=b'{"inputs":[[NaN,0,0,0]]}'),
    Bad("too deep", 400, "nested too deeply", content=b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    Bad("none", 400, "the request has none of dataframe_split, dataframe_records, instances, inputs", {"messages": []}),
    Bad("two", 400, "the request has instances and inputs of", {"instances": [ROW], "inputs": [ROW]}),
    Bad("params no object", 400, "Expected `object | null`", {"inputs": [ROW], "params": [1]}),
    Bad("split no object", 400, "$.dataframe_split", {"dataframe_split": [1]}),
    Bad("split without data", 400, "missing required field `data`", {"dataframe_split": {"columns": ["a"]}}),
    Bad("split with more", 400, "unknown field `rows`", {"dataframe_split": {"data": [], "rows": []}}),
    Bad("records no list", 400, "$.dataframe_records", {"dataframe_records": {}}),
    Bad("a record no object", 400, "$.dataframe_records[1]", {"dataframe_records": [{"a": 1}, 2]}),
    Bad("records that differ", 400, "record 1 does not have the same columns as record 0",
        {"dataframe_records": [{"a": 1}, {"b": 1}]}),
    Bad("a row too short", 400, "row 1 has 3 values, but there are 4 columns", split(list("abcd"), ROW, ROW[1:])),
    Bad("rows that differ", 400, "row 1 has 3 values, but there are 4 columns", split(None, ROW, ROW[1:])),
    Bad("another width", 400, "Expected [-1,4], got [1,3]", split(list("abc"), ROW[1:])),
    Bad("a string for a number", 400, "element 1 of input 'input', a string, is no FP32",
        split(list("abcd"), [0, "1", 0, 0])),
    Bad("null", 400, "element 3 of input 'input', null, is no FP32", split(list("abcd"), [0, 0, 0, None])),
    Bad("a boolean", 400, "a boolean, is no FP32", split(list("abcd"), [0, 0, 0, True])),
    Bad("an integer too large", 400, "is out of range for UINT8", split(["a"], [256]), route="uint8-2"),
    Bad("a missing column", 400, "Missing required input(s) 'town'", split(["age"], [1]), route="columns"),
    Bad("a column too many", 400, "Unexpected input(s) 'name'", split(["age", "town", "name"], [1, "a", "b"]),
        route="columns"),
    Bad("columns without names", 400, "unexpected inference input '0'", split(None, [1, "a"]), route="columns"),
    Bad("a column twice", 400, "column 'age' is given more than once", split(["age", "age"], [1, 2]),
        route="columns"),
    Bad("cells of different widths", 400, "dimension 1 is not 3 everywhere",
        split(["a", "b"], [[1, 2, 3], [1, 2, 3]], [[1, 2], [1, 2, 3]]), route="sum"),
    Bad("an answer without rows", 400, "('mean' []): send tensors, as inputs", split(list("ab"), [1.0, 2.0]),
        route="mean"),
]  # fmt: skip


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.id) for bad in BAD])
def test_bad_requests(gateway: Gateway, bad: Bad) -> None:
    content = bad.content if bad.document is None else json.dumps(bad.document).encode()
    named = {} if bad.route is None else {"turnout-route": bad.route}
    response = httpx.post(
        f"{gateway.data}/invocations", content=content, headers=named | bad.headers, timeout=20
    )
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert response.status_code == bad.status, document
    assert document["error_code"] == bad.code
    assert bad.text in document["message"]
    assert len(response.content) < 1000


def test_only_post(gateway: Gateway) -> None:
    response = httpx.get(f"{gateway.data}/invocations", timeout=20)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_what_names_no_route_is_counted(gateway: Gateway) -> None:
    before = counted(gateway, route="_unknown", code="400")
    httpx.post(f"{gateway.data}/invocations", json={"inputs": [ROW]}, timeout=20)
    wait_counted(gateway, before + 1, route="_unknown", code="400")


def test_both_protocols_take_the_same_rows(gateway: Gateway) -> None:
    rows = [[1.0, 2.0], [3.0, 4.0]]
    outputs = answered(gateway, "classes", {"instances": rows})
    assert predictions(gateway, "classes", {"inputs": rows}) == outputs
