"""How fast a rollback is: from the XADD in Redis to the last answer of the denied version, under load.

    python -m loadtests.bench.flip [--flips 50] [--clients 8] [--workers 2] [--fsync always]

Starts a Valkey server and a gateway of its own on free ports, keeps raw keep-alive clients asking, denies the
canary by a signal, lifts the deny again, and prints the distribution beside that of one request's latency,
the floor of what a client can see. Latency is only comparable within one run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

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
BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.0, 0.0, 0.0]}]}
).encode()


class Client(threading.Thread):
    """Asks without a pause; keeps (sent, received, version, status) of every answer."""

    def __init__(self, data: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._address = urlsplit(data)
        self._halt = stop
        self.answers: list[tuple[float, float, str, int]] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port, timeout=10)
        while not self._halt.is_set():
            sent = time.monotonic()
            connection.request("POST", "/v2/models/number/infer", BODY)
            response = connection.getresponse()
            response.read()
            version = response.headers.get("turnout-version", "")
            self.answers.append((sent, time.monotonic(), version, response.status))


def measure(flips: int, clients: int, workers: int, fsync: str) -> None:
    with tempfile.TemporaryDirectory(prefix="turnout-flip-") as scratch:
        directory = Path(scratch)
        for version, alias in (("1", "champion"), ("2", "challenger")):
            source = models.save(models.constant(float(version)), directory / version / "model.onnx")
            publish(directory / "models", "number", source, version=version, aliases=[alias])
        server = RedisServer("valkey", directory / "redis")
        server.start("--appendfsync", fsync)
        manifest = MANIFEST.format(path=directory / "models")
        options = ("--workers", str(workers), "--redis", server.url)
        gateway = Gateway(directory / "gateway", manifest, *options).start()
        try:
            _measure(gateway, server, flips, clients)
        finally:
            gateway.kill()
            server.kill()


def _measure(gateway: Gateway, server: RedisServer, flips: int, clients: int) -> None:
    halt = threading.Event()
    crowd = [Client(gateway.data, halt) for _ in range(clients)]
    signals = redis.Redis.from_url(server.url)
    for client in crowd:
        client.start()
    times = [_flip(gateway, signals, crowd) for _ in range(flips)]
    halt.set()
    for client in crowd:
        client.join()
    answers = [answer for client in crowd for answer in client.answers]
    latencies = [received - sent for sent, received, _, _ in answers]
    failed = sum(status != 200 for *_, status in answers)
    print(f"{len(answers)} requests by {clients} clients, {failed} failed; {flips} flips")
    for name, values in (("one request", latencies), ("XADD to last denied answer", times)):
        print(f"{name:28} p50 {_quantile(values, 50):7.2f} ms   p99 {_quantile(values, 99):7.2f} ms"
              f"   max {max(values) * 1000:7.2f} ms")  # fmt: skip


def _flip(gateway: Gateway, signals: redis.Redis, crowd: list[Client]) -> float:
    """Seconds from the signal to the last answer of the denied version, as the clients saw it."""
    marks = [len(client.answers) for client in crowd]
    sent = time.monotonic()
    signals.xadd("{turnout:default}:signals", {"action": "rollback", "route": "number"})

    def denied_since(mark: list[int]) -> list[float]:
        return [
            received
            for client, start in zip(crowd, mark, strict=True)
            for _, received, version, _ in client.answers[start:]
            if version == "2"
        ]

    def settled() -> bool:
        members = gateway.api("GET", "/status").json()["members"]
        return all(
            member["deny_n"] == 1 and member["workers_ok"] == member["workers_total"] for member in members
        )

    # Seldom: what is measured shares its cores with whoever asks.
    wait_for(settled, 10, every_s=0.1)
    after = [len(client.answers) for client in crowd]
    wait_for(lambda: all(len(c.answers) > mark + 20 for c, mark in zip(crowd, after, strict=True)), 20)
    last = max(denied_since(marks), default=sent)
    # The clients' own noting lags behind by a request at most: one more each, then nothing of the denied version.
    late = denied_since([mark + 2 for mark in after])
    assert not late, "an answer of the denied version came after the acknowledgement"
    gateway.api("DELETE", "/routes/number/denies/2").raise_for_status()
    restored = [len(client.answers) for client in crowd]
    wait_for(lambda: denied_since(restored), 20)
    return max(0.0, last - sent)


def _quantile(seconds: list[float], per_cent: int) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[per_cent - 1] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    # With "always" the signal itself waits for the disk, and every stall of the disk is in the figure.
    parser.add_argument("--fsync", choices=["everysec", "always"], default="everysec")
    arguments = parser.parse_args()
    # The clients are threads: at the usual 5 ms each would wait for the others longer than for an answer.
    sys.setswitchinterval(1e-4)
    measure(arguments.flips, arguments.clients, arguments.workers, arguments.fsync)


if __name__ == "__main__":
    main()
