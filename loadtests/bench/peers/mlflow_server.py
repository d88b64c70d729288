"""MLflow's scoring server: `python mlflow_server.py NAME MODEL PORT` becomes `mlflow models serve`."""

from __future__ import annotations

import os
import sys

import mlflow.onnx
import onnx

if __name__ == "__main__":
    mlflow.onnx.save_model(
        onnx.load(sys.argv[2]),
        "model",
        pip_requirements=["onnxruntime"],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1},
    )
    os.environ["UVICORN_ACCESS_LOG"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.execvp(
        "mlflow",
        [
            "mlflow",
            "models",
            "serve",
            "-m",
            "model",
            "--env-manager",
            "local",
            "--port",
            sys.argv[3],
            "--workers",
            "1",
        ],
    )
