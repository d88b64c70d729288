"""The gateway that the tests of its HTTP share, and what must be true of it after each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway

MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  number: {variants: {stable: {model: local/number@champion}}, overrides: true}
  sum: {variants: {stable: {model: local/sum@champion}}}
  same: {variants: {stable: {model: local/same@champion}}}
  half: {variants: {stable: {model: local/half@champion}}}
  text: {variants: {stable: {model: local/text@champion}}}
  slow: {variants: {stable: {model: local/slow@champion}}}
  later: {variants: {stable: {model: local/later@champion}}}
  log: {variants: {stable: {model: local/log@champion}}}
  small: {variants: {stable: {model: local/small@champion}}}
  known: {variants: {stable: {model: local/number@champion}}, explicit_versions: known}
  idle: {variants: {stable: {model: local/number@champion, weight: 0}}}
"""
MODELS = {
    "number": models.constant(1.0),
    "sum": models.two_inputs(),
    "slow": models.slow(20_000),
    "later": models.slow(2_000),
    "log": models.not_a_number(),
    "same": models.identity(),
    "half": models.identity("FP16", ["batch", 2]),
    "text": models.identity("BYTES", ["batch", 2]),
    "small": models.identity("UINT8", ["batch", 2]),
}
BODY_LIMIT = 1024 * 1024


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("http"), MANIFEST, "--workers", "1", "--body-limit", "1M")
    for name, model in MODELS.items():
        source = models.save(model, made.directory / "sources" / name / "model.onnx")
        publish(made.directory / "models", name, source, version="1", aliases=["champion"])
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture(autouse=True)
def goes_on_serving(gateway: Gateway) -> Iterator[None]:
    """Whatever a test sent: the next request is answered by the same process, which logged no traceback."""
    pids = gateway.worker_pids()
    yield
    response = httpx.post(f"{gateway.data}/v2/models/number/infer", json=number(), timeout=10)
    assert (response.status_code, response.json()["outputs"][0]["data"]) == (200, [1.0])
    assert gateway.worker_pids() == pids
    assert "Traceback" not in gateway.log


def tensor(name: str = "input", shape: Any = (1, 4), datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, **({"data": [0.0] * 4} | more)}


def number(**more: Any) -> dict[str, Any]:
    return {"inputs": [tensor(**more)]}
