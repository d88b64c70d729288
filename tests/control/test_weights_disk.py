from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.control.weights import (
    CacheFull,
    CacheUnusable,
    WeightsCache,
)
from registry_client.errors import IntegrityError, Unavailable
from tests.control.onnx_models import noise
from tests.servers.fetching_process import LIMITED, publish_large, start_fetch
from tests.servers.memory_registry import MemoryRegistry
from tests.servers.weights import digest_of, left, model_files

SOON_S = 10
MIB = 2**20


class TestDisk:
    async def test_a_full_disk_is_named_with_its_remedy_and_hurts_nobody(
        self, weights: WeightsCache, cache_root: Path, tmp_path: Path
    ) -> None:
        small = MemoryRegistry(model_files(1000))
        served = await weights.ensure(small, small.version)
        publish_large(tmp_path)
        full = start_fetch(cache_root, tmp_path, LIMITED)
        out, err = full.communicate(timeout=60)
        assert full.returncode == 0, err
        for word in (str(cache_root), "local/large version 1", "bytes", "--cache-dir", "turnout cache prune"):
            assert word in out, out
        assert left(cache_root, "partial") == [] and left(cache_root, "trash") == []
        assert await weights.verify(served.digest) == served

    async def test_what_cannot_fit_is_refused_before_the_first_byte(
        self, reopen: Callable[..., WeightsCache], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = MemoryRegistry(model_files())
        with pytest.raises(CacheFull, match="limited to 1000 bytes"):
            await reopen(max_bytes=1000).ensure(registry, registry.version)
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10, 5, 5))
        with pytest.raises(CacheFull, match="5 bytes are free"):
            await reopen().ensure(registry, registry.version)
        assert registry.opens == []

    async def test_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        weights = WeightsCache(tmp_path / "file")
        registry = MemoryRegistry(model_files())
        with pytest.raises(CacheUnusable, match="file"):
            await weights.ensure(registry, registry.version)
        await weights.aclose()


class TestEviction:
    async def test_the_least_recently_used_goes_first_and_never_what_is_in_use(
        self, weights: WeightsCache, cache_root: Path
    ) -> None:
        digests = [await fetched(weights, seed) for seed in range(4)]
        for age, digest in enumerate(digests):
            os.utime(cache_root / "versions" / digest / "manifest.json", (age, age))
        await weights.get(digests[0])
        size = (await weights.list())[0].size_bytes
        assert [entry.digest for entry in await weights.list()] == [*digests[1:], digests[0]]

        assert await weights.prune(3 * size, in_use={digests[1]}) == [digests[2]]
        assert await weights.prune(0, in_use={digests[1]}) == [digests[3], digests[0]]
        assert left(cache_root, "versions") == [digests[1]]
        assert await weights.get(digests[0]) is None
        assert await fetched(weights, 0) == digests[0]

    async def test_the_limit_is_kept_after_each_fetch(self, reopen: Callable[..., WeightsCache]) -> None:
        in_use: set[str] = set()
        weights = reopen(max_bytes=250_000, in_use=lambda: in_use)
        first = await fetched(weights, 1)
        in_use.add(first)
        second = await fetched(weights, 2)
        third = await fetched(weights, 3)
        assert {entry.digest for entry in await weights.list()} == {first, third}
        in_use.add(third)
        fourth = await fetched(weights, 4)
        assert {entry.digest for entry in await weights.list()} == {first, third, fourth}, "above, but whole"
        assert second not in in_use

    async def test_what_is_being_fetched_stays(self, weights: WeightsCache, cache_root: Path) -> None:
        registry = MemoryRegistry(model_files(3 * MIB), hold_at=2 * MIB)
        fetching = asyncio.ensure_future(weights.ensure(registry, registry.version))
        await asyncio.wait_for(registry.held.wait(), SOON_S)
        assert await weights.prune(0, in_use=()) == []
        registry.resume.set()
        assert (await fetching).digest == digest_of(registry.files)

    async def test_leftovers_go_before_what_is_whole(self, weights: WeightsCache, cache_root: Path) -> None:
        digest = await fetched(weights, 1)
        size = (await weights.list())[0].size_bytes
        broken = MemoryRegistry(model_files(), break_at=[10**9, 100_000, 100_000], identity="broken")
        with pytest.raises(Unavailable):
            await weights.ensure(broken, broken.version)
        wrong = MemoryRegistry(model_files(), identity="wrong")
        wrong.files["weights.bin"] = noise(300_000, 9)
        with pytest.raises(IntegrityError):
            await weights.ensure(wrong, wrong.version)
        assert left(cache_root, "partial") and left(cache_root, "quarantine")
        assert await weights.prune(size, in_use=()) == []
        assert (
            left(cache_root, "partial") == left(cache_root, "quarantine") == left(cache_root, "trash") == []
        )
        assert left(cache_root, "versions") == [digest]


class TestTampering:
    @pytest.mark.parametrize("how", ["flip", "cut", "remove", "add", "hardlink", "symlink", "manifest"])
    async def test_a_restart_finds_it_and_fetches_again(
        self, weights: WeightsCache, reopen: Callable[..., WeightsCache], cache_root: Path, how: str
    ) -> None:
        registry = MemoryRegistry(model_files())
        cached = await weights.ensure(registry, registry.version)
        tamper(cached.path, how)
        registry.opens.clear()
        restarted = reopen()
        assert await restarted.get(cached.digest) is None
        assert left(cache_root, "versions") == [] or how == "manifest"
        assert await restarted.ensure(registry, registry.version, cached.digest) == cached
        assert len(registry.opens) == 2
        assert {f.path: (cached.path / f.path).read_bytes() for f in cached.files} == registry.files
        assert left(cache_root, "quarantine")

    async def test_verify_names_the_file(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files())
        cached = await weights.ensure(registry, registry.version)
        assert await weights.verify(cached.digest) == cached
        tamper(cached.path, "flip")
        with pytest.raises(IntegrityError, match=r"weights\.bin"):
            await weights.verify(cached.digest)
        with pytest.raises(IntegrityError, match="not in the cache"):
            await weights.verify(cached.digest)

    @pytest.mark.parametrize("digest", ["", "../../etc", "A" * 64, "0" * 63])
    async def test_what_is_no_digest_is_no_path(self, weights: WeightsCache, digest: str) -> None:
        with pytest.raises(IntegrityError, match="no digest"):
            await weights.get(digest)


class Usage:
    def __init__(self, total: int, used: int, free: int) -> None:
        self.total, self.used, self.free = total, used, free


async def fetched(weights: WeightsCache, seed: int) -> str:
    registry = MemoryRegistry(model_files(100_000, seed), identity=str(seed))
    return (await weights.ensure(registry, registry.version)).digest


def tamper(files: Path, how: str) -> None:
    weights = files / "weights.bin"
    content = weights.read_bytes()
    if how == "flip":
        weights.write_bytes(b"!" + content[1:])
    elif how == "cut":
        weights.write_bytes(content[:-1])
    elif how == "remove":
        weights.unlink()
    elif how == "add":
        (files / "extra").write_bytes(b"")
    elif how == "hardlink":
        (files.parent.parent.parent / "elsewhere").hardlink_to(weights)
    elif how == "symlink":
        elsewhere = files.parent.parent.parent / "elsewhere"
        weights.rename(elsewhere)
        weights.symlink_to(elsewhere)
    else:
        (files.parent / "manifest.json").write_text("{}")
