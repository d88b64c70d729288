"""A small server that answers as the gateway does with the quickstart's manifest, and counts."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import onnxruntime

from examples.digits.data import load_split
from examples.quickstart import MODELS

VERSIONS = {"stable": "1", "canary": "2"}
REVISION = "1.7"


class StandIn(ThreadingHTTPServer):
    """90 : 10 between the committed versions 1 and 2, by the sticky key.

    With `faults` a third of the keys gets what can go wrong: `canary` answers 503, one tenth of the keys an
    answer without a label, one tenth a connection that is closed without a word.
    """

    request_queue_size = 128

    def __init__(self, *, faults: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults = faults
        self.answered: Counter[tuple[str, str]] = Counter()
        """(variant, what came of it) → how often."""
        self._counting = threading.Lock()
        self._sessions = {variant: _session(version) for variant, version in VERSIONS.items()}
        test = load_split().test
        self._labels = {
            bytes(image): int(label) for image, label in zip(test.images, test.labels, strict=True)
        }

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, variant: str, outcome: str) -> None:
        with self._counting:
            self.answered[variant, outcome] += 1

    def classify(self, variant: str, image: Any) -> tuple[int, bool]:
        """(the model's answer, whether it is right)."""
        label = int(self._sessions[variant].run(["label"], {"image": image})[0][0])
        return label, label == self._labels[bytes(image)]


@contextmanager
def running(server: StandIn) -> Iterator[StandIn]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hundredth(key: str) -> int:
    """0 to 99, always the same for the same key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % 100


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"
    # Buffered: head and body in two packets wait for each other (Nagle's algorithm and delayed ACKs).
    wbufsize = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        place = hundredth(self.headers["turnout-key"])
        variant = "stable" if place < 90 else "canary"
        if self.path != "/v2/models/digits/infer":
            self._reply(404, {"error": f"{self.path} is not the route's"}, {})
        elif not self.server.faults or place < 70:
            self._infer(variant, json.loads(body))
        else:
            self._fail(variant, place)

    def _infer(self, variant: str, request: dict[str, Any]) -> None:
        (image,) = request["inputs"]
        label, right = self.server.classify(
            variant, np.array(image["data"], np.float32).reshape(image["shape"])
        )
        self.server.count(variant, "right" if right else "wrong")
        output = {"name": "label", "shape": [1], "datatype": "INT64", "data": [label]}
        self._reply(200, {"model_name": "digits", "outputs": [output]}, _served(variant))

    def _fail(self, variant: str, place: int) -> None:
        if variant == "canary":
            self.server.count(variant, "error")
            self._reply(503, {"error": "the queue is full"}, _served(variant))
        elif place < 80:
            self.server.count(variant, "error")
            self._reply(200, {"model_name": "digits", "outputs": []}, _served(variant))
        else:
            self.close_connection = True

    def _reply(self, status: int, document: dict[str, Any], headers: dict[str, str]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _served(variant: str) -> dict[str, str]:
    return {
        "turnout-version": VERSIONS[variant],
        "turnout-variant": variant,
        "turnout-revision": REVISION,
        "content-type": "application/json",
    }


def _session(version: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = MODELS / "digits" / version / "model.onnx"
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
