"""What lies in the shared store, read past the gateway."""

from __future__ import annotations

import json
from collections.abc import Callable

import redis

from tests.faults.history import Label

PREFIX = "{turnout:default}:"
TIMEOUT_S = 2.0


class StoreView:
    """`connect()` gives a client of what is the primary now. Every method may raise redis-py's errors."""

    def __init__(self, connect: Callable[[], redis.Redis]) -> None:
        self._connect = connect

    def signal(self, fields: dict[str, str]) -> str:
        with self._connect() as client:
            return str(client.xadd(PREFIX + "signals", fields).decode())

    def deny_label(self, route: str) -> Label | None:
        """The revision of the deny on a route's canary, None where there is none."""
        with self._connect() as client:
            pipe = client.pipeline()
            pipe.hget(PREFIX + "state", "epoch")
            pipe.hgetall(PREFIX + "deny")
            epoch, denies = pipe.execute()
        found = [json.loads(deny) for key, deny in denies.items() if key.decode().startswith(f"{route}|")]
        return Label(int(epoch), found[0]["rev"]) if epoch and found else None

    def is_lost(self, signal_id: str) -> bool:
        """Whether a signal has gone with what the store has lost."""
        with self._connect() as client:
            there = bool(client.xrange(PREFIX + "signals", signal_id, signal_id))
        # What is done with is trimmed, which is no loss.
        return not there and not self.handled(signal_id)

    def handled(self, signal_id: str) -> bool:
        """Whether a signal is done with, and all before it."""
        with self._connect() as client:
            seen = client.hget(PREFIX + "state", "signals_id")
        return seen is not None and _stream_id(seen.decode()) >= _stream_id(signal_id)


def _stream_id(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("-"))


def connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=1.0)
