"""A primary, two replicas and three sentinels, of both kinds, that tests may hurt in any way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.servers.certificates import Certificate
from tests.servers.redis import KINDS, RedisServer

SERVICE = "turnout"
DOWN_AFTER_MS = 500
QUICK = ("info-period", "500", "publish-period", "500")
SETTLED_S = 20.0
"""Far past what a fail-over takes (about 2 s): whoever waits this long has failed."""


class SentinelServer(RedisServer):
    """One sentinel. What it has learnt stays in its file between two lives."""

    def __init__(
        self,
        kind: str,
        directory: Path,
        primary_port: int,
        lines: Sequence[str] = (),
        login: Mapping[str, Any] | None = None,
        tls: Certificate | None = None,
    ) -> None:
        super().__init__(kind, directory, tls)
        self._login = dict(login or {})
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "sentinel.conf"
        settings = [
            *(f"{name} {value}" for name, value in self._listening()),
            f"dir {directory}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            # After a fail-over that failed, the next attempt comes after twice this.
            f"sentinel failover-timeout {SERVICE} 2000",
            f"sentinel parallel-syncs {SERVICE} 2",
            *lines,
        ]
        self._file.write_text("\n".join(settings) + "\n")

    def start(self, *options: str) -> None:
        """Returns when it answers, and looks at its servers more often than the 10 s that are compiled in."""
        super().start(*options)
        with redis.Redis("127.0.0.1", self.port, socket_timeout=1, **self._login) as client:
            client.execute_command("SENTINEL", "DEBUG", *QUICK)

    def _arguments(self, options: Sequence[str]) -> list[str]:
        return [str(self._file), "--sentinel", *options]


class SentinelGroup:
    """Three servers, of which one is the primary, under three sentinels, all on loopback.

    Each of `servers` and `sentinels` has `freeze`, `thaw`, `kill`, `stop`, `start` and `restart`.
    `options` are more options of each server, `sentinel_lines` more lines of each sentinel's file; `login` and
    `sentinel_login` are what the tests' own connections need (redis-py's names). With `tls` all of them speak
    TLS alone.
    """

    def __init__(
        self,
        kind: str,
        directory: Path,
        *,
        options: Sequence[str] = (),
        sentinel_lines: Sequence[str] = (),
        login: Mapping[str, Any] | None = None,
        sentinel_login: Mapping[str, Any] | None = None,
        tls: Certificate | None = None,
    ) -> None:
        self.kind = kind
        self.servers = [RedisServer(kind, directory / f"server{n}", tls) for n in range(3)]
        first = self.servers[0].port
        self.sentinels = [
            SentinelServer(kind, directory / f"sentinel{n}", first, sentinel_lines, sentinel_login, tls)
            for n in range(3)
        ]
        # By default a primary waits 5 s for further replicas before it sends its data to the first.
        self._options = ("--repl-diskless-sync-delay", "0", *options)
        self._login = dict(login or {})
        self._sentinel_login = dict(sentinel_login or {})

    @property
    def url(self) -> str:
        """Of the service, for a client that knows Sentinel."""
        return self.url_with()

    def url_with(self, user: str = "", query: str = "", scheme: str = "redis+sentinel") -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"{scheme}://{user and user + '@'}{hosts}/{SERVICE}/0{query and '?' + query}"

    def start(self) -> None:
        """Returns when the replicas follow and the sentinels know all of it."""
        for server in self.servers:
            server.start(*self._options_of(server))
        self._until("the replicas follow", lambda: self._following(self.servers[0]) == 2)
        for sentinel in self.sentinels:
            sentinel.start()
        self.settle()

    def start_again(self, server: RedisServer) -> None:
        """A server that was killed, with its data; the sentinels make it a replica of whoever leads."""
        server.start(*self._options)

    def close(self) -> None:
        """Kills all of them, frozen or not."""
        for server in (*self.sentinels, *self.servers):
            server.kill()

    def primary(self) -> RedisServer:
        """Whom most of the sentinels that answer name."""
        named = [port for sentinel in self.sentinels if (port := self._named_by(sentinel))]
        if not named:
            raise RuntimeError("no sentinel answers")
        return self._server(max(set(named), key=named.count))

    def replicas(self) -> list[RedisServer]:
        primary = self.primary()
        return [server for server in self.servers if server is not primary]

    def fail_over(self) -> RedisServer:
        """Has the sentinels promote a replica, all being well; returns the new primary when all agree."""
        old = self.primary()
        self._until("a fail-over begins", self._order_fail_over)
        return self.promoted(instead_of=old)

    def promoted(self, *, instead_of: RedisServer) -> RedisServer:
        """Waits until every sentinel that answers names another primary, which also says that it is one."""
        self._until(
            "another primary",
            lambda: (primary := self._agreed()) not in (None, instead_of) and self._leads(primary),
        )
        return self.primary()

    def settle(self) -> None:
        """Waits until all is whole: every sentinel answers, knows the others and names the same primary, and
        every server that runs follows it."""
        self._until("a whole group", self._whole)

    def client(self, server: RedisServer) -> redis.Redis:
        """A connection of the test's own; close it."""
        sentinel = isinstance(server, SentinelServer)
        login = self._sentinel_login if sentinel else self._login
        timeouts = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}
        return redis.Redis("127.0.0.1", server.port, decode_responses=True, **timeouts, **login)

    def ask(self, server: RedisServer, *command: str) -> Any:
        """The answer; None from a server that is down, frozen or refuses."""
        if not server.running:
            return None
        try:
            with self.client(server) as client:
                return client.execute_command(*command)
        except redis.RedisError:
            return None

    def _options_of(self, server: RedisServer) -> tuple[str, ...]:
        follow = () if server is self.servers[0] else ("--replicaof", f"127.0.0.1 {self.servers[0].port}")
        return (*self._options, *follow)

    def _order_fail_over(self) -> bool:
        return any(self.ask(sentinel, "SENTINEL", "FAILOVER", SERVICE) for sentinel in self.sentinels)

    def _named_by(self, sentinel: RedisServer) -> int | None:
        address = self.ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(address[1]) if address else None

    def _agreed(self) -> RedisServer | None:
        named = {self._named_by(sentinel) for sentinel in self.sentinels} - {None}
        return self._server(named.pop()) if len(named) == 1 else None

    def _server(self, port: int | None) -> RedisServer:
        (found,) = [server for server in self.servers if server.port == port]
        return found

    def _leads(self, server: RedisServer | None) -> bool:
        role = self.ask(server, "ROLE") if server else None
        return role is not None and role[0] == "master"

    def _following(self, primary: RedisServer) -> int:
        role = self.ask(primary, "ROLE")
        return len(role[2]) if role is not None and role[0] == "master" else 0

    def _whole(self) -> bool:
        primary = self._agreed()
        if primary is None or None in (self._named_by(sentinel) for sentinel in self.sentinels):
            return False
        wanted = sum(server.running for server in self.servers) - 1
        return self._following(primary) == wanted and all(
            self._knows_all(sentinel) for sentinel in self.sentinels
        )

    def _knows_all(self, sentinel: RedisServer) -> bool:
        pairs = self.ask(sentinel, "SENTINEL", "MASTER", SERVICE)
        if not pairs:
            return False
        known = pairs if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2], strict=True))
        others, slaves = int(known["num-other-sentinels"]), int(known["num-slaves"])
        return known["flags"] in ("master", {"master"}) and (others, slaves) == (2, 2)

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + SETTLED_S
        while not condition():
            if time.monotonic() > until:
                files = [server.directory / "log" for server in (*self.servers, *self.sentinels)]
                logs = "\n".join(file.read_text() for file in files if file.exists())
                raise RuntimeError(f"not in {SETTLED_S:g} s: {what}\n{logs}")
            time.sleep(0.02)


@pytest.fixture(params=KINDS)
def sentinel_group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SentinelGroup]:
    """A group of the test's own."""
    group = SentinelGroup(request.param, tmp_path / "sentinel")
    try:
        group.start()
        yield group
    finally:
        group.close()
