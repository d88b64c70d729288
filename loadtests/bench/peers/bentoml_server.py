"""BentoML: `python bentoml_server.py NAME MODEL PORT` becomes `bentoml serve` of the service below."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime as ort
from bentoml.validators import DType


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Predict:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            os.environ["TURNOUT_BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api
    async def predict(self, input: Annotated[np.ndarray, DType("float32")]) -> np.ndarray:
        output: np.ndarray = self.session.run(None, {"input": input})[0]
        return output


if __name__ == "__main__":
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.environ["BENTOML_HOME"] = str(Path.cwd() / "home")
    os.chdir(Path(__file__).parent)
    os.execvp(
        "bentoml",
        ["bentoml", "serve", "bentoml_server:Predict", "--host", "127.0.0.1", "--port", sys.argv[3]],
    )
