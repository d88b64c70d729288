"""A real gateway: `turnout serve` in a process of its own, on free ports, in directories of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

READY_S = 60.0
_READY = re.compile(r"turnout is ready: data http://(\S+)  admin http://(\S+)(?:  grpc (\S+))?")


class Gateway:
    """One replica. Its directories outlive a stop, so that it can be started again."""

    def __init__(self, directory: Path, manifest: str, *options: str, **environment: str) -> None:
        self.directory = directory
        self.manifest = directory / "turnout.yaml"
        self.manifest.parent.mkdir(parents=True, exist_ok=True)
        self.manifest.write_text(manifest)
        self.options = options
        self.environment = environment
        self.data = ""
        self.admin = ""
        self.grpc = ""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self, *, config: bool = True, wait: bool = True) -> Gateway:
        """Returns when the line on the screen says that it is ready."""
        command = [sys.executable, "-m", "gateway", "serve", "--verbose"]
        command += ["--port", "0", "--grpc-port", "0", "--admin-port", "0"]
        command += [
            "--state-dir",
            str(self.directory / "state"),
            "--cache-dir",
            str(self.directory / "cache"),
        ]
        command += ["--config", str(self.manifest)] if config else []
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.options],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                cwd=Path(__file__).parents[2],
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        match = wait_for(lambda: _READY.search(self.log) or self._ended(), READY_S, lambda: self.log)
        assert match is not True, self.log
        self.data, self.admin, self.grpc = f"http://{match[1]}", f"http://{match[2]}", match[3] or ""

    def stop(self, timeout_s: float = 45.0) -> int:
        """SIGTERM, as an orchestrator would; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL of the supervisor; the workers see the end of their channel and go."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def api(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A call of the admin API."""
        return httpx.request(method, f"{self.admin}/api/v1{path}", timeout=30, **options)

    def turnout(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, against this gateway."""
        return subprocess.run(
            [sys.executable, "-m", "gateway", "--admin", self.admin, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.environment},
            cwd=Path(__file__).parents[2],
        )

    def metrics(self) -> dict[str, float]:
        """`name{labels}` → value, of every sample that a scrape shows."""
        text = httpx.get(f"{self.admin}/metrics", timeout=10).text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def ready_workers(self) -> int:
        """Workers that accept connections; the first of them makes the gateway ready."""
        return int(self.metrics()['turnout_workers{state="ready"}'])

    def worker_pids(self) -> list[int]:
        assert self.process is not None
        children = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "gateway.node.worker"],
            capture_output=True,
            text=True,
        )
        return [int(line) for line in children.stdout.split()]

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None


def wait_for(
    condition: Callable[[], Any],
    timeout_s: float,
    explain: Callable[[], str] = lambda: "",
    *,
    every_s: float = 0.01,
) -> Any:
    """The condition's value as soon as it is true; polls, because it is another process' state."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s. {explain()}"
        time.sleep(every_s)


@pytest.fixture
def gateways(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """`gateways(manifest, *options)` → a gateway that is not started yet; all are stopped at the end."""
    made: list[Gateway] = []

    def make(manifest: str, *options: str, **environment: str) -> Gateway:
        gateway = Gateway(tmp_path / f"gateway{len(made)}", manifest, *options, **environment)
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        gateway.kill()
