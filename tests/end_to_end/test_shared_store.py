"""Replicas on one real Redis: signals from outside, its death, a cold start without it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for
from tests.servers.redis import RedisServer

MANIFEST = """
registries:
  local: {{type: directory, path: {path}}}
routes:
  number:
    variants:
      stable: {{model: local/number@champion, weight: 50}}
      canary: {{model: local/number@challenger, weight: 50}}
"""
REQUEST = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.0, 0.0, 0.0]}]}
SIGNALS = "{turnout:default}:signals"


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    for version, alias in (("1", "champion"), ("2", "challenger")):
        source = models.save(models.constant(float(version)), tmp_path / version / "model.onnx")
        publish(tmp_path / "models", "number", source, version=version, aliases=[alias])
    return MANIFEST.format(path=tmp_path / "models")


@pytest.fixture
def server(tmp_path: Path) -> object:
    server = RedisServer("valkey", tmp_path / "redis")
    server.start()
    yield server
    if server.running:
        server.kill()


class Load:
    """Clients that ask without a pause and note (sent, received, version, status) of every answer."""

    def __init__(self, gateway: Gateway, clients: int = 4) -> None:
        self.answers: list[tuple[float, float, str, int]] = []
        self._url = f"{gateway.data}/v2/models/number/infer"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=10) as client:
            while not self._stop.is_set():
                sent = time.monotonic()
                response = client.post(self._url, json=REQUEST)
                version = response.headers.get("turnout-version", "")
                self.answers.append((sent, time.monotonic(), version, response.status_code))


def versions(gateway: Gateway, count: int = 40) -> set[str]:
    with httpx.Client(timeout=10) as client:
        return {
            client.post(f"{gateway.data}/v2/models/number/infer", json=REQUEST).headers["turnout-version"]
            for _ in range(count)
        }


def test_a_signal_from_outside_moves_everybody_on_every_replica(
    gateways: Callable[..., Gateway], manifest: str, server: RedisServer
) -> None:
    replicas = [gateways(manifest, "--workers", "2", "--redis", server.url).start() for _ in range(2)]
    assert [versions(replica) for replica in replicas] == [{"1", "2"}, {"1", "2"}]
    with Load(replicas[0]) as load:
        wait_for(lambda: len(load.answers) > 200, 20)
        sent = time.monotonic()
        client = redis.Redis.from_url(server.url)
        client.xadd(SIGNALS, {"action": "rollback", "route": "number", "reason": "alert"})
        client.close()
        waited = replicas[0].turnout("rollback", "number", "--wait")
        acknowledged = time.monotonic()
        assert waited.returncode == 0, waited.stderr
        wait_for(lambda: load.answers[-1][0] > acknowledged + 0.2, 10)
    assert {status for *_, status in load.answers} == {200}
    assert [answer for answer in load.answers if answer[0] > acknowledged and answer[2] == "2"] == []
    assert max(received for _, received, version, _ in load.answers if version == "2") - sent < 2.0
    assert versions(replicas[1]) == {"1"}
    records = replicas[1].api("GET", "/audit").json()["records"]
    assert [(record["type"], record["actor"], record["reason"]) for record in records][0] == (
        "deny",
        "signal:redis",
        "alert",
    )
    members = replicas[0].api("GET", "/status").json()["members"]
    assert [(member["workers_ok"], member["revision"]) for member in members] == [(2, "1.2"), (2, "1.2")]


def test_a_signal_that_makes_no_sense_leaves_one_line_and_changes_nothing(
    gateways: Callable[..., Gateway], manifest: str, server: RedisServer
) -> None:
    gateway = gateways(manifest, "--redis", server.url).start()
    client = redis.Redis.from_url(server.url)
    for fields in ({"action": "rollback", "route": "nobody"}, {"hello": "world"}):
        client.xadd(SIGNALS, fields)
    client.close()

    def rejected() -> list[str]:
        records = gateway.api("GET", "/audit").json()["records"]
        return [record["reason"] for record in records if record["type"] == "reject"]

    wait_for(lambda: len(rejected()) == 2, 10, lambda: gateway.log)
    assert "there is no route 'nobody'" in rejected()[1]
    assert versions(gateway) == {"1", "2"}


def test_redis_killed(gateways: Callable[..., Gateway], manifest: str, server: RedisServer) -> None:
    """Answers go on, a rollback works here at once, and the store hears of it when it is back."""
    here = gateways(manifest, "--workers", "2", "--redis", server.url).start()
    elsewhere = gateways(manifest, "--redis", server.url).start()
    with Load(here) as load:
        server.kill()
        rolled_back = here.turnout("rollback", "number", "--reason", "no store")
        assert rolled_back.returncode == 0, rolled_back.stderr
        assert "hears of it when it is back" in rolled_back.stdout
        assert versions(here) == {"1"}
        # Another replica cannot know yet, and serves on.
        assert versions(elsewhere) == {"1", "2"}
        readiness = httpx.get(f"{here.admin}/readyz")
        wait_for(lambda: httpx.get(f"{here.admin}/readyz").json()["degraded"], 10)
        assert readiness.status_code == 200
        server.start()
        wait_for(lambda: versions(elsewhere, 20) == {"1"}, 20, lambda: here.log + elsewhere.log)
    assert {status for *_, status in load.answers} == {200}
    assert here.turnout("rollback", "number", "--wait").returncode == 0


def test_a_cold_start_without_redis_serves_the_last_known_good_state(
    gateways: Callable[..., Gateway], manifest: str, server: RedisServer
) -> None:
    gateway = gateways(manifest, "--redis", server.url).start()
    assert gateway.turnout("rollback", "number", "--wait").returncode == 0
    assert gateway.stop() == 0
    server.kill()
    gateway.start()
    assert versions(gateway) == {"1"}

    never_started = gateways(manifest, "--redis", server.url).start(wait=False)
    wait_for(lambda: "cannot be reached" in never_started.log or "refused" in never_started.log, 20)
    assert never_started.process is not None
    assert never_started.process.poll() is None
