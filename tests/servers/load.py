"""Clients that never stop asking: threads with a kept-alive connection each, that tell losses apart."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 20.0


class Load:
    """`with Load(url, body, clients=8) as load:` asks from `clients` threads until the block ends.

    A client that is told `Connection: close` reconnects, as any HTTP client does. One that is refused a
    connection waits for a moment and tries again.
    """

    def __init__(self, url: str, document: Any, *, clients: int = 8) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._path = parts.path
        self._body = json.dumps(document).encode()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        self._lock = threading.Lock()
        self.codes: Counter[int] = Counter()
        self.revisions: Counter[str] = Counter()
        self.refused = 0
        """Connections that were never made: nothing was lost with them."""
        self.lost: list[str] = []
        """Requests that got onto a connection, or were being written to it, and no answer came."""

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S + 5)

    @property
    def answered(self) -> int:
        with self._lock:
            return self.codes.total()

    def _ask(self) -> None:
        connection = HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        while not self._stop.is_set():
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                with self._lock:
                    self.refused += 1
                self._stop.wait(0.02)
                continue
            try:
                connection.request("POST", self._path, self._body)
                response = connection.getresponse()
                response.read()
            except (OSError, HTTPException) as error:
                connection.close()
                with self._lock:
                    self.lost.append(f"{type(error).__name__}: {error}")
                continue
            with self._lock:
                self.codes[response.status] += 1
                self.revisions[response.headers["turnout-revision"] or ""] += 1
        connection.close()


def connections_of(pid: int, port: int | None = None) -> int:
    """How many clients' connections a process has, to one port or to any; counts what Linux tells of them."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(descriptor.readlink().name)
        except OSError:
            continue
    # gRPC's core has IPv4 connections on sockets of IPv6.
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    ports = {row[9]: int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "01"}
    return sum(f"socket:[{inode}]" in inodes and port in (None, its) for inode, its in ports.items())
