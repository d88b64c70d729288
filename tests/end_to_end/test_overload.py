"""One version far beyond what it can do: the others, the health checks and its own clients hardly notice."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx
import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for
from tests.servers.load import Load

MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  tiny: {variants: {stable: {model: local/tiny@champion}}}
  slow: {variants: {stable: {model: local/slow@champion}}, engine: {batching: false}}
  fixed: {variants: {stable: {model: local/slow@champion}}, engine: {batching: false, concurrency: 2}}
"""
SLOW = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0] * 4}]}
TINY = {"inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}]}
CLIENTS = 32
"""At 50 ms a run they wait for more than a second: too long, and for too long."""


@pytest.fixture
def gateway(gateways: Callable[..., Gateway]) -> Gateway:
    made = gateways(MANIFEST, "--workers", "1")
    for name, model in (("tiny", models.mlp(16, 32, 2)), ("slow", models.slow())):
        source = models.save(model, made.directory / "sources" / name)
        publish(made.directory / "models", name, source, version="1", aliases=["champion"])
    return made.start()


class Probe(threading.Thread):
    """Asks for the gateway's health until it is stopped; keeps the statuses."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._halt = threading.Event()
        self.statuses: list[int] = []

    def run(self) -> None:
        with httpx.Client(timeout=20) as client:
            while not self._halt.wait(0.02):
                self.statuses.append(client.get(self._url).status_code)

    def stop(self) -> list[int]:
        self._halt.set()
        self.join(30)
        return self.statuses


def metric(gateway: Gateway, name: str, route: str) -> float:
    return gateway.metrics()[f'{name}{{route="{route}",variant="stable",version="1"}}']


def test_overload_of_one_version_is_its_own(gateway: Gateway) -> None:
    slow_url, tiny_url = (f"{gateway.data}/v2/models/{route}/infer" for route in ("slow", "tiny"))
    probe = Probe(f"{gateway.data}/v2/health/ready")
    probe.start()
    with Load(tiny_url, TINY, clients=2) as tiny, Load(slow_url, SLOW, clients=CLIENTS) as slow:
        wait_for(lambda: slow.codes[503] > 50, 60, lambda: f"{slow.codes} {slow.lost}")
        refused = wait_for(lambda: _refusal(slow_url), 30)
        answered, others = slow.codes[200], tiny.codes[200]
        wait_for(lambda: slow.codes[200] > answered + 5, 30, lambda: "the limit lets nobody through")
        wait_for(lambda: tiny.codes[200] > others + 50, 30, lambda: f"{tiny.codes}")
        assert 1 < metric(gateway, "turnout_concurrency_limit", "slow") < CLIENTS
        assert metric(gateway, "turnout_requests_in_flight", "slow") < CLIENTS
        assert metric(gateway, "turnout_requests_rejected_total", "slow") > 50
    assert refused.headers["retry-after"] == "1"
    assert "its limit is" in refused.json()["error"]
    assert set(tiny.codes) == {200} and not tiny.lost
    assert set(slow.codes) == {200, 503} and not slow.lost
    statuses = probe.stop()
    assert statuses and set(statuses) == {200}
    # Nobody asks any more: what the overload had closed is open.
    assert httpx.post(slow_url, json=SLOW, timeout=30).status_code == 200
    assert metric(gateway, "turnout_requests_in_flight", "slow") == 0


def test_a_limit_of_the_manifest(gateway: Gateway) -> None:
    url = f"{gateway.data}/v2/models/fixed/infer"
    with Load(url, SLOW, clients=4) as load:
        wait_for(lambda: load.codes[503] and load.codes[200], 60, lambda: f"{load.codes} {load.lost}")
    assert set(load.codes) == {200, 503}
    assert metric(gateway, "turnout_concurrency_limit", "fixed") == 2


def _refusal(url: str) -> httpx.Response | None:
    response = httpx.post(url, json=SLOW, timeout=30)
    return response if response.status_code == 503 else None
