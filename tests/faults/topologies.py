"""The stores over which a fleet can be hurt, and what can be done to each."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

import redis

from tests.faults.fleet import now_ns
from tests.faults.history import Fault
from tests.faults.store_view import StoreView, connect
from tests.servers.partition import Link
from tests.servers.redis import RedisServer
from tests.servers.sentinel import SERVICE, SentinelGroup

Injury = Callable[[Fault], AbstractContextManager[None]]
"""Does it, and undoes it at the block's end. It is over by then, unless the fault says that it was over before."""


PATIENT = (f"sentinel down-after-milliseconds {SERVICE} 1000",)
"""A machine that is busy with all of this must not look like a primary that is down."""


class Topology(Protocol):
    urls: list[str]
    """Where each replica finds the store, "" for a store of its own."""
    view: StoreView | None

    def injuries(self, rng: random.Random) -> dict[str, tuple[int, Injury]]:
        """By name: how often, against the others', and what."""

    def close(self) -> None: ...


class Embedded:
    """One replica with its own file."""

    view: StoreView | None = None

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
        self.view: StoreView | None = StoreView(self._client)

    def _client(self) -> redis.Redis:
        return connect(self._server.url)

    def injuries(self, rng: random.Random) -> dict[str, tuple[int, Injury]]:
        return {
            "kill": (4, self._kill),
            "freeze": (4, self._freeze),
            "evict": (3, self._evict),
            "cut": (2, partial(self._parted, Link.cut, rng)),
            "hold": (2, partial(self._parted, Link.hold, rng)),
            "forget scripts": (1, self._forget_scripts),
            "read only": (1, self._read_only),
            "full": (1, self._full),
            "flush": (1, self._flush),
        }

    def close(self) -> None:
        for link in self._links:
            link.close()
        self._server.kill()

    @contextlib.contextmanager
    def _kill(self, _: Fault) -> Iterator[None]:
        self._server.kill()
        yield
        self._server.start()

    @contextlib.contextmanager
    def _freeze(self, _: Fault) -> Iterator[None]:
        self._server.freeze()
        yield
        self._server.thaw()

    @contextlib.contextmanager
    def _evict(self, _: Fault) -> Iterator[None]:
        with self._client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        yield

    @contextlib.contextmanager
    def _forget_scripts(self, _: Fault) -> Iterator[None]:
        with self._client() as client:
            client.script_flush()
        yield

    @contextlib.contextmanager
    def _read_only(self, _: Fault) -> Iterator[None]:
        """As a primary that was demoted: it answers, and takes no writes."""
        with self._client() as client:
            client.replicaof("127.0.0.1", "1")
            try:
                yield
            finally:
                client.replicaof("NO", "ONE")

    @contextlib.contextmanager
    def _full(self, _: Fault) -> Iterator[None]:
        with self._client() as client:
            client.config_set("maxmemory", "1mb")
            try:
                yield
            finally:
                client.config_set("maxmemory", "0")

    @contextlib.contextmanager
    def _flush(self, fault: Fault) -> Iterator[None]:
        """Everything is gone; what the replicas hold is all there is."""
        fault.loses = True
        with self._client() as client:
            client.flushall()
        yield

    @contextlib.contextmanager
    def _parted(self, part: Callable[[Link], None], rng: random.Random, _: Fault) -> Iterator[None]:
        link = rng.choice(self._links)
        part(link)
        try:
            yield
        finally:
            link.heal()


class Sentinels:
    """A primary with two replicas under three sentinels."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._group = SentinelGroup(kind, directory / "sentinel", sentinel_lines=PATIENT)
        try:
            self._group.start()
        except BaseException:
            self._group.close()
            raise
        self.urls = [self._group.url] * 2
        self.view: StoreView | None = StoreView(self._client)

    def _client(self) -> redis.Redis:
        try:
            return connect(self._group.primary().url)
        except RuntimeError as error:
            raise redis.ConnectionError(str(error)) from error

    def injuries(self, rng: random.Random) -> dict[str, tuple[int, Injury]]:
        return {
            "kill the primary": (4, self._kill),
            "freeze the primary": (4, self._freeze),
            "fail over": (4, self._fail_over),
            "evict": (2, self._evict),
            "kill a replica": (1, partial(self._without, lambda: rng.choice(self._group.replicas()))),
            "kill a sentinel": (1, partial(self._without, lambda: rng.choice(self._group.sentinels))),
        }

    def close(self) -> None:
        self._group.close()

    @contextlib.contextmanager
    def _kill(self, fault: Fault) -> Iterator[None]:
        old = self._group.primary()
        old.kill()
        self._group.promoted(instead_of=old)
        self._is_over(fault)
        yield
        self._group.start_again(old)
        self._group.settle()

    @contextlib.contextmanager
    def _freeze(self, fault: Fault) -> Iterator[None]:
        """Thawed, the old primary takes itself for the only one until a sentinel has told it."""
        old = self._group.primary()
        old.freeze()
        self._group.promoted(instead_of=old)
        self._is_over(fault)
        yield
        old.thaw()
        self._group.settle()

    @contextlib.contextmanager
    def _fail_over(self, fault: Fault) -> Iterator[None]:
        self._group.fail_over()
        self._is_over(fault)
        yield
        self._group.settle()

    @contextlib.contextmanager
    def _evict(self, _: Fault) -> Iterator[None]:
        self._group.ask(self._group.primary(), "CLIENT", "KILL", "TYPE", "normal")
        yield

    @contextlib.contextmanager
    def _without(self, choose: Callable[[], RedisServer], _: Fault) -> Iterator[None]:
        server = choose()
        server.kill()
        yield
        self._group.start_again(server) if server in self._group.servers else server.start()
        self._group.settle()

    def _is_over(self, fault: Fault) -> None:
        """There is a primary again. What only the old one's memory had is gone."""
        fault.over_ns, fault.loses = now_ns(), True


TOPOLOGIES: dict[str, Callable[[Path, str], Topology]] = {
    "single": Single,
    "sentinel": Sentinels,
    "embedded": Embedded,
}
