"""10,000 declared routes over a few versions: they come into force, answer, are changed and rolled back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, gateways, wait_for

__all__ = ["gateways"]

ROUTES = 10_000
VERSIONS = 5
BODY = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.0, 0.0, 0.0]}]}


def manifest(directory: Path) -> str:
    for number in range(VERSIONS):
        source = models.save(models.constant(float(number)), directory / str(number))
        publish(directory / "models", f"m{number}", source, version="1")
    better = models.save(models.constant(99.0), directory / "better")
    publish(directory / "models", "m0", better, version="2")
    routes = "".join(
        f"  r{n}: {{variants: {{stable: {{model: local/m{n % VERSIONS}@1}}}}}}\n" for n in range(1, ROUTES)
    )
    split = "{stable: {model: local/m0@1, weight: 0}, canary: {model: local/m0@2, weight: 100}}"
    declared = f"registries:\n  local: {{type: directory, path: {directory}/models}}\n"
    return f"{declared}routes:\n{routes}  r0: {{fallback: stable, variants: {split}}}\n"


def test_ten_thousand_routes(gateways: Callable[..., Gateway], tmp_path: Path) -> None:
    gateway = gateways(manifest(tmp_path), "--workers", "1").start()
    with httpx.Client(base_url=gateway.data, timeout=30) as client:

        def value(route: str) -> float:
            answer = client.post(f"/v2/models/{route}/infer", json=BODY)
            assert answer.status_code == 200, answer.text
            return float(answer.json()["outputs"][0]["data"][0])

        # More routes than any block of a fixed size would hold, the first, the last, and many between.
        assert [value(f"r{n}") for n in range(1, ROUTES, 99)] == [n % VERSIONS for n in range(1, ROUTES, 99)]
        assert client.post("/v2/models/r10000/infer", json=BODY).status_code == 404
        assert value("r0") == 99.0
        gateway.api("POST", "/routes/r0/rollback", json={}).raise_for_status()
        wait_for(lambda: value("r0") == 0.0, 10)
        assert value(f"r{ROUTES - 1}") == (ROUTES - 1) % VERSIONS
    metrics = gateway.metrics()
    assert metrics['turnout_requests_total{code="200",route="r1",variant="stable",version="1"}'] == 1
    assert not any("_overflow" in name for name in metrics)
    assert gateway.stop() == 0
