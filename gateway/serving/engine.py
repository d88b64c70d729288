"""What runs one version, and how a model describes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


class EngineError(Exception):
    """A version cannot be loaded, or a run of it failed; the text is the engine's own reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a model. A dimension of -1 is dynamic.

    `dimensions` has the model's own name for each dynamic dimension, "" where it has none: two dimensions
    of the same name are the same size in a run.
    """

    name: str
    datatype: str
    """As in the Open Inference Protocol: FP32, INT64, BYTES, …"""
    shape: tuple[int, ...]
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The inputs and outputs of a version, in the model's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batchable(self) -> bool:
        """Whether the first dimension of every input and output is the same dynamic one.

        Silero-vad's is not: it has a scalar input, and a state with the batch in the second place.
        """
        firsts = {
            (spec.shape[0], spec.dimensions[0]) if spec.shape else (0, "")
            for spec in (*self.inputs, *self.outputs)
        }
        return len(firsts) == 1 and (first := next(iter(firsts)))[0] == -1 and first[1] != ""


class Engine(Protocol):
    """One loaded version. `run` may be called from any thread, and from several at once."""

    signature: Signature
    platform: str
    """For the metadata: `onnxruntime_onnx`, …"""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The arrays of `outputs`, in that order. BYTES are arrays of dtype object that hold `bytes`.

        Inputs have been checked against the signature. Raises `EngineError` with the engine's reason.
        """

    def warm(self) -> None:
        """One run on zeros, so that the first request does not pay for lazy set-up. Raises `EngineError`."""

    def close(self) -> None:
        """Gives the memory back. Nobody runs it afterwards."""


__all__ = ["Array", "Engine", "EngineError", "Signature", "TensorSpec"]
