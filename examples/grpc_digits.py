"""Asks a gateway over gRPC what digit is in the quickstart's request, and which version says so.

    python -m examples.grpc_digits 127.0.0.1:8081 configs/quickstart/request.json [user]

Needs grpcio, numpy and the messages made from `inference.proto`. Triton's client does the same in fewer lines;
this is what it does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
import numpy as np

from gateway.wire.grpc import inference_pb2 as pb


def ask(address: str, document: Path, user: str = "") -> str:
    (given,) = json.loads(document.read_text())["inputs"]
    request = pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name=given["name"], datatype="FP32", shape=given["shape"])
    request.raw_input_contents.append(np.array(given["data"], "<f4").tobytes())
    request.outputs.add(name="label")
    metadata = (("turnout-key", user),) if user else ()
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        answer, call = infer.with_call(request, timeout=10, metadata=metadata)
    (label,) = np.frombuffer(answer.raw_output_contents[0], "<i8")
    told = dict(call.initial_metadata())
    return f"{label}, says version {told['turnout-version']} ({told['turnout-variant']})"


if __name__ == "__main__":
    print(ask(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
