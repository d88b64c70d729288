"""MLServer: `python mlserver_server.py NAME MODEL PORT`. It writes its settings and becomes `mlserver start`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

NAME, MODEL, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
QUIET = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"uvicorn.access": {"level": "WARNING"}, "mlserver": {"level": "WARNING"}},
}

if __name__ == "__main__":
    settings = {
        "debug": False,
        "http_port": PORT,
        "grpc_port": PORT + 1,
        "metrics_port": PORT + 2,
        "parallel_workers": 0,  # in the server's own process: twice as fast here as a worker beside it
        "gzip_enabled": False,
        "logging_settings": QUIET,
    }
    model = {
        "name": NAME,
        "implementation": "mlserver_runtime.OnnxModel",
        "parameters": {"uri": MODEL},
    }
    Path("settings.json").write_text(json.dumps(settings))
    Path("model-settings.json").write_text(json.dumps(model))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.execvp("mlserver", ["mlserver", "start", "."])
