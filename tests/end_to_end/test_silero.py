"""silero-vad, two public releases of it, behind one route: a real model whose state its clients carry along."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gateway.routing.state import EngineOptions
from gateway.serving.engines.onnx import load_onnx
from registry_client.adapters.directory import publish
from tests.servers.gateway import Gateway
from tests.silero import RATE_HZ, VERSIONS, silero_inputs, silero_onnx, tone

CHAMPION, CHALLENGER = VERSIONS
MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  speech:
    variants:
      stable: {model: local/silero@champion, weight: 50}
      canary: {model: local/silero@challenger, weight: 50}
    overrides: true
"""
DATATYPES = {"input": "FP32", "state": "FP32", "sr": "INT64"}
FRAMES = 6

Frame = dict[str, np.ndarray]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Version → its model."""
    return {version: silero_onnx(version, tmp_path / version) for version in VERSIONS}


@pytest.fixture
def gateway(gateways: Callable[..., Gateway], files: dict[str, Path]) -> Gateway:
    made = gateways(MANIFEST, "--workers", "2")
    for version, alias in ((CHAMPION, "champion"), (CHALLENGER, "challenger")):
        publish(made.directory / "models", "silero", files[version], version=version, aliases=[alias])
    return made.start()


def as_json(frame: Frame) -> dict[str, Any]:
    inputs = [
        {"name": name, "shape": array.shape, "datatype": DATATYPES[name], "data": array.tolist()}
        for name, array in frame.items()
    ]
    # A scalar's data is a list of one element, as everywhere in the protocol.
    inputs[-1]["data"] = [RATE_HZ]
    return {"content": json.dumps({"inputs": inputs})}


def as_binary(frame: Frame) -> dict[str, Any]:
    raws = [array.tobytes() for array in frame.values()]
    inputs = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": DATATYPES[name],
            "parameters": {"binary_data_size": len(raw)},
        }
        for (name, array), raw in zip(frame.items(), raws, strict=True)
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return {
        "content": head + b"".join(raws),
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }


def outputs_of(response: httpx.Response) -> Frame:
    """The arrays of an answer, in JSON or binary."""
    assert response.status_code == 200, response.text
    length = response.headers.get("inference-header-content-length")
    document = json.loads(response.content[: int(length)] if length else response.content)
    offset = int(length or 0)
    arrays = {}
    for output in document["outputs"]:
        if length:
            size = output["parameters"]["binary_data_size"]
            values = np.array(struct.unpack_from(f"<{size // 4}f", response.content, offset), np.float32)
            offset += size
        else:
            values = np.array(output["data"], np.float32)
        arrays[output["name"]] = values.reshape(output["shape"])
    return arrays


def say(client: httpx.Client, sent: dict[str, Any], **headers: str) -> httpx.Response:
    headers |= sent.get("headers", {})
    return client.post("/v2/models/speech/infer", content=sent["content"], headers=headers)


def frames() -> list[np.ndarray]:
    """A chord that swells, in consecutive frames."""
    rng = np.random.default_rng(1)
    return [
        (tone(180.0, 0.1 * n) + tone(360.0, 0.05 * n) + rng.normal(0, 0.01, tone().shape)).astype(np.float32)
        for n in range(FRAMES)
    ]


@pytest.mark.parametrize("encode", [as_json, as_binary])
@pytest.mark.parametrize(("variant", "version"), [("stable", CHAMPION), ("canary", CHALLENGER)])
def test_a_stream_carries_its_state_from_call_to_call(
    gateway: Gateway,
    files: dict[str, Path],
    variant: str,
    version: str,
    encode: Callable[[Frame], dict[str, Any]],
) -> None:
    """Frame by frame the same as the model itself, whichever worker answers."""
    engine = load_onnx(files[version], EngineOptions())
    state = expected_state = silero_inputs(tone())["state"]
    seen = []
    with httpx.Client(base_url=gateway.data, timeout=20) as client:
        for samples in frames():
            inputs = silero_inputs(samples)
            response = say(client, encode(inputs | {"state": state}), **{"turnout-variant": variant})
            assert response.headers["turnout-version"] == version
            answer = outputs_of(response)
            probability, expected_state = engine.run(inputs | {"state": expected_state}, ["output", "stateN"])
            np.testing.assert_allclose(answer["output"], probability, atol=1e-5)
            np.testing.assert_allclose(answer["stateN"], expected_state, atol=1e-4)
            state = answer["stateN"]
            seen.append(float(answer["output"][0, 0]))
    assert all(0 <= probability <= 1 for probability in seen)
    assert state.any()


def test_callers_stay_with_their_version_until_a_rollback(gateway: Gateway) -> None:
    sent = as_binary(silero_inputs(tone()))
    callers = [f"caller-{number}" for number in range(200)]
    with httpx.Client(base_url=gateway.data, timeout=20) as client:

        def versions() -> dict[str, str]:
            return {
                key: say(client, sent, **{"turnout-key": key}).headers["turnout-version"] for key in callers
            }

        first = versions()
        assert versions() == first
        counts = Counter(first.values())
        assert set(counts) == set(VERSIONS)
        assert 65 <= counts[CHALLENGER] <= 135

        done = gateway.turnout("rollback", "speech", "--reason", "misses whispers", "--wait")
        assert done.returncode == 0, done.stderr
        assert set(versions().values()) == {CHAMPION}
        answered = outputs_of(say(client, sent, **{"turnout-key": callers[0]}))
        assert 0 <= answered["output"][0, 0] <= 1

        assert gateway.turnout("allow", "speech", CHALLENGER).returncode == 0
        assert versions() == first


def test_the_versions_tell_different_probabilities(gateway: Gateway) -> None:
    """They are two models: what one says is not the other's."""
    sent = as_binary(silero_inputs(frames()[-1]))
    with httpx.Client(base_url=gateway.data, timeout=20) as client:
        told = {
            variant: outputs_of(say(client, sent, **{"turnout-variant": variant}))["output"][0, 0]
            for variant in ("stable", "canary")
        }
    assert told["stable"] != pytest.approx(told["canary"], abs=1e-6)


def test_it_is_described_as_not_batchable(gateway: Gateway) -> None:
    config = httpx.get(f"{gateway.data}/v2/models/speech/config").json()
    assert config["max_batch_size"] == 0
    assert [tensor["dims"] for tensor in config["input"]] == [[-1, -1], [2, -1, 128], []]


def test_a_frame_of_an_illegal_size_fails_alone(gateway: Gateway) -> None:
    """The signature leaves its length open, so it is the model that refuses: its reason, and no path of ours."""
    short = silero_inputs(tone()) | {"input": np.zeros((1, 7), np.float32)}
    with httpx.Client(base_url=gateway.data, timeout=20) as client:
        response = say(client, as_binary(short))
        assert response.status_code == 500
        assert "the model failed" in response.json()["error"]
        assert str(gateway.directory) not in response.text
        assert say(client, as_binary(silero_inputs(tone()))).status_code == 200
