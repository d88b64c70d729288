from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from gateway.control.weights import (
    FetchProgress,
    FetchState,
    WeightsCache,
    model_path,
)
from registry_client import open_registry
from registry_client.adapters.directory import publish
from registry_client.errors import IntegrityError, Unavailable
from tests.control.onnx_models import noise, tiny
from tests.servers.fetching_process import COUNTING, publish_large, start_fetch
from tests.servers.memory_registry import MemoryRegistry
from tests.servers.weights import digest_of, left, model_files

SOON_S = 10
MIB = 2**20


class TestFetching:
    async def test_a_version_is_fetched_verified_and_named_by_its_digest(
        self, weights: WeightsCache, cache_root: Path
    ) -> None:
        registry = MemoryRegistry(model_files())
        cached = await weights.ensure(registry, registry.version)
        assert cached.digest == digest_of(registry.files) == registry.version.digest
        assert cached.path == cache_root / "versions" / cached.digest / "files"
        assert {f.path: (cached.path / f.path).read_bytes() for f in cached.files} == registry.files
        assert model_path(cached) == cached.path / "model.onnx"
        assert left(cache_root, "partial") == []
        modes = {path.stat().st_mode & 0o777 for path in cached.path.rglob("*") if path.is_file()}
        assert modes == {0o600} and cache_root.stat().st_mode & 0o777 == 0o700

    async def test_the_second_time_it_is_there(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files())
        first = await weights.ensure(registry, registry.version)
        assert await weights.ensure(registry, registry.version, first.digest) == first
        assert len(registry.opens) == 2
        assert await weights.get(first.digest) == first
        assert await weights.get("0" * 64) is None

    @pytest.mark.parametrize(("checksums", "sizes"), [(False, True), (False, False), (True, False)])
    async def test_a_registry_that_knows_little(
        self, weights: WeightsCache, checksums: bool, sizes: bool
    ) -> None:
        registry = MemoryRegistry(model_files(), checksums=checksums, sizes=sizes)
        assert await weights.known_digest(registry.version) is None
        cached = await weights.ensure(registry, registry.version)
        assert cached.digest == digest_of(registry.files)
        assert await weights.known_digest(registry.version) == cached.digest
        assert await weights.known_digest(replace(registry.version, identity="other")) is None
        assert await weights.known_digest(replace(registry.version, identity="")) is None
        await weights.ensure(registry, registry.version)
        assert len(registry.opens) == 2, "the digest of this release is known by now"

    async def test_the_same_bytes_of_two_releases_lie_there_once(
        self, weights: WeightsCache, cache_root: Path
    ) -> None:
        one = MemoryRegistry(model_files(), checksums=False)
        two = MemoryRegistry(model_files(), checksums=False, identity="release-2")
        assert await weights.ensure(one, one.version) == await weights.ensure(two, two.version)
        assert len(left(cache_root, "versions")) == 1 and left(cache_root, "partial") == []

    async def test_a_pin_that_is_cached_needs_no_registry(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files(), checksums=False)
        cached = await weights.ensure(registry, registry.version)
        recreated = MemoryRegistry(model_files(), checksums=False, identity="release-2")
        assert await weights.ensure(recreated, recreated.version, cached.digest) == cached
        assert recreated.opens == []

    async def test_a_real_registry(self, weights: WeightsCache, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "onnx").mkdir(parents=True)
        (source / "onnx" / "digits.onnx").write_bytes(tiny("w/a.bin"))
        (source / "onnx" / "w").mkdir()
        (source / "onnx" / "w" / "a.bin").write_bytes(noise(3 * MIB))
        publish(tmp_path / "models", "team/digits", source, aliases=["champion"])
        client = open_registry("local", "directory", {"path": str(tmp_path / "models")})
        version = await client.resolve("team/digits", "champion")
        cached = await weights.ensure(client, version, version.digest)
        assert (cached.path / "onnx" / "w" / "a.bin").read_bytes() == noise(3 * MIB)
        assert model_path(cached) == cached.path / "onnx" / "digits.onnx"
        await client.aclose()


class TestSharing:
    async def test_eight_ask_and_one_fetches(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files(), hold_at=100_000)
        asked = [asyncio.ensure_future(weights.ensure(registry, registry.version)) for _ in range(8)]
        await asyncio.wait_for(registry.held.wait(), SOON_S)
        (under_way,) = weights.progress()
        assert (under_way.model, under_way.state) == ("fraud", FetchState.FETCHING)
        registry.resume.set()
        assert len({cached.digest for cached in await asyncio.gather(*asked)}) == 1
        assert sorted(registry.opens) == [("model.onnx", 0), ("weights.bin", 0)]
        assert weights.progress() == ()

    async def test_an_error_is_everybodys(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files(), break_at=[0] * 99)
        asked = [weights.ensure(registry, registry.version) for _ in range(8)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 8
        assert len(registry.opens) == 1

    async def test_a_cancelled_fetch_is_taken_over_by_the_next(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files(3 * MIB), hold_at=2 * MIB)
        first = asyncio.ensure_future(weights.ensure(registry, registry.version))
        await asyncio.wait_for(registry.held.wait(), SOON_S)
        second = asyncio.ensure_future(weights.ensure(registry, registry.version))
        await asyncio.sleep(0)
        first.cancel()
        registry.resume.set()
        assert (await asyncio.wait_for(second, SOON_S)).digest == digest_of(registry.files)
        assert first.cancelled()
        assert registry.opens == [("model.onnx", 0), ("weights.bin", 0), ("weights.bin", 2 * MIB)]

    async def test_who_expects_other_bytes_is_told_so_alone(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files(), checksums=False)
        wrong, right = await asyncio.gather(
            weights.ensure(registry, registry.version, "0" * 64),
            weights.ensure(registry, registry.version),
            return_exceptions=True,
        )
        assert isinstance(wrong, IntegrityError)
        assert not isinstance(right, BaseException) and right.digest == digest_of(registry.files)

    async def test_another_cache_on_the_same_directory_waits(
        self, weights: WeightsCache, reopen: Callable[..., WeightsCache]
    ) -> None:
        registry = MemoryRegistry(model_files(), hold_at=100_000)
        other_registry = MemoryRegistry(model_files())
        other = reopen()
        fetching = asyncio.ensure_future(weights.ensure(registry, registry.version))
        await asyncio.wait_for(registry.held.wait(), SOON_S)
        waiting = asyncio.ensure_future(other.ensure(other_registry, other_registry.version))
        async with asyncio.timeout(SOON_S):
            while not other.progress():
                await asyncio.sleep(0)
        registry.resume.set()
        assert (await fetching).digest == (await waiting).digest
        assert other_registry.opens == []

    async def test_two_processes_fetch_once(self, cache_root: Path, tmp_path: Path) -> None:
        publish_large(tmp_path)
        children = [start_fetch(cache_root, tmp_path, COUNTING) for _ in range(2)]
        outputs = [child.communicate(timeout=60) for child in children]
        assert [child.returncode for child in children] == [0, 0], outputs
        reports = [json.loads(out) for out, _ in outputs]
        assert len({report["digest"] for report in reports}) == 1
        assert sum(report["opens"] for report in reports) == 2


async def test_progress_is_told_at_each_change_and_not_at_each_chunk(
    reopen: Callable[..., WeightsCache],
) -> None:
    told: list[FetchProgress] = []
    cache = reopen(on_progress=told.append)
    registry = MemoryRegistry(model_files(8 * MIB))
    await cache.ensure(registry, registry.version)
    states = [progress.state for progress in told]
    assert states[0] is FetchState.FETCHING and states[-1] is FetchState.DONE
    assert told[-1].done_bytes == told[-1].total_bytes == sum(map(len, registry.files.values()))
    assert len(told) < 30
    broken = MemoryRegistry(model_files(), break_at=[0] * 9, identity="broken", checksums=False)
    with pytest.raises(Unavailable):
        await cache.ensure(broken, broken.version)
    assert told[-1].state is FetchState.FAILED


async def test_the_event_loop_is_never_blocked(weights: WeightsCache) -> None:
    registry = MemoryRegistry(model_files(3 * MIB), break_at=[10**9, MIB])
    with blockbuster_ctx():
        cached = await weights.ensure(registry, registry.version)
        await weights.get(cached.digest)
        await weights.verify(cached.digest)
        await weights.list()
        await weights.prune(0, in_use=())
