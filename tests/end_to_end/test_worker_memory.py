"""What a worker takes of the machine's memory, as the kernel counts it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, gateways, wait_for

__all__ = ["gateways"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

IDLE_MIB = 80
GRPC_MIB = 16
"""More, for what gRPC brings: its libraries, most of whose pages the workers share."""
MANIFEST = """
registries:
  local: {{type: directory, path: {path}}}
routes:
  number:
    variants:
      stable: {{model: local/number@1}}
"""


def kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(field)


def started(
    gateways: Callable[..., Gateway], tmp_path: Path, model: object, workers: int, *options: str
) -> Gateway:
    source = models.save(model, tmp_path / "source")  # type: ignore[arg-type]
    publish(tmp_path / "models", "number", source, version="1")
    gateway = gateways(MANIFEST.format(path=tmp_path / "models"), "--workers", str(workers), *options).start()
    wait_for(lambda: gateway.ready_workers() == workers, 60)
    return gateway


@pytest.mark.parametrize(("grpc_port", "most_mib"), [("off", IDLE_MIB), ("0", IDLE_MIB + GRPC_MIB)])
def test_an_idle_worker_is_small(
    gateways: Callable[..., Gateway], tmp_path: Path, grpc_port: str, most_mib: int
) -> None:
    gateway = started(gateways, tmp_path, models.constant(1.0), 1, "--grpc-port", grpc_port)
    (pid,) = gateway.worker_pids()
    assert kib(pid, "Rss") <= most_mib * 1024


def test_workers_share_the_weights_of_a_large_model(gateways: Callable[..., Gateway], tmp_path: Path) -> None:
    """Inline weights: by itself, ONNX Runtime would copy all of them into each worker."""
    size_mib = 128
    gateway = started(gateways, tmp_path, models.big_weights(size_mib), 2)
    body = {"inputs": [{"name": "input", "shape": [1, 1024], "datatype": "FP32", "data": [1.0] * 1024}]}
    response = httpx.post(f"{gateway.data}/v2/models/number/infer", json=body, timeout=30)
    assert response.status_code == 200, response.text
    for pid in gateway.worker_pids():
        assert kib(pid, "Private_Dirty") < (IDLE_MIB + size_mib // 2) * 1024
        assert (
            str(next(gateway.directory.glob("cache/versions/*/derived/*/weights.bin")))
            in Path(f"/proc/{pid}/maps").read_text()
        )
