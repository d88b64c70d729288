"""Two routes that change together, under load: nobody ever sees one of them new and the other one old."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for
from tests.servers.redis import RedisServer

ROUTES = ("number", "letter")
MANIFEST = """
registries:
  local: {{type: directory, path: {path}}}
routes:
"""
ROUTE = """
  {name}:
    variants:
      stable: {{model: local/number@1}}
      canary: {{model: local/number@2, weight: {canary}}}
"""
REQUEST = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0] * 4}]}
FLIPS = 12
CLIENTS = 6


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[int], str]:
    """`manifest(canary)`: both routes with version 1, and `canary` per cent of version 2."""
    for version in "12":
        source = models.save(models.constant(float(version)), tmp_path / version / "model.onnx")
        publish(tmp_path / "models", "number", source, version=version)
    registry = MANIFEST.format(path=tmp_path / "models")
    return lambda canary: registry + "".join(ROUTE.format(name=name, canary=canary) for name in ROUTES)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    made = RedisServer("valkey", tmp_path / "redis")
    made.start()
    yield made
    made.kill()


class Watchers:
    """Clients that ask one route after the other on a connection each: (route, version, revision) of each answer."""

    def __init__(self, gateways: list[Gateway]) -> None:
        self.seen: list[list[tuple[str, str, str]]] = [[] for _ in range(CLIENTS)]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(gateways[n % len(gateways)].data, seen), daemon=True)
            for n, seen in enumerate(self.seen)
        ]

    def __enter__(self) -> Watchers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def see(self, version: str) -> None:
        """Returns when every client was answered by this version last, on both routes."""

        def both() -> bool:
            return all({each[1] for each in seen[-2:]} == {version} for seen in self.seen if len(seen) > 1)

        wait_for(both, 20, lambda: str([seen[-4:] for seen in self.seen]))

    def _ask(self, url: str, seen: list[tuple[str, str, str]]) -> None:
        parts = urlsplit(url)
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        body = json.dumps(REQUEST)
        while not self._stop.is_set():
            for name in ROUTES:
                connection.request("POST", f"/v2/models/{name}/infer", body)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200
                told = (answer.headers["turnout-version"] or "", answer.headers["turnout-revision"] or "")
                seen.append((name, *told))
        connection.close()


def check(seen: list[tuple[str, str, str]]) -> int:
    """Asserts what one connection may see; how many revisions it saw."""
    versions: dict[str, set[str]] = {}
    for _, version, revision in seen:
        versions.setdefault(revision, set()).add(version)
    mixed = {revision: found for revision, found in versions.items() if len(found) > 1}
    assert not mixed, "a revision with one route new and the other one old"
    order = [_order(revision) for _, _, revision in seen]
    assert order == sorted(order), "a connection never goes back"
    return len(versions)


def _order(label: str) -> tuple[int, int, int]:
    """`1.7+2`: denies that are in force ahead of revision 1.7's successor."""
    revision, _, ahead = label.partition("+")
    epoch, rev = revision.split(".")
    return int(epoch), int(rev), int(ahead or 0)


def test_weights_and_rollbacks_of_two_routes(
    gateways: Callable[..., Gateway], manifest: Callable[[int], str], server: RedisServer
) -> None:
    replicas = [gateways(manifest(0), "--workers", "2", "--redis", server.url).start() for _ in range(2)]
    with Watchers(replicas) as watchers:
        wait_for(lambda: all(len(seen) > 20 for seen in watchers.seen), 20)
        for flip in range(FLIPS):
            percent, version = ((100.0, "2"), (0.0, "1"))[flip % 2]
            body = {"routes": {name: {"canary": percent} for name in ROUTES}}
            replicas[flip % 2].api("PATCH", "/weights", json=body).raise_for_status()
            watchers.see(version)
        done = replicas[0].turnout("weights", "number", "canary=100", "letter", "canary=100", "--wait")
        assert done.returncode == 0, done.stderr
        watchers.see("2")
        done = replicas[1].turnout("rollback", *ROUTES, "--wait")
        watchers.see("1")
    for seen in watchers.seen:
        assert check(seen) > FLIPS
    message = f"number: version 2 is denied; letter: version 2 is denied (revision 1.{FLIPS + 3})"
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, message)
    records = replicas[0].api("GET", "/audit").json()["records"]
    assert {len(record["changes"]) for record in records} == {2}
    assert len(records) == FLIPS + 3


def test_one_signal_for_two_routes(
    gateways: Callable[..., Gateway], manifest: Callable[[int], str], server: RedisServer
) -> None:
    gateway = gateways(manifest(100), "--workers", "2", "--redis", server.url).start()
    with Watchers([gateway]) as watchers:
        wait_for(lambda: all(len(seen) > 20 for seen in watchers.seen), 20)
        watchers.see("2")
        with redis.Redis(port=server.port) as outside:
            outside.xadd("{turnout:default}:signals", {"action": "rollback", "route": ",".join(ROUTES)})
        watchers.see("1")
    for seen in watchers.seen:
        assert check(seen) > 1
    newest = gateway.api("GET", "/audit").json()["records"][0]
    assert (newest["type"], len(newest["changes"])) == ("deny", 2)


def test_the_check_finds_a_mix() -> None:
    with pytest.raises(AssertionError, match="one route new"):
        check([("number", "2", "1.2"), ("letter", "1", "1.2")])
    with pytest.raises(AssertionError, match="never goes back"):
        check([("number", "2", "1.2"), ("letter", "1", "1.1+1")])
    assert check([("number", "2", "1.1"), ("letter", "1", "1.1+2"), ("number", "1", "1.2")]) == 3
