"""TLS to the servers and to the sentinels, with certificates of an authority of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.control.redis_store import RedisStore
from gateway.control.store import StoreUnavailable
from gateway.routing.state import Revision
from tests.contracts.store import EMPTY, author, document, soon
from tests.servers.certificates import Authority
from tests.servers.redis import KINDS, RedisServer, needs_tls
from tests.servers.sentinel import SentinelGroup


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    needs_tls(request.param)
    return str(request.param)


def options(authority: Authority) -> list[str]:
    """The server's, which wants a certificate of its clients, too."""
    own = authority.sign("server")
    return [
        *("--tls-cert-file", str(own.file), "--tls-key-file", str(own.key)),
        *("--tls-ca-cert-file", str(authority.file), "--tls-auth-clients", "yes", "--tls-replication", "yes"),
    ]


@pytest.fixture
def server(kind: str, authority: Authority, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(kind, tmp_path / "server")
    server.start("--tls-port", str(server.tls_port), *options(authority))
    yield server
    server.kill()


async def test_a_server_with_tls(server: RedisServer, authority: Authority) -> None:
    store = RedisStore(_url(server, _query(authority)), "ns", "replica")
    assert await soon(store.put(document(), EMPTY, author("a"), [])) == Revision(1, 1)
    watch = store.watch()
    assert await soon(anext(watch)) == []
    await watch.aclose()
    await store.aclose()


async def test_a_server_that_somebody_else_has_signed_for(
    server: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    client = authority.sign("client")
    other = Authority(tmp_path / "other")
    for query, what in (
        (f"ssl_certfile={client.file}&ssl_keyfile={client.key}", "CERTIFICATE_VERIFY_FAILED"),
        (_query(authority, trusted=other), "CERTIFICATE_VERIFY_FAILED"),
        (_query(authority, trusted=Path("/nowhere/ca.pem")), "No such file"),
        (f"ssl_ca_certs={authority.file}", "connection failed"),
    ):
        store = RedisStore(_url(server, query), "ns", "replica")
        with pytest.raises(StoreUnavailable, match=what):
            await soon(store.read())
        await store.aclose()


async def test_a_server_without_tls_is_not_spoken_to(server: RedisServer, authority: Authority) -> None:
    url = f"rediss://127.0.0.1:{server.port}/0?{_query(authority)}"
    store = RedisStore(url, "ns", "replica")
    with pytest.raises(StoreUnavailable):
        await soon(store.read())
    await store.aclose()
