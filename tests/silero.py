"""The ONNX files of silero-vad, out of two of its wheels: a public model that is neither ours nor batchable.

The wheels lie in `.cache/silero/` under the root, where `make` puts them; without them the tests skip.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

VERSIONS = ("5.1.2", "6.2.3")
WHEELS = Path(__file__).parent.parent / ".cache" / "silero"
MEMBER = "silero_vad/data/silero_vad.onnx"
RATE_HZ = 16_000
FRAME = 512
"""Samples that one run takes at 16 kHz."""


def silero_onnx(version: str, directory: Path) -> Path:
    """Writes one version's model to `directory` as `model.onnx`; skips where its wheel is missing."""
    wheel = WHEELS / f"silero_vad-{version}-py3-none-any.whl"
    if not wheel.exists():
        pytest.skip(f"no {wheel.name}: pip download --no-deps silero-vad=={version} -d .cache/silero")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.onnx"
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read(MEMBER))
    return path


@pytest.fixture(params=VERSIONS)
def silero(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Each version's model in turn."""
    return silero_onnx(request.param, tmp_path / request.param)


def silero_inputs(samples: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs for one frame of `FRAME` samples in -1..1, with a fresh state."""
    return {
        "input": samples.astype(np.float32).reshape(1, FRAME),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(RATE_HZ, np.int64),
    }


def tone(frequency_hz: float = 220.0, amplitude: float = 0.1) -> np.ndarray:
    """One frame of a sine."""
    return amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(FRAME) / RATE_HZ)
