"""What an operator sees when the store and the replicas differ, and when one of them does not answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from registry_client.adapters.directory import publish
from tests import models
from tests.end_to_end.test_shared_store import MANIFEST, versions
from tests.servers.gateway import Gateway, wait_for
from tests.servers.meddler import Meddler
from tests.servers.redis import RedisServer


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    for version, alias in (("1", "champion"), ("2", "challenger")):
        source = models.save(models.constant(float(version)), tmp_path / version / "model.onnx")
        publish(tmp_path / "models", "number", source, version=version, aliases=[alias])
    return MANIFEST.format(path=tmp_path / "models")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer("valkey", tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def two(gateways: Callable[..., Gateway], manifest: str, server: RedisServer) -> tuple[Gateway, Gateway]:
    here, there = (gateways(manifest, "--workers", "2", "--redis", server.url).start() for _ in range(2))
    wait_for(lambda: here.ready_workers() == there.ready_workers() == 2, 20)
    assert here.turnout("weights", "number", "canary=40", "--wait").returncode == 0
    return here, there


def name_of(gateway: Gateway) -> str:
    return str(gateway.api("GET", "/status").json()["replica"])


def trouble(gateway: Gateway, kind: str) -> bool:
    return bool(gateway.metrics()[f'turnout_control_plane_trouble{{kind="{kind}"}}'])


def test_wait_names_a_replica_that_is_frozen(two: tuple[Gateway, Gateway]) -> None:
    here, there = two
    name = name_of(there)
    assert there.process is not None
    frozen = [there.process.pid, *there.worker_pids()]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        done = here.turnout("rollback", "number", "--wait", "--timeout", "6")
        # It is no live member after a while, and is waited for all the same.
        long = here.turnout("allow", "number", "2", "--wait", "--timeout", "18")
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert done.returncode == long.returncode == 4, done.stdout + long.stdout
    assert f"not everywhere after 6 s: {name} is at 1.2, 2 of 2 workers" in done.stderr
    assert name_of(here) not in done.stderr
    assert f"{name} is at 1.2, 2 of 2 workers (silent for " in long.stderr
    assert here.turnout("rollback", "number", "--wait").returncode == 0, "it has caught up"
    assert versions(there) == {"1"}


def test_wait_names_a_replica_with_a_frozen_worker(two: tuple[Gateway, Gateway]) -> None:
    here, there = two
    frozen = there.worker_pids()[0]
    os.kill(frozen, signal.SIGSTOP)
    try:
        done = here.turnout("rollback", "number", "--wait", "--timeout", "6")
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert done.returncode == 4, done.stdout
    assert f"{name_of(there)} is at 1.3" in done.stderr and "1 of 2 workers" in done.stderr
    assert name_of(here) not in done.stderr
    assert here.turnout("rollback", "number", "--wait").returncode == 0


def test_nobody_waits_for_a_replica_that_was_stopped(two: tuple[Gateway, Gateway]) -> None:
    here, there = two
    assert there.stop() == 0
    assert here.turnout("rollback", "number", "--wait", "--timeout", "5").returncode == 0


def test_a_flushed_redis_is_restored(two: tuple[Gateway, Gateway], server: RedisServer) -> None:
    here, there = two
    with redis.Redis(port=server.port) as plain:
        plain.flushall()
    wait_for(lambda: trouble(here, "emptied") and trouble(there, "emptied"), 20, lambda: here.log)
    assert versions(here) == versions(there) == {"1", "2"}
    refused = here.turnout("weights", "number", "canary=20")
    assert (refused.returncode, "turnout restore" in refused.stderr) == (1, True)
    rolled_back = here.turnout("rollback", "number", "--wait")
    assert (rolled_back.returncode, "the store has not heard of it" in rolled_back.stderr) == (4, True)
    assert versions(here) == {"1"}
    assert "turnout restore" in here.turnout("status").stdout
    restored = here.turnout("restore", "--reason", "flushed by hand", "--wait")
    assert restored.returncode == 0, restored.stderr
    assert versions(there) == {"1"}, "what was denied meanwhile came along"
    assert "flushed by hand" in there.turnout("history").stdout
    wait_for(lambda: not trouble(here, "emptied") and not trouble(there, "emptied"), 10)


def test_a_forked_replica_is_named_until_it_is_settled(
    two: tuple[Gateway, Gateway], server: RedisServer
) -> None:
    here, there = two
    meddler = Meddler(server, "default")
    held = (there.directory / "state" / "state.json").read_bytes()
    # A fail-over: the last change is lost, and another one takes its place while `there` is away.
    assert there.stop() == 0
    stale = meddler.dump()
    assert here.turnout("weights", "number", "canary=30", "--wait").returncode == 0
    ahead = (here.directory / "state" / "state.json").read_bytes()
    assert here.stop() == 0
    meddler.restore(stale)
    meddler.close()
    (here.directory / "state" / "state.json").write_bytes(held)
    here.start()
    assert here.turnout("weights", "number", "canary=10", "--wait").returncode == 0
    (there.directory / "state" / "state.json").write_bytes(ahead)
    there.start()
    wait_for(lambda: trouble(there, "fork"), 20, lambda: there.log)

    done = here.turnout("rollback", "number", "--wait", "--timeout", "2")
    assert done.returncode == 4
    assert name_of(there) in done.stderr and "another document" in done.stderr
    assert name_of(here) not in done.stderr
    assert versions(there) == {"1"}, "the rollback is in force there all the same"
    adopted = here.turnout("adopt", "--wait")
    assert adopted.returncode == 0, adopted.stderr
    assert not trouble(there, "fork")
    assert there.api("GET", "/routes/number").json()["variants"]["canary"]["weight"] == 10
    assert versions(there) == {"1"}
