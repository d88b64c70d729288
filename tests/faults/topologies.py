"""The stores over which a fleet can be hurt, and what can be done to each."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import redis

from tests.faults.fleet import StoreView, connect
from tests.servers.partition import Link
from tests.servers.redis import RedisServer

Injury = Callable[[], AbstractContextManager[None]]
"""A fault: it lasts for as long as the block does."""


class Topology(Protocol):
    urls: list[str]
    """Where each replica finds the store, "" for a store of its own."""
    view: StoreView | None

    def injuries(self, rng: random.Random) -> dict[str, tuple[int, Injury]]:
        """By name: how often, against the others', and what."""

    def close(self) -> None: ...


class Embedded:
    """One replica with its own file."""

    view = None

    def __init__(self, _: Path, __: str) -> None:
        self.urls = [""]

    def injuries(self, rng: random.Random) -> dict[str, tuple[int, Injury]]:
        return {}

    def close(self) -> None:
        pass


class Single:
    """One server, and to each of two replicas a link that can be cut."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._server = RedisServer(kind, directory / "redis")
        self._server.start()
        self._links = [Link(self._server.port) for _ in range(2)]
        self.urls = [f"redis://127.0.0.1:{link.port}" for link in self._links]
        self.view = StoreView(self._client)

    def _client(self) -> redis.Redis:
        return connect(self._server.url)

    def injuries(self, rng: random.Random) -> dict[str, tuple[int, Injury]]:
        return {
            "kill": (4, self._kill),
            "freeze": (4, self._freeze),
            "evict": (3, self._evict),
            "cut": (2, lambda: self._parted(Link.cut, rng)),
            "hold": (2, lambda: self._parted(Link.hold, rng)),
            "forget scripts": (1, self._forget_scripts),
            "read only": (1, self._read_only),
            "full": (1, self._full),
        }

    def close(self) -> None:
        for link in self._links:
            link.close()
        self._server.kill()

    @contextlib.contextmanager
    def _kill(self) -> Iterator[None]:
        self._server.kill()
        yield
        self._server.start()

    @contextlib.contextmanager
    def _freeze(self) -> Iterator[None]:
        self._server.freeze()
        yield
        self._server.thaw()

    @contextlib.contextmanager
    def _evict(self) -> Iterator[None]:
        with self._client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        yield

    @contextlib.contextmanager
    def _forget_scripts(self) -> Iterator[None]:
        with self._client() as client:
            client.script_flush()
        yield

    @contextlib.contextmanager
    def _read_only(self) -> Iterator[None]:
        """As a primary that was demoted: it answers, and takes no writes."""
        with self._client() as client:
            client.replicaof("127.0.0.1", "1")
            try:
                yield
            finally:
                client.replicaof("NO", "ONE")

    @contextlib.contextmanager
    def _full(self) -> Iterator[None]:
        with self._client() as client:
            client.config_set("maxmemory", "1mb")
            try:
                yield
            finally:
                client.config_set("maxmemory", "0")

    @contextlib.contextmanager
    def _parted(self, part: Callable[[Link], None], rng: random.Random) -> Iterator[None]:
        link = rng.choice(self._links)
        part(link)
        try:
            yield
        finally:
            link.heal()


TOPOLOGIES: dict[str, Callable[[Path, str], Topology]] = {"single": Single, "embedded": Embedded}
