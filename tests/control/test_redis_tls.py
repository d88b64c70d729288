"""TLS to the servers and to the sentinels, with certificates of an authority of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.control.redis_store import RedisStore
from gateway.control.store import StoreUnavailable
from gateway.routing.state import Revision
from tests.contracts.store import EMPTY, author, document, soon
from tests.servers.certificates import Authority
from tests.servers.redis import RedisServer
from tests.servers.sentinel import SentinelGroup

KIND = "redis"
"""Valkey's wheel was built without TLS."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(KIND, tmp_path / "server", authority.sign("server"))
    server.start()
    yield server
    server.kill()


async def test_a_server_with_tls(server: RedisServer, authority: Authority) -> None:
    store = RedisStore(f"rediss://127.0.0.1:{server.port}/0?{_query(authority)}", "ns", "replica")
    assert await soon(store.put(document(), EMPTY, author("a"), [])) == Revision(1, 1)
    watch = store.watch()
    assert await soon(anext(watch)) == []
    await watch.aclose()
    await store.aclose()


async def test_a_server_or_a_client_that_is_not_trusted(
    server: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    client = _query(authority)
    other = _query(Authority(tmp_path / "other"))
    for scheme, query, what in (
        ("rediss", client.partition("&")[2], "CERTIFICATE_VERIFY_FAILED"),
        ("rediss", other, "CERTIFICATE_VERIFY_FAILED"),
        ("rediss", client.replace("ca.pem", "nowhere.pem"), "nowhere.pem|No such file|connection failed"),
        ("rediss", client.partition("&")[0], "connection failed"),
        ("redis", "", "connection failed"),
    ):
        store = RedisStore(f"{scheme}://:s3cret@127.0.0.1:{server.port}/0?{query}", "ns", "replica")
        with pytest.raises(StoreUnavailable, match=what) as error:
            await soon(store.read())
        assert "s3cret" not in str(error.value)
        await store.aclose()


async def test_a_service_whose_servers_and_sentinels_have_tls(authority: Authority, tmp_path: Path) -> None:
    own = authority.sign("all")
    login = {
        "ssl": True,
        "ssl_ca_certs": str(own.authority),
        "ssl_certfile": str(own.file),
        "ssl_keyfile": str(own.key),
    }
    group = SentinelGroup(KIND, tmp_path / "group", login=login, sentinel_login=login, tls=own)
    try:
        group.start()
        url = group.url_with(query=_query(authority), scheme="rediss+sentinel")
        store = RedisStore(url, "ns", "replica")
        made = await soon(store.put(document(), EMPTY, author("a"), []))
        assert made == Revision(1, 1)
        await store.aclose()
    finally:
        group.close()


def _query(authority: Authority) -> str:
    client = authority.sign("client")
    return f"ssl_ca_certs={client.authority}&ssl_certfile={client.file}&ssl_keyfile={client.key}"
