"""What 10,000 declared routes with 50 loaded versions cost, against one route.

    python -m loadtests.bench.many_routes [--routes 10000] [--versions 50] [--requests 4000]

Starts one gateway with one route and one with many, asks both in turns over keep-alive connections (one route
of the one, all of the other's in turn), and prints the ratio; then what a rollback takes until the first answer
that shows it and until it is acknowledged, the worker's memory, a scrape and `GET /api/v1/routes`. Only ratios
within one run mean anything.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for

BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.0, 0.0, 0.0]}]}
).encode()
FLIPS = 10


def manifest(directory: Path, routes: int, versions: int) -> str:
    lines = [f"registries:\n  local: {{type: directory, path: {directory}/models}}\nroutes:"]
    for number in range(routes):
        model = f"local/m{number % versions}"
        lines.append(
            f"  r{number}: {{fallback: stable, variants: {{stable: {{model: {model}@1, weight: 0}}, "
            f"canary: {{model: {model}@2, weight: 100}}}}}}"
        )
    return "\n".join(lines) + "\n"


def publish_versions(directory: Path, versions: int) -> None:
    for number in range(versions):
        for version in ("1", "2"):
            source = models.save(
                models.constant(float(f"{number}.{version}")), directory / f"{number}.{version}"
            )
            publish(directory / "models", f"m{number}", source, version=version)


class Client:
    def __init__(self, gateway: Gateway) -> None:
        address = urlsplit(gateway.data)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)

    def ask(self, route: int) -> tuple[float, str]:
        """(seconds, the version that answered)."""
        started = time.perf_counter()
        self._connection.request("POST", f"/v2/models/r{route}/infer", BODY)
        response = self._connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        return time.perf_counter() - started, response.headers["turnout-version"]


def compare(one: Gateway, many: Gateway, routes: int, requests: int) -> None:
    clients = Client(one), Client(many)
    took: tuple[list[float], list[float]] = ([], [])
    for number in range(requests):
        took[0].append(clients[0].ask(0)[0])
        took[1].append(clients[1].ask(number * 7919 % routes)[0])
    print(f"{'a request, in turns':30} one route {_shown(took[0])}   {routes} routes {_shown(took[1])}   "
          f"ratio of medians {statistics.median(took[1]) / statistics.median(took[0]):.2f}")  # fmt: skip


def flips(gateway: Gateway) -> tuple[list[float], list[float]]:
    """Seconds until the first answer of the version that a rollback leads to, and until it is acknowledged."""
    client, admin = Client(gateway), httpx.Client(base_url=gateway.admin, timeout=30)
    shown, acknowledged = [], []
    with ThreadPoolExecutor(1) as thread:
        for route in range(FLIPS):
            assert client.ask(route)[1] == "2"
            started = time.perf_counter()
            answer = thread.submit(admin.post, f"/api/v1/routes/r{route}/rollback", json={})
            wait_for(lambda route=route: client.ask(route)[1] == "1", 30, every_s=0.001)  # type: ignore[misc]
            shown.append(time.perf_counter() - started)
            answer.result().raise_for_status()
            acknowledged.append(time.perf_counter() - started)
    return shown, acknowledged


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def describe(name: str, gateway: Gateway) -> None:
    shown, acknowledged = flips(gateway)
    (pid,) = gateway.worker_pids()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    rss_mib = int(rollup[rollup.index("Rss:") + 1]) // 1024
    scrape = timed(gateway.metrics)
    listing = timed(lambda: gateway.api("GET", "/routes").raise_for_status())
    print(f"{name:14} rollback: answered by the API {_shown(acknowledged)}, seen by a client {_shown(shown)}; "
          f"worker {rss_mib} MiB; scrape {scrape:.2f} s; GET /routes {listing:.2f} s")  # fmt: skip


def _shown(seconds: list[float]) -> str:
    worst = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    return f"p50 {statistics.median(seconds) * 1000:.2f} p99 {worst * 1000:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--routes", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=25, help="models; each has two versions loaded")
    parser.add_argument("--requests", type=int, default=4000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnout-routes-") as scratch:
        directory = Path(scratch)
        publish_versions(directory, arguments.versions)
        few = Gateway(directory / "one", manifest(directory, FLIPS, 1), "--workers", "1")
        many = Gateway(
            directory / "many", manifest(directory, arguments.routes, arguments.versions), "--workers", "1"
        )
        try:
            for name, gateway in (("few routes", few), ("many routes", many)):
                print(f"{name}: ready after {timed(gateway.start):.1f} s")
            compare(few, many, arguments.routes, arguments.requests)
            describe("few routes", few)
            describe("many routes", many)
        finally:
            few.kill()
            many.kill()


if __name__ == "__main__":
    main()
