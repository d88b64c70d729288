"""What an overloaded version costs the others: latencies of a tiny model and of the health check beside it.

    python -m loadtests.bench.overload [--slow 1] [--factor 3] [--seconds 6] [--concurrency auto] [--workers 1]

Starts a gateway of its own on free ports with a tiny model and `--slow` models of about 8 ms a run that are not
batched, measures what one of those can do, then offers each `--factor` times that, at fixed times whatever the
answers do. The tiny model is asked 300 times a second and the health check 50 times, alone and beside the
overload. Only the two lines of one run can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway

ROUNDS = 640
"""Products of 512 x 512 in a slow run."""
TINY_RATE, HEALTH_RATE = 300.0, 50.0
MEASURE_S = 2.0
Ask = Callable[[], Coroutine[Any, Any, None]]


class Target:
    """One thing to ask, over connections that are kept and taken in turn."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self._address = address
        self._request = request
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.latencies_ms: dict[int, list[float]] = {}

    def clear(self) -> None:
        self.latencies_ms = {}

    async def ask(self) -> None:
        started = time.perf_counter()
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*self._address)
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                await reader.readexactly(int(line[15:]))
        self.latencies_ms.setdefault(status, []).append((time.perf_counter() - started) * 1e3)
        self._idle.append((reader, writer))

    def text(self, seconds: float) -> str:
        parts = []
        for status, latencies in sorted(self.latencies_ms.items()):
            latencies.sort()
            p50, p99, most = (
                latencies[min(int(len(latencies) * q), len(latencies) - 1)] for q in (0.5, 0.99, 1)
            )
            rate = len(latencies) / seconds
            parts.append(f"{status}: {rate:.0f}/s, p50 {p50:.1f} p99 {p99:.1f} max {most:.1f} ms")
        return "; ".join(parts) or "nothing"


async def offer(ask: Ask, rate: float, seconds: float) -> None:
    """An open load: requests at fixed times, whatever became of the earlier ones."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            group.create_task(ask())


async def closed(ask: Ask, clients: int, seconds: float) -> None:
    """A closed load: each client asks again when it has its answer."""
    until = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < until:
            await ask()

    await asyncio.gather(*(client() for _ in range(clients)))


def infer(route: str, width: int) -> bytes:
    tensor = {"name": "input", "shape": [1, width], "datatype": "FP32", "data": [0.0] * width}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/{route}/infer HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def bench(data: str, slow_routes: Sequence[str], factor: float, seconds: float) -> None:
    parts = urlsplit(data)
    address = str(parts.hostname), int(parts.port or 80)
    tiny = Target(address, infer("tiny", 16))
    health = Target(address, b"GET /v2/health/ready HTTP/1.1\r\nHost: bench\r\n\r\n")
    slow = [Target(address, infer(route, 4)) for route in slow_routes]

    async def others() -> None:
        await asyncio.gather(offer(tiny.ask, TINY_RATE, seconds), offer(health.ask, HEALTH_RATE, seconds))

    await others()
    print(f"alone   tiny   {tiny.text(seconds)}\n        health {health.text(seconds)}", flush=True)
    await closed(slow[0].ask, 4, MEASURE_S)
    capacity = len(slow[0].latencies_ms[200]) / MEASURE_S
    print(f"one slow version alone does {capacity:.0f}/s; offered to each: {capacity * factor:.0f}/s")
    for target in (tiny, health, *slow):
        target.clear()
    await asyncio.gather(others(), *(offer(target.ask, capacity * factor, seconds) for target in slow))
    print(f"beside  tiny   {tiny.text(seconds)}\n        health {health.text(seconds)}")
    for target in slow:
        print(f"        slow   {target.text(seconds)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slow", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--concurrency", default="auto")
    parser.add_argument("--workers", default="1")
    options = parser.parse_args()
    slow_routes = [f"slow{number}" for number in range(options.slow)]
    with tempfile.TemporaryDirectory() as directory:
        engine = f"{{batching: false, concurrency: {options.concurrency}}}"
        lines = [
            f"  {route}: {{variants: {{stable: {{model: local/{route}@champion}}}}, engine: {engine}}}"
            for route in slow_routes
        ]
        manifest = "\n".join(
            [
                "registries: {local: {type: directory, path: ./models}}",
                "routes:",
                "  tiny: {variants: {stable: {model: local/tiny@champion}}}",
                *lines,
            ]
        )
        gateway = Gateway(Path(directory) / "gateway", manifest, "--workers", options.workers)
        for number, name in enumerate(("tiny", *slow_routes)):
            # Each of another length: routes to the same bytes would share one loaded version.
            model = models.slow(options.rounds + number) if number else models.mlp(16, 32, 2)
            source = models.save(model, Path(directory) / name)
            publish(gateway.directory / "models", name, source, version="1", aliases=["champion"])
        try:
            gateway.start()
            uvloop.run(bench(gateway.data, slow_routes, options.factor, options.seconds))
        finally:
            gateway.kill()


if __name__ == "__main__":
    main()
