"""silero-vad: scalars, unnamed dynamic dimensions, a state whose batch is not in the first place."""

from pathlib import Path

import numpy as np

from gateway.routing.state import EngineOptions
from gateway.serving.engines.onnx import load_onnx
from tests.silero import silero, silero_inputs, tone

__all__ = ["silero"]


def test_its_signature_is_read_and_it_is_not_batchable(silero: Path) -> None:
    signature = load_onnx(silero, EngineOptions()).signature

    specs = {spec.name: (spec.datatype, spec.shape) for spec in signature.inputs}
    assert specs == {"input": ("FP32", (-1, -1)), "state": ("FP32", (2, -1, 128)), "sr": ("INT64", ())}
    assert [spec.name for spec in signature.outputs] == ["output", "stateN"]
    assert not signature.batchable


def test_it_warms_up_and_tells_the_probability_of_speech(silero: Path) -> None:
    engine = load_onnx(silero, EngineOptions())
    engine.warm()

    probability, state = engine.run(silero_inputs(tone()), ["output", "stateN"])
    quiet, _ = engine.run(silero_inputs(np.zeros(512)), ["output", "stateN"])

    assert probability.shape == (1, 1) and 0 <= probability[0, 0] <= 1
    assert state.shape == (2, 1, 128) and state.any()
    assert quiet[0, 0] < 0.5
