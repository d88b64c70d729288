"""The real Alertmanager, on a free port, in a directory of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.servers.gateway import wait_for

PROGRAMS = ("prometheus-alertmanager", "alertmanager")
READY_S = 20.0


def program() -> str:
    """What it is called here; skips the test where it is not installed."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Alertmanager on the PATH: Debian's package is prometheus-alertmanager")
    return found


class Alertmanager:
    """One server; alerts are sent to it as Prometheus sends them."""

    def __init__(self, directory: Path) -> None:
        self._program = program()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text()

    def start(self, config: str) -> None:
        """Returns when it is ready."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "alertmanager.yml").write_text(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={self._directory / 'alertmanager.yml'}",
                    f"--storage.path={self._directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=log,
            )
        wait_for(self._is_ready, READY_S, lambda: self.log)

    def fire(self, *alerts: dict[str, dict[str, str]]) -> None:
        """`{"labels": …, "annotations": …}` each; they fire until somebody says that they do not."""
        httpx.post(f"{self.url}/api/v2/alerts", json=list(alerts), timeout=10).raise_for_status()

    def count(self, metric: str) -> float:
        """A counter of what it did by webhook, of all causes."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(metric)]
        return sum(float(value) for name, value in lines if 'integration="webhook"' in name)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False
