"""The models that every server serves, from the same files, and the rows that it is asked with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from tests import models

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One model in two versions, one input row, and what the versions answer to it.

    Peers serve the first file. `row` has a batch dimension of 1.
    """

    name: str
    files: tuple[Path, Path]
    row: Array
    answers: tuple[Array, Array]

    def is_answer(self, output: Array) -> bool:
        return any(
            output.size == answer.size and np.allclose(output.reshape(answer.shape), answer, atol=1e-4)
            for answer in self.answers
        )


def tiny(directory: Path) -> Workload:
    """A perceptron 16 → 32 → 2."""
    return _workload("tiny", directory, [models.mlp(16, 32, 2, bias=bias) for bias in (0.0, 0.5)], (1, 16))


def medium(directory: Path) -> Workload:
    """A perceptron 256 → 1024 → 1024 → 10."""
    sizes = (256, 1024, 1024, 10)
    return _workload("medium", directory, [models.mlp(*sizes, bias=bias) for bias in (0.0, 0.5)], (1, 256))


def image(directory: Path) -> Workload:
    """What comes in goes out: 3 x 224 x 224, so that only the way of the tensor is measured."""
    shape = (3, 224, 224)
    versions = [models.identity("FP32", ("batch", *shape)) for _ in range(2)]
    versions[1].doc_string = "the same under another digest"
    return _workload("image", directory, versions, (1, *shape))


MAKERS = {"tiny": tiny, "medium": medium, "image": image}


def _workload(
    name: str, directory: Path, versions: list[onnx.ModelProto], shape: tuple[int, ...]
) -> Workload:
    first, second = (
        models.save(model, directory / name / str(number)) for number, model in enumerate(versions, 1)
    )
    # As many decimals as a feature has: with all that float32 can tell, requests would be twice as long.
    row = np.random.default_rng(7).uniform(-1, 1, shape).astype(np.float32).round(4)
    return Workload(
        name=name, files=(first, second), row=row, answers=(_answer(first, row), _answer(second, row))
    )


def _answer(path: Path, row: Array) -> Array:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": row})[0], np.float32)
