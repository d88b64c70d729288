"""An engine that is closed gives its memory back: a worker lives through thousands of versions."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import models

PROGRAM = """
import gc, sys
from pathlib import Path
import numpy as np
from gateway.routing.state import EngineOptions
from gateway.serving.engines.onnx import load_onnx

def rss_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20

def cycle(path):
    engine = load_onnx(path, EngineOptions())
    engine.run({"input": np.ones((8, 1024), np.float32)}, ["output"])
    loaded = rss_mb()
    engine.close()
    return loaded

small, big = Path(sys.argv[1]), Path(sys.argv[2])
cycle_small = load_onnx(small, EngineOptions())  # what ONNX Runtime itself sets up stays
cycle_small.warm()
cycle_small.close()
before = rss_mb()
loaded = [cycle(big) for _ in range(4)]
print(before, max(loaded), rss_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_goes_back_after_close(tmp_path: Path) -> None:
    """In a process of its own, so that no other test's memory counts."""
    small = models.save(models.mlp(), tmp_path / "small")
    big = models.save(models.big_weights(100), tmp_path / "big")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small), str(big)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    before, loaded, after = map(float, result.stdout.split())
    assert loaded - before > 90, "the model was not in memory: the test measures nothing"
    assert after - before < 15
