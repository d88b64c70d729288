"""The engine's library calls nobody: no device id, no database of events to send."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).parents[2] / "configs" / "quickstart" / "models" / "digits" / "1" / "model.onnx"
LOAD = f"""
from pathlib import Path
from gateway.routing.state import EngineOptions
from gateway.serving.engines.onnx import load_onnx
load_onnx(Path({str(MODEL)!r}), EngineOptions()).close()
"""


def test_loading_a_model_leaves_nothing_under_the_home(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run(
        [sys.executable, "-c", LOAD], check=True, timeout=60, env=environment, cwd=Path(__file__).parents[2]
    )
    assert list(tmp_path.iterdir()) == []
