"""`--wait` ends with 0 only when everybody has the change, and else names who has not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
      stable: {{model: local/number@1, weight: 50}}
      canary: {{model: local/number@2, weight: 50}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer("valkey", tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def replicas(gateways: Callable[..., Gateway], tmp_path: Path, server: RedisServer) -> list[Gateway]:
    for version in ("1", "2"):
        source = models.save(models.constant(float(version)), tmp_path / version / "model.onnx")
        publish(tmp_path / "models", "number", source, version=version)
    manifest = MANIFEST.format(path=tmp_path / "models")
    made = [gateways(manifest, "--workers", "2", "--redis", server.url).start() for _ in range(2)]
    wait_for(lambda: len(made[0].api("GET", "/status").json()["members"]) == 2, 10)
    return made


@pytest.mark.parametrize("lost", [False, True])
def test_a_frozen_replica_is_named(replicas: list[Gateway], lost: bool) -> None:
    """Also when it froze so long before (15 s) that the store does not count it as live."""
    here, frozen = replicas
    name = frozen.api("GET", "/status").json()["replica"]

    def status() -> str:
        members = here.api("GET", "/status").json()["members"]
        return next(str(member["status"]) for member in members if member["replica"] == name)

    assert frozen.process is not None
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        if lost:
            wait_for(lambda: status() == "LOST", 30)
        waited = here.turnout("rollback", "number", "--wait", "--timeout", "1")
        assert waited.returncode == 4
        assert f"not everywhere after 1 s: {name} is at 1.1, " in waited.stderr
        assert ("(silent for " in waited.stderr) == lost
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    assert here.turnout("rollback", "number", "--wait").returncode == 0
    assert status() == "ACK"


def test_a_replica_that_starts_again_takes_its_own_place(replicas: list[Gateway]) -> None:
    """Killed, it could not say that it goes; its next life has the same name, so nobody is lost."""
    here, other = replicas
    names = {member["replica"] for member in here.api("GET", "/status").json()["members"]}
    other.kill()
    other.start()
    waited = here.turnout("rollback", "number", "--wait")
    assert waited.returncode == 0, waited.stderr
    assert {member["replica"] for member in here.api("GET", "/status").json()["members"]} == names


def test_a_frozen_worker_is_counted(replicas: list[Gateway]) -> None:
    here, other = replicas
    victim = other.worker_pids()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        waited = here.turnout("rollback", "number", "--wait", "--timeout", "2")
        assert waited.returncode == 4
        assert "is at 1.2, 1 of 2 workers" in waited.stderr
    finally:
        os.kill(victim, signal.SIGCONT)
    assert here.turnout("rollback", "number", "--wait").returncode == 0


def test_without_the_store_nobody_has_everybodys_word(replicas: list[Gateway], server: RedisServer) -> None:
    """Neither for a rollback that only this replica knows, nor when it is asked for again, nor for one that
    everybody had."""
    here, _ = replicas
    server.kill()
    for _ in range(2):
        waited = here.turnout("rollback", "number", "--wait", "--timeout", "1")
        assert waited.returncode == 4
        assert "the store has not heard of it" in waited.stderr
    server.start()
    wait_for(lambda: here.turnout("rollback", "number", "--wait").returncode == 0, 20)
    server.kill()
    waited = here.turnout("rollback", "number", "--wait", "--timeout", "1")
    assert waited.returncode == 4
    assert "nobody knows of other replicas" in waited.stderr
