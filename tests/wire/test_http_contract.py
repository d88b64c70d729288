"""The HTTP of a real gateway: every error of the protocol's table and every kind of bad input, to the letter.

After each bad request a good one is answered on a connection of its own, and no worker logs a traceback.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.servers.gateway import Gateway
from tests.wire.served import BODY_LIMIT as MEGABYTE
from tests.wire.served import gateway, goes_on_serving, number, tensor

__all__ = ["gateway", "goes_on_serving"]


def two(**second: Any) -> dict[str, Any]:
    a = tensor("a", (1, 3), data=[1.0] * 3)
    return {"inputs": [a, tensor("b", (1, 3), data=[1.0] * 3) | second]}


def text_of(**fields: str) -> bytes:
    """A request with parts that Python's own JSON would not write."""
    parts = {"name": '"input"', "shape": "[1,4]", "datatype": '"FP32"', "data": "[0,0,0,0]"} | fields
    return ('{"inputs":[{' + ",".join(f'"{key}":{value}' for key, value in parts.items()) + "}]}").encode()


def binary(document: dict[str, Any], raw: bytes, length: int | str | None = None) -> dict[str, Any]:
    """What a request with binary data is sent by; `length` lies about the JSON's."""
    head = json.dumps(document).encode()
    header = str(len(head) if length is None else length)
    return {"content": head + raw, "headers": {"Inference-Header-Content-Length": header}}


def sized(size: int, **more: Any) -> dict[str, Any]:
    given = tensor(**more)
    del given["data"]
    return {"inputs": [given | {"parameters": {"binary_data_size": size}}]}


@dataclass(frozen=True)
class Bad:
    """A request and the one answer that it may get; it is a POST to a route's infer unless it says otherwise."""

    id: str
    status: int
    text: str
    content: bytes | None = None
    document: Any = None
    route: str = "number"
    path: str = ""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    expected_headers: dict[str, str] = field(default_factory=dict)


def raw(id: str, status: int, text: str, sent: dict[str, Any], **more: Any) -> Bad:
    return Bad(id, status, text, content=sent["content"], headers=sent["headers"], **more)


INFER = "/v2/models/number/infer"
UNKNOWN = "Request for unknown model: 'nobody' is not found"
NO_NAME = "is no name: models and versions match [A-Za-z0-9]"
DEEP = b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}"

NAMES = [
    Bad("unknown route", 404, UNKNOWN, document=number(), route="nobody"),
    Bad("unknown route, metadata", 404, UNKNOWN, method="GET", path="/v2/models/nobody"),
    Bad("unknown route, ready", 404, UNKNOWN, method="GET", path="/v2/models/nobody/ready"),
    Bad("unknown route, config", 404, UNKNOWN, method="GET", path="/v2/models/nobody/config"),
    Bad("unknown route, statistics", 404, UNKNOWN, method="GET", path="/v2/models/nobody/stats"),
    Bad("unknown route, load", 404, UNKNOWN, path="/v2/repository/models/nobody/load"),
    Bad("unknown route, unload", 404, UNKNOWN, path="/v2/repository/models/nobody/unload"),
    Bad("unknown version", 404, "'number' version 99 is not found", document=number(), route="number/versions/99"),
    Bad("unknown version, metadata", 404, "'number' version 99 is not found", method="GET",
        path="/v2/models/number/versions/99"),
    Bad("a version that is not known", 404, "'known' version 2 is not found", document=number(),
        route="known/versions/2"),
    Bad("unknown version, load", 404, "'number' version 98 is not found",
        document={"parameters": {"version": "98"}}, path="/v2/repository/models/number/load"),
    Bad("unknown variant", 404, "route 'number' has no variant 'nope' (it has: stable)", document=number(),
        headers={"turnout-variant": "nope"}),
    Bad("variant where none may be named", 403, "route 'sum' does not allow turnout-variant", document=two(),
        route="sum", headers={"turnout-variant": "stable"}),
    Bad("two dots", 400, f"'..' {NO_NAME}", document=number(), route=".."),
    Bad("two dots as a version", 400, f"'..' {NO_NAME}", document=number(), route="number/versions/.."),
    Bad("two dots as a version, metadata", 400, "version '..' is no name", method="GET",
        path="/v2/models/number/versions/.."),
    Bad("two dots as a version, load", 400, "version '../x' is no name",
        document={"parameters": {"version": "../x"}}, path="/v2/repository/models/number/load"),
    Bad("encoded slash", 400, "percent-encoding is not accepted", document=number(), route="a%2fb"),
    Bad("encoded dots", 400, "percent-encoding is not accepted", method="GET", path="/v2/models/%2e%2e/config"),
    Bad("encoded letter", 400, "percent-encoding is not accepted", document=number(), route="%6eumber"),
    Bad("300 characters", 400, NO_NAME, document=number(), route="a" * 300),
    Bad("300 characters, metadata", 404, "is not found", method="GET", path="/v2/models/" + "a" * 300),
    Bad("300 characters as a version", 400, "is no name", method="GET",
        path="/v2/models/number/versions/" + "a" * 300),
    Bad("nothing there", 404, "there is nothing at /v3", method="GET", path="/v3"),
    Bad("slash at the end", 404, f"there is nothing at {INFER}/", document=number(), path=f"{INFER}/"),
    Bad("two slashes", 404, "there is nothing at /v2//models", method="GET", path="/v2//models"),
]  # fmt: skip
METHODS = [
    Bad(f"{method} for infer", 405, f"{method} is not allowed for {INFER}: use POST", method=method, path=INFER,
        expected_headers={"allow": "POST"})
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS")
] + [
    Bad("POST for metadata", 405, "POST is not allowed for /v2: use GET, HEAD", path="/v2",
        expected_headers={"allow": "GET, HEAD"}),
    Bad("GET for the index", 405, "GET is not allowed for /v2/repository/index: use POST", method="GET",
        path="/v2/repository/index", expected_headers={"allow": "POST"}),
]  # fmt: skip
TENSORS = [
    Bad("unknown datatype", 400, "input 'input' has unknown data-type 'FLOAT'", document=number(datatype="FLOAT")),
    Bad("wrong datatype", 400, "inference input 'input' data-type is 'FP64', but model 'number' expects 'FP32'",
        document=number(datatype="FP64")),
    Bad("wrong shape", 400, "unexpected shape for input 'input' for model 'number'. Expected [-1,4], got [4,1]",
        document=number(shape=[4, 1])),
    Bad("wrong rank", 400, "Expected [-1,4], got [4]", document=number(shape=[4])),
    Bad("shape and data differ", 400, "has shape [2,4], which takes 8 elements, but its data has 4",
        document=number(shape=[2, 4])),
    Bad("nested data of another shape", 400, "the nested data of input 'input' does not have its shape [2,4]",
        document=number(shape=[2, 4], data=[[0.0] * 4, [0.0] * 3])),
    Bad("missing input", 400, "expected 2 inputs but got 1 inputs for model 'sum'. Missing required input(s) 'b'",
        document={"inputs": [tensor("a", (1, 3), data=[1.0] * 3)]}, route="sum"),
    Bad("extra input", 400, "expected 1 inputs but got 2 inputs for model 'number'. Unexpected input(s) 'more'",
        document={"inputs": [tensor(), tensor("more")]}),
    Bad("wrong input", 400, "unexpected inference input 'x' for model 'number': its inputs are 'input'",
        document=number(name="x")),
    Bad("an input twice", 400, "input 'a' for model 'sum' is given more than once", document=two(name="a"),
        route="sum"),
    Bad("batches differ", 400, "its dimension 'batch' is 2, but that of input 'a' is 1",
        document=two(shape=[2, 3], data=[1.0] * 6), route="sum"),
    Bad("no inputs", 400, "expected 1 inputs but got 0 inputs", document={"inputs": []}),
    Bad("300 inputs", 400, "300 inputs are given, the limit is 256", document={"inputs": [tensor()] * 300}),
    Bad("unknown output", 400, "unexpected inference output 'y' for model 'number': its outputs are 'output'",
        document=number() | {"outputs": [{"name": "y"}]}),
    Bad("neither data nor size", 400, "input 'input' has no data", document=number(data=None)),
    Bad("data and size", 400, "has both data and binary_data_size",
        document=number(parameters={"binary_data_size": 16})),
    Bad("shared memory", 400, "names a shared memory region, which is not supported here",
        document=number(data=None, parameters={"shared_memory_region": "r"})),
]  # fmt: skip
NUMBERS = [
    Bad("NaN", 400, "the request is not valid: JSON is malformed", content=text_of(data="[NaN,0,0,0]")),
    Bad("Infinity", 400, "the request is not valid: JSON is malformed", content=text_of(data="[Infinity,0,0,0]")),
    Bad("1e999", 400, "the data of input 'input' are no FP32 tensor: Number out of range",
        content=text_of(data="[1e999,0,0,0]")),
    Bad("too large for FP32", 400, "element 1 of input 'input', 1e+39, is out of range for FP32",
        content=text_of(data="[0,1e39,0,0]")),
    Bad("2^64 in a UINT64", 400, f"element 0 of input 'input', {2**64}, is out of range for UINT64",
        content=text_of(datatype='"UINT64"', data=f"[{2**64},0,0,0]")),
    Bad("256 in a UINT8", 400, "element 1 of input 'input', 256, is out of range for UINT8", route="small",
        content=text_of(datatype='"UINT8"', shape="[1,2]", data="[0,256]")),
    Bad("-1 in a UINT8", 400, "element 0 of input 'input', -1, is out of range for UINT8", route="small",
        content=text_of(datatype='"UINT8"', shape="[1,2]", data="[-1,0]")),
    Bad("1.5 in a UINT8", 400, "element 0 of input 'input', 1.5, is no integer for UINT8", route="small",
        content=text_of(datatype='"UINT8"', shape="[1,2]", data="[1.5,0]")),
    Bad("strings for numbers", 400, "the data of input 'input' are no FP32 tensor: Expected `int | float`, got `str`",
        document=number(data=["a"] * 4)),
    Bad("dimensions whose product passes 2^64", 400, "takes 4611686018427387904 elements, but its data has 4",
        document=number(shape=[2**31, 2**31])),
    Bad("a dimension of 2^64", 400, "Expected `int` <= 2147483648 - at `$.inputs[0].shape[0]`",
        content=text_of(shape=f"[{2**64},0]")),
    Bad("a negative dimension", 400, "Expected `int` >= 0 - at `$.inputs[0].shape[0]`",
        document=number(shape=[-1, 4])),
    Bad("40 dimensions", 400, "Expected `array` of length <= 32", document=number(shape=[1] * 40)),
    Bad("FP16 in JSON", 400, "input 'input' is FP16, which JSON cannot carry", document=number(datatype="FP16")),
]  # fmt: skip
BODIES = [
    Bad("empty", 400, "the body is empty", content=b""),
    Bad("no JSON", 400, "the request is not valid: Input data was truncated", content=b"{"),
    Bad("no UTF-8", 400, "the request is not valid", content=text_of(name='"\xff"').replace(b"\xc3\xbf", b"\xff")),
    Bad("no object", 400, "the request is not valid: Expected `object`, got `array`", content=b"[1]"),
    Bad("no inputs", 400, "missing required field `inputs`", content=b"{}"),
    Bad("10,000 deep", 400, "the request is not valid", content=DEEP),
    Bad("10,000 deep data", 400, "the request is not valid", content=text_of(data="[" * 10_000 + "]" * 10_000)),
    Bad("over the limit", 413, f"the limit is {MEGABYTE}: send less, or raise --body-limit",
        content=bytes(MEGABYTE + 1)),
    Bad("over the limit, repository", 413, f"the body has more than {MEGABYTE} bytes", content=b" " * (2 * MEGABYTE),
        path="/v2/repository/index"),
    Bad("no JSON, repository", 400, "the request is not valid: Input data was truncated", content=b"{",
        path="/v2/repository/models/number/load"),
    Bad("10,000 deep, repository", 400, "the request is not valid", content=DEEP, path="/v2/repository/index"),
    Bad("unknown encoding", 415, "Content-Encoding 'br' is not supported: use gzip or deflate", content=b"x",
        headers={"content-encoding": "br"}),
    Bad("two encodings", 415, "Content-Encoding 'gzip, gzip' is not supported", content=b"x",
        headers={"content-encoding": "gzip, gzip"}),
    Bad("no gzip", 400, "the body is no valid gzip data", content=b"hello", headers={"content-encoding": "gzip"}),
    Bad("gzip that ends early", 400, "the body's gzip data ends early",
        content=gzip.compress(text_of())[:-4], headers={"content-encoding": "gzip"}),
    Bad("gzip bomb", 413, f"the body has more than {MEGABYTE} bytes behind its gzip, the limit",
        content=gzip.compress(bytes(500 * MEGABYTE), 9), headers={"content-encoding": "gzip"}),
    Bad("deflate bomb", 413, f"the body has more than {MEGABYTE} bytes behind its deflate, the limit",
        content=zlib.compress(bytes(100 * MEGABYTE), 9), headers={"content-encoding": "deflate"}),
]  # fmt: skip
LENGTHS = [
    raw("header length past the body", 400, "Inference-Header-Content-Length 100000 is not in 0..",
        binary(sized(16), bytes(16), 100_000)),
    raw("header length negative", 400, "Inference-Header-Content-Length must be a number of bytes",
        binary(sized(16), bytes(16), -1)),
    raw("header length no number", 400, "Inference-Header-Content-Length must be a number of bytes",
        binary(sized(16), bytes(16), "1e3")),
    raw("header length of 30 digits", 400, "Inference-Header-Content-Length must be a number of bytes",
        binary(sized(16), bytes(16), "9" * 30)),
    raw("header length in the middle", 400, "the request is not valid", binary(sized(16), bytes(16), 20)),
    raw("size past the body", 400, "has a binary_data_size of 16 bytes, but 8 bytes of binary data are left",
        binary(sized(16), bytes(8))),
    raw("size of another shape", 400, "takes 16 bytes, but its binary_data_size is 8", binary(sized(8), bytes(8))),
    raw("bytes left over", 400, "4 bytes are left over behind the inputs", binary(sized(16), bytes(20))),
    raw("size negative", 400, "Expected `int` >= 0", binary(sized(-1), bytes(16))),
    raw("size of 2^64", 400, "the request is not valid", binary(sized(2**64), bytes(16))),
    raw("BYTES whose lengths lie", 400, "element 0 of input 'input' passes the end of its 8 bytes",
        binary(sized(8, datatype="BYTES", shape=[1]), b"\xff\xff\xff\x7fabcd")),
    raw("raw body of odd length", 400, "the raw body for input 'input' has 5 bytes", binary({}, b"abc", 0)),
    raw("raw body for two inputs", 400, "Raw binary requests need a model with exactly one input",
        binary({}, bytes(14), 0), route="sum"),
]  # fmt: skip
DEADLINES = [
    Bad("deadline passed", 504, "the request's deadline has passed before its result was there", route="slow",
        document=number() | {"parameters": {"timeout": 50_000}}),
    Bad("deadline of 0", 504, "the request's deadline has passed", document=number() | {"parameters": {"timeout": 0}}),
    Bad("deadline below 0", 400, "the parameter timeout must be in microseconds",
        document=number() | {"parameters": {"timeout": -1}}),
    Bad("deadline no number", 400, "the parameter timeout must be in microseconds",
        document=number() | {"parameters": {"timeout": "1s"}}),
    Bad("answer is not finite", 500, "output 'output' has values that are not finite", route="log",
        document=number(shape=[1, 2], data=[-1.0, 1.0])),
    Bad("no traffic", 503, "route 'idle' takes no traffic: all its weights are 0", route="idle",
        document=number(), expected_headers={"retry-after": "5"}),
]  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bad, id=bad.id)
        for bad in (*NAMES, *METHODS, *TENSORS, *NUMBERS, *BODIES, *LENGTHS, *DEADLINES)
    ],
)
def test_bad_requests(gateway: Gateway, bad: Bad) -> None:
    content = bad.content if bad.document is None else json.dumps(bad.document).encode()
    # httpx would normalise the path, so it goes as the target that is written to the wire.
    target = (bad.path or f"/v2/models/{bad.route}/infer").encode()
    with httpx.Client(base_url=gateway.data, timeout=20) as client:
        response = client.request(
            bad.method, "/", content=content, headers=bad.headers, extensions={"target": target}
        )
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert (response.status_code, list(document)) == (bad.status, ["error"]), document
    assert bad.text in document["error"]
    assert len(document["error"]) < 1000
    for name, value in bad.expected_headers.items():
        assert response.headers[name] == value
