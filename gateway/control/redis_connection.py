"""A connection to Redis that fails fast, and whose errors name no secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis.exceptions as errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.control.store import StoreRefused, StoreUnavailable

CONNECT_TIMEOUT_S = 1.0
SCHEMES = ("redis", "rediss", "unix")

# The first that matches; what an operator can do about it.
_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (errors.BusyLoadingError, "it is still loading its data"),
    (errors.AuthenticationError, "it refused the user name or the password"),
    (errors.AuthorizationError, "it refused the user name or the password"),
    (errors.NoPermissionError, "its ACL does not allow this user what Turnout needs"),
    (errors.ReadOnlyError, "it is a read-only replica: give the address of the primary"),
    (errors.OutOfMemoryError, "its memory is full (maxmemory)"),
    (errors.MaxConnectionsError, "all connections are in use"),
    (errors.TimeoutError, "it did not answer in time"),
    (errors.ConnectionError, "the connection failed"),
)
# Those that the driver has no class for, by the word that they begin with.
_WORDS = {
    "WRONGTYPE": "a key of Turnout's holds something else: delete it, and what is lost by that comes back "
    "with turnout restore",
    "MISCONF": "it cannot save its data",
    "NOREPLICAS": "too few of its own replicas are connected",
}


class RedisAddress:
    """A parsed URL: `redis://`, `rediss://` or `unix://`. Raises `ValueError`, without the URL's secrets."""

    def __init__(self, url: str) -> None:
        self.masked = masked(url)
        try:
            self._options: dict[str, Any] = dict(parse_url(url))
        except ValueError:
            raise ValueError(
                f"the Redis URL {self.masked} is unreadable: write {', '.join(f'{s}://' for s in SCHEMES)}… "
                "and percent-encode what is special in its password"
            ) from None

    def __repr__(self) -> str:
        return f"RedisAddress({self.masked!r})"

    def connect(self, *, timeout_s: float) -> Redis:
        """A client of its own, that does not retry by itself: with redis-py's defaults a read from a
        frozen server blocks for over a minute."""
        options = {
            **self._options,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
            # In RESP3, with maintenance notifications, the pool hands out connections that died meanwhile.
            "protocol": 2,
            "decode_responses": False,
        }
        return Redis.from_pool(ConnectionPool(**options))

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Turns every error of the driver into `StoreUnavailable`."""
        try:
            yield
        except (errors.RedisError, OSError, TimeoutError) as error:
            kind = StoreRefused if isinstance(error, errors.ResponseError) else StoreUnavailable
            raise kind(f"Redis at {self.masked}: {_meaning(error)}") from error


def masked(url: str) -> str:
    """The URL as it may be printed: without user, password and query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(malformed)"
    if parts.scheme not in SCHEMES:
        return "(malformed)"
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{parts.hostname or 'localhost'}{port}{parts.path}"


def _meaning(error: Exception) -> str:
    for kind, text in _MEANINGS:
        if isinstance(error, kind):
            return f"{text} ({_brief(error)})"
    for word, text in _WORDS.items():
        if word in str(error):
            return f"{text} ({_brief(error)})"
    return f"it refused: {_brief(error)}"


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
