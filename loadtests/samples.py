"""The images that the load test sends: the test part of the digits, with their labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from examples.digits.data import PIXELS, load_split


@dataclass(frozen=True, slots=True)
class Sample:
    """`body` is a whole infer request, encoded once and not again for every request."""

    label: int
    body: str


@cache
def samples() -> tuple[Sample, ...]:
    """600 images that none of the models was trained on."""
    test = load_split().test
    return tuple(
        Sample(int(label), _request(image.tolist()))
        for image, label in zip(test.images, test.labels, strict=True)
    )


def _request(pixels: list[float]) -> str:
    image = {"name": "image", "shape": [1, PIXELS], "datatype": "FP32", "data": pixels}
    return json.dumps({"inputs": [image], "outputs": [{"name": "label"}]})
