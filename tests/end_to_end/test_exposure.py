"""Limits and leases on real gateways: over workers, over replicas, without their store."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
      stable: {{model: local/number@1}}
      canary: {{model: local/number@2, weight: 50, {exposure}}}
    overrides: true
"""
REQUEST = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.0, 0.0, 0.0]}]}


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[str], str]:
    for version in ("1", "2"):
        source = models.save(models.constant(float(version)), tmp_path / version / "model.onnx")
        publish(tmp_path / "models", "number", source, version=version)
    return lambda exposure: MANIFEST.format(path=tmp_path / "models", exposure=exposure)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer("valkey", tmp_path / "redis")
    server.start()
    yield server
    server.kill()


class Load:
    """Clients of all replicas that ask without a pause, and count the answers by version."""

    def __init__(self, *gateways: Gateway, path: str = "", clients: int = 4, **headers: str) -> None:
        self.versions: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self._urls = [f"{gateway.data}/v2/models/number{path}/infer" for gateway in gateways]
        self._headers = headers
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(url,)) for url in self._urls for _ in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, url: str) -> None:
        with httpx.Client(timeout=10, headers=self._headers) as client:
            while not self._stop.is_set():
                try:
                    response = client.post(url, json=REQUEST)
                except httpx.TransportError:
                    continue  # of a worker that was killed
                with self._lock:
                    self.codes[response.status_code] += 1
                    if response.status_code == 200:
                        self.versions[response.headers["turnout-version"]] += 1


class Judge:
    """Renews the lease again and again."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            self._gateway.api("POST", "/routes/number/variants/canary/lease").raise_for_status()


def denies(gateway: Gateway) -> list[tuple[str, str]]:
    """(actor, reason) of each deny that is in force."""
    document = gateway.api("GET", "/routes/number").json()
    return [(deny["actor"], deny["reason"]) for deny in document["denies"]]


def test_a_limit_of_requests_over_two_workers(
    gateways: Callable[..., Gateway], manifest: Callable[[str], str]
) -> None:
    gateway = gateways(manifest("limit: {requests: 200}"), "--workers", "2").start()
    with Load(gateway) as load:
        wait_for(lambda: denies(gateway), 20, lambda: gateway.log)
        seen = load.codes.total()
        wait_for(lambda: load.codes.total() > seen + 100, 10)
    assert denies(gateway) == [("limit", "its limit of 200 requests is reached")]
    assert 100 < load.versions["2"] <= 200 and set(load.codes) == {200}
    # A restart begins no new count.
    assert gateway.stop() == 0
    gateway.start()
    assert "version 2 is allowed again" in gateway.turnout("allow", "number", "2").stdout
    with Load(gateway) as again:
        wait_for(lambda: again.versions["2"], 10)
        assert gateway.stop() == 0
    gateway.start()
    with Load(gateway) as rest:
        wait_for(lambda: denies(gateway), 20, lambda: gateway.log)
    assert again.versions["2"] + rest.versions["2"] <= 200
    history = gateway.api("GET", "/audit").json()["records"]
    assert [record["type"] for record in history] == ["deny", "undeny", "deny", "put"]


def test_a_route_that_a_limit_stops_is_said_to_be(
    gateways: Callable[..., Gateway], manifest: Callable[[str], str]
) -> None:
    """The limit holds even where nothing is left that could answer: then people must know."""
    gateway = gateways(manifest("limit: {requests: 40}"), "--workers", "1").start()
    assert gateway.turnout("weights", "number", "canary=100").returncode == 0
    assert gateway.turnout("rollback", "number", "--version", "1").returncode == 0

    def said() -> bool:
        degraded = httpx.get(f"{gateway.admin}/readyz", timeout=10).json()["degraded"]
        return "route number answers nothing: every version that has a weight is denied" in degraded

    with Load(gateway, clients=1) as load:
        wait_for(said, 20, lambda: gateway.log)
    assert load.versions["2"] <= 40 and load.codes[503]


@pytest.mark.parametrize("way", ["split", "override", "explicit"])
def test_a_limit_of_requests_over_two_replicas_whose_workers_die(
    gateways: Callable[..., Gateway], manifest: Callable[[str], str], server: RedisServer, way: str
) -> None:
    limited = manifest("limit: {requests: 400}")
    replicas = [gateways(limited, "--workers", "2", "--redis", server.url).start() for _ in range(2)]
    headers = {"turnout-variant": "canary"} if way == "override" else {}
    path = "/versions/2" if way == "explicit" else ""
    with Load(*replicas, path=path, **headers) as load:
        wait_for(lambda: load.versions["2"] > 50, 20)
        os.kill(replicas[0].worker_pids()[0], signal.SIGKILL)
        for replica in replicas:
            wait_for(lambda: denies(replica), 20, lambda: replica.log)  # noqa: B023
        seen = load.codes.total()
        wait_for(lambda: load.codes.total() > seen + 200, 20)
    assert 200 < load.versions["2"] <= 400
    assert set(load.codes) <= ({200, 403, 503} if way == "explicit" else {200})
    history = replicas[1].api("GET", "/audit").json()["records"]
    assert [record["type"] for record in history] == ["deny", "put"], "one line, whoever tripped it"


def test_without_its_store_a_limited_version_is_exposed_no_further(
    gateways: Callable[..., Gateway], manifest: Callable[[str], str], server: RedisServer
) -> None:
    """And a store that comes back empty begins no new count."""
    limited = manifest("limit: {requests: 100000}")
    gateway = gateways(limited, "--workers", "2", "--redis", server.url).start()
    with Load(gateway) as load:
        wait_for(lambda: load.versions["2"] > 50, 20)
        server.kill()

        def stands_still() -> bool:
            before, answered = load.versions["2"], load.codes.total()
            wait_for(lambda: load.codes.total() > answered + 200, 20)
            return load.versions["2"] == before

        wait_for(stands_still, 30)
        assert "limited versions are not exposed further" in str(
            httpx.get(f"{gateway.admin}/readyz").json()["degraded"]
        )
        server.start()
        before = load.versions["2"]
        wait_for(lambda: load.versions["2"] > before, 20, lambda: gateway.log)
        client = redis.Redis.from_url(server.url)
        for key in client.keys("{turnout:default}:exposure:*"):
            client.delete(key)
        client.close()
        wait_for(lambda: denies(gateway), 20, lambda: gateway.log)
    assert denies(gateway)[0][1].startswith("the store has lost its count")
    assert set(load.codes) == {200}


def test_a_limit_of_keys(gateways: Callable[..., Gateway], manifest: Callable[[str], str]) -> None:
    gateway = gateways(manifest("limit: {keys: 20}"), "--workers", "2").start()
    users: set[str] = set()
    with httpx.Client(timeout=10) as client:
        url = f"{gateway.data}/v2/models/number/infer"

        def asks(user: str | None) -> str:
            headers = {} if user is None else {"turnout-key": user}
            return client.post(url, json=REQUEST, headers=headers).headers["turnout-version"]

        def round_of_asking() -> list[tuple[str, str]]:
            for number in range(80):
                if asks(f"user-{number}") == "2":
                    users.add(f"user-{number}")
            assert asks(None) == "1", "who cannot be counted does not see it"
            return denies(gateway)

        wait_for(round_of_asking, 30, lambda: gateway.log)
    assert denies(gateway) == [("limit", "its limit of 20 keys is reached")]
    assert len(users) <= 20


def test_a_limit_of_errors_over_two_replicas(
    gateways: Callable[..., Gateway], tmp_path: Path, manifest: Callable[[str], str], server: RedisServer
) -> None:
    source = models.save(models.needs_even_rows(4), tmp_path / "3" / "model.onnx")
    publish(tmp_path / "models", "number", source, version="3")
    failing = manifest("limit: {errors: 10}").replace("number@2", "number@3")
    replicas = [gateways(failing, "--workers", "2", "--redis", server.url).start() for _ in range(2)]
    with Load(*replicas, clients=2) as load:
        for replica in replicas:
            wait_for(lambda: denies(replica), 20, lambda: replica.log)  # noqa: B023
        broken = load.codes[500]
        seen = load.codes[200]
        wait_for(lambda: load.codes[200] > seen + 100, 20)
    assert denies(replicas[0]) == [("limit", "its limit of 10 errors is reached")]
    # What was under way on either replica when it tripped, and what one had not heard of the other.
    assert 10 <= load.codes[500] <= 2 * 10 + 8
    assert load.codes[500] - broken <= 4


def test_a_lease_that_is_renewed_and_one_that_is_not(
    gateways: Callable[..., Gateway], manifest: Callable[[str], str], server: RedisServer
) -> None:
    options = ("--workers", "2", "--redis", server.url)
    judged = gateways(manifest("lease: 5s"), *options).start()
    with Judge(judged):
        other = gateways(manifest("lease: 5s"), *options).start()
        replicas = [judged, other]
        with Load(*replicas, clients=1) as load:
            until = time.monotonic() + 7
            wait_for(lambda: time.monotonic() > until and load.versions["2"] > 20, 20)
        assert denies(judged) == denies(other) == []
        left_s = other.metrics()['turnout_lease_seconds{route="number",variant="canary",version="2"}']
        assert 2 < left_s <= 5
        renewed = other.turnout("renew", "number", "canary")
        assert renewed.stdout == "number: the lease of version 2 is renewed\n", renewed.stderr
        renewed_last = time.monotonic()
    for replica in replicas:
        wait_for(lambda: denies(replica), 20, lambda: replica.log)  # noqa: B023
    assert time.monotonic() - renewed_last > 4
    assert denies(replicas[1]) == [("lease", "nobody has renewed its lease for 5s")]
    assert set(load.codes) == {200}
    refused = replicas[0].turnout("renew", "number")
    assert refused.returncode == 1 and "turnout allow number 2" in refused.stderr
    assert replicas[0].turnout("allow", "number", "2", "--wait").returncode == 0
    with Load(*replicas, clients=1) as again:
        wait_for(lambda: again.versions["2"] > 20, 20)


def test_a_lease_lapses_when_the_store_is_lost(
    gateways: Callable[..., Gateway], manifest: Callable[[str], str], server: RedisServer
) -> None:
    gateway = gateways(manifest("lease: 5s"), "--workers", "2", "--redis", server.url).start()
    with Load(gateway) as load:
        wait_for(lambda: load.versions["2"] > 20, 20)
        server.kill()
        wait_for(lambda: denies(gateway), 20, lambda: gateway.log)
        version_2, seen = load.versions["2"], load.codes.total()
        wait_for(lambda: load.codes.total() > seen + 200, 20)
        assert load.versions["2"] <= version_2 + 4
        server.start()
        store = redis.Redis.from_url(server.url)
        wait_for(lambda: store.hlen("{turnout:default}:deny"), 20, lambda: gateway.log)
        store.close()
    assert denies(gateway)[0][0] == "lease" and set(load.codes) == {200}
