"""LitServe: `python litserve_server.py NAME MODEL PORT`."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime as ort


class OnnxApi(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe takes the type for a schema
        return np.array(request["input"], np.float32)

    def predict(self, array: Any) -> Any:
        return self.session.run(None, {"input": array})[0]

    def encode_response(self, array: Any) -> dict[str, Any]:
        return {"output": array.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(OnnxApi(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[3]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
