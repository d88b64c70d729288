"""Somebody with a redis-cli, and what a fail-over to a stale replica leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.servers.redis import RedisServer


class Meddler:
    """Somebody with a redis-cli."""

    def __init__(self, server: RedisServer, namespace: str) -> None:
        self.redis = redis.Redis(port=server.port)
        self.prefix = f"{{turnout:{namespace}}}:"

    def dump(self) -> dict[str, bytes]:
        found: Any = self.redis.keys(self.prefix.replace("{", "\\{") + "*")
        keys = [str(key, "utf-8") for key in found]
        return {key: self.redis.dump(key) for key in keys}  # type: ignore[misc]

    def restore(self, dumped: dict[str, bytes]) -> None:
        """The data of before: what a stale replica that was promoted has."""
        self.empty()
        for key, value in dumped.items():
            if ":ack:" in key or key.endswith(":members"):
                continue  # they would never fade
            self.redis.restore(key, 0, value)

    def empty(self) -> None:
        for key in self.dump():
            self.redis.delete(key)

    def wake(self) -> None:
        self.redis.xadd(self.prefix + "log", {"type": "nothing"})

    def signal(self, **fields: str) -> str:
        return str(self.redis.xadd(self.prefix + "signals", fields or {"": ""}), "utf-8")  # type: ignore[arg-type]

    def close(self) -> None:
        self.redis.close()


@pytest.fixture
def meddler(shared_redis: RedisServer, namespace: str) -> Iterator[Meddler]:
    made = Meddler(shared_redis, namespace)
    yield made
    made.close()
