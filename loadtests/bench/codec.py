"""Times the infer codec against the standard library with numpy, what most Python servers do. Run by hand:

    python loadtests/bench/codec.py

Only the ratios of one run mean anything: the machine's noise is in both columns. On a two-core AMD EPYC with
Python 3.11, µs a request (ratio to json + numpy), the best of many:

    floats                  16            256              150,528
    decode flat      3.4 (1.8)     10.4 (5.2)      4,800 (6.4)
    decode nested    5.0 (1.3)     13.2 (4.1)      8,300 (3.6)
    decode binary    3.7 (1.7)      3.6 (15)          20 (1,500)
    check            0.5            0.5              0.5
    encode           2.5 (4.5)     15.2 (7.6)      8,700 (9.2)
    encode binary    2.4 (4.6)      2.4 (45)         2.4 (33,000)

What was tried for decoding and is not used (16 / 256 / 150,528 floats): `data` as msgspec.Raw and a second,
typed decoder 1.5 / 7.3 / 6,500 against 1.2 / 5.9 / 5,600 for typed numbers in one pass; structs tagged by
datatype 1.5 / 8.4 / 6,800; ranges as msgspec constraints 1.6 / 8.4 / 7,800. From list to array: np.array
0.6 / 7.4 / 4,160, np.fromiter 0.8 / 5.8 / 3,000, struct.pack 0.5 / 3.8 / 1,640, which also checks ranges.
The 20 us of a binary image are a copy, for the three headers in four whose length leaves it unaligned.
"""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gateway.serving.engine import Signature, TensorSpec
from gateway.serving.tensors import InferResponse, OutputTensor
from gateway.serving.validation import Checker
from gateway.wire.oip_json import decode_infer, encode_infer

SIZES = (16, 256, 150_528)
"""The tiny and the medium model's row, and an image of 3 x 224 x 224."""
SECONDS = 0.15
"""For one of the repeats that the best is taken of."""


def best_us(function: Callable[[], object], repeats: int = 7) -> float:
    timer = timeit.Timer(function)
    number, took = timer.autorange()
    number = max(1, int(number * SECONDS / took))
    return min(timer.repeat(repeats, number)) / number * 1e6


def json_request(row: list[float], *, nested: bool) -> bytes:
    data: list[Any] = [row] if nested else row
    tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_request(row: list[float]) -> tuple[bytes, int]:
    raw = np.array(row, np.float32).tobytes()
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP32", "parameters": parameters}
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + raw, len(header)


def plain_decode(body: bytes) -> Any:
    (tensor,) = json.loads(body)["inputs"]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def plain_encode(array: Any) -> bytes:
    output = {"name": "y", "datatype": "FP32", "shape": array.shape, "data": array.reshape(-1).tolist()}
    return json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]}).encode()


def show(what: str, size: int, took_us: float, plain_us: float) -> None:
    print(f"{what:<16}{size:>8}{took_us:>12.1f}{plain_us:>12.1f}{plain_us / took_us:>9.1f} x")


def measure(size: int) -> None:
    row = [round(float(value), 6) for value in np.random.default_rng(0).random(size)]
    flat, nested = json_request(row, nested=False), json_request(row, nested=True)
    body, header_length = binary_request(row)
    plain_us = best_us(lambda: plain_decode(flat))
    show("decode flat", size, best_us(lambda: decode_infer(flat, None)), plain_us)
    show(
        "decode nested",
        size,
        best_us(lambda: decode_infer(nested, None)),
        best_us(lambda: plain_decode(nested)),
    )
    show("decode binary", size, best_us(lambda: decode_infer(body, header_length)), plain_us)

    spec = TensorSpec(name="input", datatype="FP32", shape=(-1, size), dimensions=("batch", ""))
    checker, request = Checker(Signature(inputs=(spec,), outputs=(spec,))), decode_infer(flat, None)
    show("check", size, best_us(lambda: checker.check("m", request)), plain_us)

    array = np.array([row], np.float32)
    plain_us = best_us(lambda: plain_encode(array))
    for what, binary in (("encode", False), ("encode binary", True)):
        output = OutputTensor(name="y", datatype="FP32", array=array, binary=binary)
        response = InferResponse(route="m", version="1", outputs=[output])
        show(what, size, best_us(partial(encode_infer, response)), plain_us)


def main() -> None:
    print(f"{'':<16}{'floats':>8}{'here, us':>12}{'plain, us':>12}{'ratio':>11}")
    for size in SIZES:
        measure(size)


if __name__ == "__main__":
    main()
