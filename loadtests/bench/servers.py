"""The servers that a bench starts: ours, the machine's limits, and the peers in their own environments."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loadtests.bench.floor import BODY
from loadtests.bench.machine import BenchError, Cores, free_port, require
from loadtests.bench.process import Process, pin
from loadtests.bench.protocols import CONSTANT, Answered, Ask, Protocol
from loadtests.bench.workloads import Workload
from registry_client.adapters.directory import publish

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).with_name("peers")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

MANIFEST = """
registries:
  local: {{type: directory, path: {path}}}
routes:
  {name}:
    variants:
      stable: {{model: local/{name}@champion, weight: 90}}
      canary: {{model: local/{name}@challenger, weight: 10}}
    fallback: stable
    sticky: header:turnout-key
"""
NGINX = """
daemon off; master_process off; worker_processes 1;
pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; client_max_body_size 64m;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ default_type application/json; return 200 '{body}'; }}
  }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers."""

    address: str
    process: Process
    keeper: int | None = None
    """A process of the tree that answers no requests: our supervisor."""
    admin: str = ""
    """Its admin listener, for ours."""

    def serving(self) -> list[int]:
        """The processes whose CPU time is a request's."""
        return [pid for pid in self.process.tree() if pid != self.keeper]


Starter = Callable[[Path, Workload, Cores], AbstractContextManager[Running]]


@contextmanager
def turnout(
    directory: Path, workload: Workload, cores: Cores, workers: int = 1, more: Sequence[str] = ()
) -> Iterator[Running]:
    """Ours, with all that is on by default and a route of two versions, 90 : 10 by a sticky header.

    The workers are on the server's core. The supervisor, which no request passes, is on the other. `more` are
    options of `turnout serve`.
    """
    models = directory / "models"
    for version, (alias, file) in enumerate(zip(("champion", "challenger"), workload.files, strict=True), 1):
        publish(models, workload.name, file, version=str(version), aliases=[alias])
    manifest = directory / "turnout.yaml"
    manifest.write_text(MANIFEST.format(path=models, name=workload.name))
    admin = free_port()
    options = [
        *(
            "--config",
            str(manifest),
            "--grpc-port",
            "off",
            "--admin-port",
            str(admin),
            "--workers",
            str(workers),
        ),
        *("--state-dir", str(directory / "state"), "--cache-dir", str(directory / "cache")),
        *more,
    ]

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "gateway", "serve", "--port", str(port), *options]

    def all_workers() -> bool:
        wanted = f'turnout_workers{{state="ready"}} {float(workers)}'
        return wanted in _get(f"127.0.0.1:{admin}", "/metrics")

    with _running(command, directory, cores) as running:
        running.process.wait_until(all_workers)
        pin([running.process.pid], cores.load)
        yield replace(running, keeper=running.process.pid, admin=f"127.0.0.1:{admin}")


@contextmanager
def nginx(directory: Path, workload: Workload, cores: Cores) -> Iterator[Running]:
    """A constant from C: what the machine's sockets allow."""
    require("nginx")

    def command(port: int) -> list[str]:
        config = directory / "nginx.conf"
        config.write_text(NGINX.format(directory=directory, port=port, body=BODY.decode()))
        return ["nginx", "-c", str(config), "-e", str(directory / "error.log"), "-p", str(directory)]

    with _answering(command, directory, workload, cores, CONSTANT) as running:
        yield running


@contextmanager
def uvicorn(directory: Path, workload: Workload, cores: Cores) -> Iterator[Running]:
    """A constant from the least of ASGI applications, on uvloop and httptools."""

    def command(port: int) -> list[str]:
        options = ("--no-access-log", "--log-level", "warning", "--lifespan", "off", "--port", str(port))
        return [sys.executable, "-m", "uvicorn", *options, "loadtests.bench.floor:app"]

    with _answering(command, directory, workload, cores, CONSTANT) as running:
        yield running


@contextmanager
def bare_protocol(directory: Path, workload: Workload, cores: Cores) -> Iterator[Running]:
    """A constant from an asyncio.Protocol, on uvloop and httptools: what Python's sockets allow."""

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "loadtests.bench.floor", str(port)]

    with _answering(command, directory, workload, cores, CONSTANT) as running:
        yield running


def peer(name: str, protocol: Protocol) -> Starter:
    """One of the scripts under peers/, run by the Python of the environment that `make bench-peers` makes."""
    return partial(_peer, name, protocol)


@contextmanager
def _peer(
    name: str, protocol: Protocol, directory: Path, workload: Workload, cores: Cores
) -> Iterator[Running]:
    home = ROOT / ".venvs" / f"peer-{name}" / "bin"
    if not (home / "python").exists():
        raise BenchError(f"{home.parent} is not there: `make bench-peers` makes it")

    def command(port: int) -> list[str]:
        script = PEERS / f"{name}_server.py"
        return [str(home / "python"), str(script), workload.name, str(workload.files[0]), str(port)]

    own = {
        "PATH": f"{home}:{os.environ['PATH']}",
        "PYTHONPATH": "",  # nothing of this tree
        "TURNOUT_BENCH_MODEL": str(workload.files[0]),
    }
    with _answering(command, directory, workload, cores, protocol, own) as running:
        yield running


@contextmanager
def _answering(
    command: Callable[[int], Sequence[str]],
    directory: Path,
    workload: Workload,
    cores: Cores,
    protocol: Protocol,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    ask = protocol.ask(workload.name, workload.row)
    with _running(command, directory, cores, environment) as running:
        running.process.wait_until(lambda: _answers(running.address, ask))
        yield running


@contextmanager
def _running(
    command: Callable[[int], Sequence[str]],
    directory: Path,
    cores: Cores,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    port = free_port()
    own = {**ONE_THREAD, "PYTHONPATH": str(ROOT), **(environment or {})}
    process = Process(command(port), directory / "log", core=cores.server, cwd=directory, environment=own)
    try:
        yield Running(address=f"127.0.0.1:{port}", process=process)
    finally:
        process.stop()


def check(running: Running, workload: Workload, protocol: Protocol) -> None:
    """Raises `BenchError` where the server's answer is not the model's."""
    answer = post(running.address, protocol.ask(workload.name, workload.row))
    output = protocol.read(answer)
    if output is not None and not workload.is_answer(output):
        raise BenchError(
            f"{running.address} answers {answer.body[:200]!r} for {workload.name!r}: it is wrong"
        )


def _answers(address: str, ask: Ask) -> bool:
    try:
        post(address, ask)
    except (OSError, BenchError, http.client.HTTPException):
        return False
    return True


def post(address: str, ask: Ask) -> Answered:
    """Raises `BenchError` for whatever is no 200."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", ask.path, ask.body, dict(ask.headers))
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise BenchError(f"{address}{ask.path} answers {response.status}: {body[:300]!r}")
    return Answered(body=body, headers={name.lower(): text for name, text in response.getheaders()})


def _get(address: str, path: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()
