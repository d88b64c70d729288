"""KServe's model server: `python kserve_server.py NAME MODEL PORT`, both protocols on one port."""

from __future__ import annotations

import logging
import sys

import kserve
import numpy as np
import onnxruntime as ort
from kserve.logging import trace_logger
from kserve.utils.utils import get_predict_response

NAME, MODEL, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])


class OnnxModel(kserve.Model):
    def __init__(self) -> None:
        super().__init__(NAME)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):  # type: ignore[no-untyped-def]
        if isinstance(payload, kserve.InferRequest):
            array = payload.inputs[0].as_numpy()
        else:
            array = np.array(payload["instances"], np.float32)
        return get_predict_response(payload, self.session.run(None, {"input": array})[0], self.name)


if __name__ == "__main__":
    server = kserve.ModelServer(http_port=PORT, workers=1, enable_grpc=False, enable_latency_logging=False)
    # Two lines a request otherwise: its own timing, and uvicorn's access log.
    trace_logger.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True
    server.start([OnnxModel()])
