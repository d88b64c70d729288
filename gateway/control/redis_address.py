"""Where Redis is: a parsed URL, of one server or of a service under Sentinel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
CONNECT_TIMEOUT_S = 1.0

_SENTINEL_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}
_TLS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_check_hostname")
_KNOWN = ("db", *_TLS, *_SENTINEL_LOGIN)

Host = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """One server, or, with `service`, the sentinels that know which server is the primary now."""

    masked: str
    """As it may be printed: without user, password and query."""
    service: str = ""
    sentinels: tuple[Host, ...] = ()
    kind: type[AbstractConnection] = field(repr=False)
    options: dict[str, Any] = field(repr=False)
    sentinel_options: dict[str, Any] = field(repr=False)

    def server(self, host: Host | None = None) -> AbstractConnection:
        """A connection, not made yet: to `host`, or to the one server that the URL names."""
        at = {"host": host[0], "port": host[1]} if host else {}
        return self._connection({**self.options, **at})

    def sentinel(self, host: Host) -> AbstractConnection:
        return self._connection({**self.sentinel_options, "host": host[0], "port": host[1]})

    def _connection(self, options: dict[str, Any]) -> AbstractConnection:
        return self.kind(
            **options,
            # Time-outs of whole calls are the caller's; only closing a connection asks for this one.
            socket_timeout=None,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            # With redis-py's defaults a read from a frozen server blocks for over a minute.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
            # Two commands less for every connection, and two less for the ACL.
            driver_info=None,
        )


def parse_address(url: str) -> RedisAddress:
    """Raises `ValueError`, without the URL's secrets.

    `redis://[user:password@]host[:port][/db]`, `rediss://…` with TLS, `unix://[user:password@]path[?db=N]`,
    `redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]` and `rediss+sentinel://…`.
    In the query: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_check_hostname` … (files in PEM), and
    `sentinel_username`, `sentinel_password` where the sentinels want credentials of their own.
    """
    shown = masked(url)
    if url.startswith(("redis+cluster:", "rediss+cluster:")):
        raise ValueError(
            f"{url.partition(':')[0]}:// is not known: all keys of a namespace share one slot, so give the "
            "redis:// address of a server without cluster mode, or of a service under Sentinel"
        )
    try:
        return _parse(url, shown)
    except (ValueError, KeyError):
        raise ValueError(
            f"the Redis URL {shown} is unreadable: write {', '.join(f'{s}://' for s in SCHEMES)}…, the last two "
            f"with /SERVICE as their path, percent-encode what is special in its password, and of options use "
            f"{', '.join(_KNOWN)}"
        ) from None


def masked(url: str) -> str:
    """The URL as it may be printed: without user, password and query."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            return "(malformed)"
        if parts.scheme == "unix":
            return f"unix://{parts.path}"
        hosts = ",".join(_shown(host) for host in _hosts(parts.netloc, None))
    except ValueError:
        return "(malformed)"
    return f"{parts.scheme}://{hosts}{parts.path}"


def _parse(url: str, shown: str) -> RedisAddress:
    parts = urlsplit(url)
    if shown == "(malformed)":
        raise ValueError
    query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    if set(query) - set(_KNOWN):
        raise ValueError
    login = {_SENTINEL_LOGIN[name]: query.pop(name) for name in _SENTINEL_LOGIN if name in query}
    scheme, _, by_sentinel = parts.scheme.partition("+")
    path, service, netloc = parts.path, "", parts.netloc
    sentinels: tuple[Host, ...] = ()
    if by_sentinel:
        service, _, database = parts.path.removeprefix("/").partition("/")
        if not service or (database and not database.isdigit()):
            raise ValueError
        path = f"/{database}"
        sentinels = tuple((host, port or SENTINEL_PORT) for host, port in _hosts(parts.netloc, "localhost"))
        user, at, _ = parts.netloc.rpartition("@")
        netloc = f"{user}{at}placeholder"
    elif login:
        raise ValueError
    options: dict[str, Any] = dict(parse_url(f"{scheme}://{netloc}{path}?{urlencode(query)}"))
    kind = options.pop("connection_class", Connection)
    tls = {name: value for name, value in options.items() if name in _TLS}
    if tls and scheme != "rediss":
        raise ValueError
    return RedisAddress(
        masked=shown,
        service=service,
        sentinels=sentinels,
        kind=kind,
        options=options,
        sentinel_options={**tls, **login},
    )


def _hosts(netloc: str, default: str | None) -> list[tuple[str, int | None]]:
    """Of `user:password@host:port,host`. Raises `ValueError` for a port that is none."""
    found = []
    for one in netloc.rpartition("@")[2].split(","):
        parts = urlsplit(f"//{one}")
        found.append((parts.hostname or default or "localhost", parts.port))
    return found


def _shown(host: tuple[str, int | None]) -> str:
    name = f"[{host[0]}]" if ":" in host[0] else host[0]
    return f"{name}:{host[1]}" if host[1] else name
