from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.control.exposure_store import Ask, ExposureStore
from gateway.control.file_exposure import FILE_NAME, FileExposure
from gateway.control.redis_exposure import RedisExposure
from gateway.control.store import StoreUnavailable
from gateway.routing.state import DenyKey
from tests.contracts.exposure import KEY, ExposureContract, Opener, all_of, ask
from tests.servers.redis import RedisServer


class TestInAFile(ExposureContract):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return lambda replica: FileExposure(tmp_path, replica)

    async def lose(self, store: ExposureStore) -> None:
        assert isinstance(store, FileExposure)
        store._path.unlink()

    async def test_counts_outlive_the_process(self, opener: Opener) -> None:
        assert (await ask(opener("one"), 100, 5)).requests == 5
        found = await ask(opener("one"), 100, 1)
        assert found.count is not None and found.count.requests == 6

    async def test_a_damaged_file_gives_nothing_and_is_left_as_it_is(
        self, store: ExposureStore, tmp_path: Path
    ) -> None:
        (tmp_path / FILE_NAME).write_text('{"fraud')
        with pytest.raises(StoreUnavailable, match=r"damaged.*remove the file to begin every count anew"):
            await ask(store, 100, 5)
        assert (tmp_path / FILE_NAME).read_text() == '{"fraud'


class TestInRedis(ExposureContract):
    @pytest.fixture
    def opener(self, shared_redis: RedisServer, namespace: str) -> Iterator[Opener]:
        client = redis.Redis.from_url(shared_redis.url)
        client.hset(f"{{turnout:{namespace}}}:state", "epoch", "1")
        yield lambda replica: RedisExposure(shared_redis.url, namespace, replica)
        client.close()

    @pytest.fixture
    def plain(self, shared_redis: RedisServer) -> Iterator[redis.Redis]:
        with redis.Redis.from_url(shared_redis.url) as client:
            yield client

    @pytest.fixture(autouse=True)
    def _counts(self, plain: redis.Redis, namespace: str) -> None:
        self._plain, self._prefix = plain, f"{{turnout:{namespace}}}:"

    def _keys(self) -> list[str]:
        return [f"{self._prefix}exposure:{KEY}", f"{self._prefix}exposed:{KEY}"]

    async def lose(self, store: ExposureStore) -> None:
        self._plain.delete(*self._keys())

    async def test_many_at_once(self, store: ExposureStore) -> None:
        keys = [DenyKey(f"route{number}", "d" * 64) for number in range(450)]
        found = await store.ask({key: Ask(limit=10, requests=number % 2) for number, key in enumerate(keys)})
        assert list(found) == keys
        assert [each.requests for each in found.values()] == [number % 2 for number in range(450)]

    async def test_what_nobody_serves_any_more_fades(self, store: ExposureStore) -> None:
        await ask(store, 100, 1, keys_limit=5, keys=(b"a",))
        for key in self._keys():
            assert 80 * 86_400 < int(str(self._plain.ttl(key))) <= 90 * 86_400


def holds_a_state(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as plain:
        plain.hset("{turnout:ns}:state", "epoch", "1")


async def test_an_empty_redis_gives_nothing(own_redis: RedisServer) -> None:
    store = RedisExposure(own_redis.url, "ns", "one")
    with pytest.raises(StoreUnavailable, match="holds no state"):
        await ask(store, 100, 5)
    await store.aclose()


async def test_scripts_are_loaded_again_after_a_restart_and_the_count_goes_on(own_redis: RedisServer) -> None:
    store = RedisExposure(own_redis.url, "ns", "one")
    holds_a_state(own_redis)
    assert (await ask(store, 100, 5)).requests == 5
    own_redis.restart()
    with pytest.raises(StoreUnavailable, match="connection"):
        await ask(store, 100, 5)
    found = await ask(store, 100, 5)
    assert found.count is not None and found.count.requests == 10
    await store.aclose()


async def test_a_frozen_server_fails_in_time(own_redis: RedisServer) -> None:
    store = RedisExposure(own_redis.url, "ns", "one")
    holds_a_state(own_redis)
    await ask(store, 100, 5)
    own_redis.freeze()
    with pytest.raises(StoreUnavailable, match="did not answer in time"):
        await ask(store, 100, 5)
    own_redis.thaw()
    await store.aclose()


async def test_what_no_copy_confirms_is_not_given(own_redis: RedisServer, tmp_path: Path) -> None:
    """The server's replica hangs: after a fail-over to it the same requests would be given again."""
    copy = RedisServer(own_redis.kind, tmp_path / "copy")
    copy.start("--replicaof", f"127.0.0.1 {own_redis.port}")
    store = RedisExposure(own_redis.url, "ns", "one")
    try:
        holds_a_state(own_redis)
        with redis.Redis.from_url(own_redis.url) as plain:
            while not plain.wait(1, 100):
                pass
        assert (await ask(store, 100, 5)).requests == 5
        copy.freeze()
        with pytest.raises(StoreUnavailable, match="replicas have not confirmed"):
            await ask(store, 100, 5)
        assert (await ask(store, 100)).count is not None, "to look needs no copy"
        copy.thaw()
        with redis.Redis.from_url(own_redis.url) as plain:
            while not plain.wait(1, 100):
                pass
        assert await all_of(store, 100) == 90, "what was not confirmed is lost, not given twice"
    finally:
        copy.kill()
        await store.aclose()
