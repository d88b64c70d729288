"""Two replicas with two workers each over one real store, and what can be asked of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from registry_client.adapters.directory import publish
from tests import models
from tests.faults.history import Label, Standing
from tests.servers.gateway import Gateway, wait_for

ROUTES = ("alpha", "beta", "gamma", "delta")
TIMEOUT_S = 2.0
"""Of a call that only looks; a frozen replica answers none."""
CHANGE_TIMEOUT_S = 25.0
"""Of a call that changes something: longer than anything here is frozen, so that none is given up and yet done."""
WHOLE_S = 60.0
_REGISTRY = "registries:\n  local: {{type: directory, path: {path}}}\nroutes:\n"
_ROUTE = """  {route}:
    sticky: header:turnout-key
    variants:
      stable: {{model: local/number@1, weight: 50}}
      canary: {{model: local/number@2, weight: 50}}
"""


class Replica:
    """One gateway on ports that outlive it."""

    def __init__(self, number: int, directory: Path, manifest: str, *options: str) -> None:
        self.number = number
        self.data_port, self.admin_port = free_port(), free_port()
        ports = ("--port", str(self.data_port), "--admin-port", str(self.admin_port), "--grpc-port", "off")
        self.gateway = Gateway(directory, manifest, "--workers", "2", *ports, *options)
        # Kept: each client of httpx makes a context for TLS, which takes 20 ms.
        self.api = httpx.Client(base_url=self.admin, timeout=TIMEOUT_S, trust_env=False)
        self._logs: list[str] = []

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def log(self) -> str:
        return "".join(self._logs) + self.gateway.log

    @property
    def pid(self) -> int:
        assert self.gateway.process is not None
        return self.gateway.process.pid

    def start(self) -> None:
        self.gateway.start()

    def restart(self) -> None:
        """SIGKILL, and a new life on the same disk as soon as the workers have let go of the port."""
        workers = self.gateway.worker_pids()
        self.gateway.kill()
        wait_for(lambda: all(gone(pid) for pid in workers), WHOLE_S)
        self._logs.append(self.gateway.log)
        self.gateway.start()

    def get(self, path: str) -> Any:
        """A document of the admin listener, None where it does not answer."""
        try:
            return self.api.get(path).json()
        except (httpx.HTTPError, ValueError):
            return None

    def degraded(self) -> list[str]:
        """What it says is wrong."""
        document = self.get("/readyz")
        if document is None:
            return ["it does not answer"]
        return [*document["degraded"], *([] if document["ready"] else ["not ready"])]

    def restore(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self.api.post("/api/v1/restore", json={"reason": "faults"}, timeout=CHANGE_TIMEOUT_S)

    @property
    def can_restore(self) -> bool:
        """Whether it knows the call; a revision that no store ever had is refused."""
        refused = self.api.post("/api/v1/restore", json={}, headers={"if-match": '"999.999"'})
        return refused.status_code not in (404, 405)

    def standing(self, route: int) -> Standing:
        document = self.api.get(f"/api/v1/routes/{ROUTES[route]}").json()
        canary = document["variants"]["canary"]
        denied = int(canary["denied"] is not None)
        return Standing(
            where=f"replica {self.number}", route=route, denied=denied, weight=round(canary["weight"])
        )


class Fleet:
    """Replicas of one state. `urls` says where each finds the store; "" is one of its own."""

    def __init__(self, directory: Path, urls: list[str]) -> None:
        for version in (1, 2):
            source = models.save(models.constant(float(version)), directory / f"v{version}" / "model.onnx")
            publish(directory / "models", "number", source, version=str(version))
        manifest = _REGISTRY.format(path=directory / "models")
        manifest += "".join(_ROUTE.format(route=route) for route in ROUTES)
        self.replicas = [
            Replica(number, directory / f"replica{number}", manifest, *(("--redis", url) if url else ()))
            for number, url in enumerate(urls)
        ]
        self.names: dict[str, int] = {}
        """What each replica calls itself, of all its lives."""

    def start(self) -> None:
        for replica in self.replicas:
            replica.start()
            self.learn(replica)
        self.wait_whole()

    def learn(self, replica: Replica) -> None:
        """Its name: it has another one in every life."""
        document = wait_for(lambda: replica.get("/api/v1/status"), WHOLE_S, lambda: replica.log)
        self.names[document["replica"]] = replica.number

    def wait_whole(self, *, mend: bool = False) -> None:
        """Returns when no replica says that anything is wrong; with `mend`, does what the replicas ask for."""

        def whole() -> bool:
            if mend:
                self.mend()
            return not any(self.troubles())

        wait_for(whole, WHOLE_S, lambda: str(self.troubles()), every_s=0.02)

    def troubles(self) -> list[list[str]]:
        return [replica.degraded() for replica in self.replicas]

    def mend(self) -> None:
        """What an operator does about a store that lost something: gives it what the replica holds that is furthest."""
        asking = {
            replica.number: replica
            for replica, troubles in zip(self.replicas, self.troubles(), strict=True)
            if any("turnout restore" in trouble for trouble in troubles)
        }
        documents = {number: replica.get("/readyz") for number, replica in asking.items()}
        held = {
            number: Label.parse(document["revision"]) for number, document in documents.items() if document
        }
        if held:
            asking[max(held, key=lambda number: held[number])].restore()

    def kill(self) -> None:
        for replica in self.replicas:
            replica.gateway.kill()
            replica.api.close()

    @contextlib.contextmanager
    def clients(self, answers: Path, *, connections: int, span_ms: int) -> Iterator[None]:
        """Clients that ask every replica until the block ends."""
        targets = [f"127.0.0.1:{replica.data_port}:{connections}" for replica in self.replicas]
        command = [sys.executable, "-m", "tests.faults.clients", str(answers), str(span_ms), *targets]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        ) as asking:
            assert asking.stdin is not None
            asking.stdin.write(" ".join(ROUTES) + "\n")
            asking.stdin.flush()
            try:
                yield
                assert asking.poll() is None, "the clients ended by themselves"
            finally:
                asking.stdin.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gone(pid: int) -> bool:
    """Whether a process has ended, waited for by its parent or not.

    The first thread may have ended while another still holds the connections.
    """
    process = Path(f"/proc/{pid}")
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" and len(list((process / "task").iterdir())) == 1
    except OSError:
        return True


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def now_ns() -> int:
    return time.monotonic_ns()
