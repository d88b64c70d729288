from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.control.weights import (
    WeightsCache,
)
from registry_client.errors import IntegrityError, ProtocolError, Unavailable
from tests.servers.fetching_process import COUNTING, KILLED_AT_2_MIB, publish_large, start_fetch
from tests.servers.memory_registry import MemoryRegistry
from tests.servers.weights import digest_of, left, model_files

SOON_S = 10
MIB = 2**20


class TestBreaks:
    async def test_a_break_is_resumed_at_its_offset(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files(), break_at=[10**9, 100_000, 250_000])
        cached = await weights.ensure(registry, registry.version)
        assert cached.digest == digest_of(registry.files)
        assert registry.opens[1:] == [("weights.bin", 0), ("weights.bin", 100_000), ("weights.bin", 250_000)]

    async def test_a_fetch_that_gave_up_is_resumed_by_the_next_one(
        self, weights: WeightsCache, reopen: Callable[..., WeightsCache]
    ) -> None:
        registry = MemoryRegistry(model_files(), break_at=[10**9, 100_000, 100_000])
        with pytest.raises(Unavailable):
            await weights.ensure(registry, registry.version)
        await reopen().ensure(registry, registry.version)
        assert registry.opens[-1] == ("weights.bin", 100_000)
        assert sum(path == "model.onnx" for path, _ in registry.opens) == 1

    async def test_a_source_without_ranges_starts_over(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry(model_files(), ranges=False, break_at=[10**9, 100_000])
        assert (await weights.ensure(registry, registry.version)).digest == digest_of(registry.files)

    async def test_a_source_that_starts_elsewhere_is_refused(self, weights: WeightsCache) -> None:
        registry = Elsewhere(model_files(), break_at=[10**9, 100_000])
        with pytest.raises(ProtocolError, match="from byte 100000"):
            await weights.ensure(registry, registry.version)

    async def test_wrong_bytes_of_an_earlier_attempt_cost_one_clean_retry(
        self, weights: WeightsCache, reopen: Callable[..., WeightsCache], cache_root: Path
    ) -> None:
        registry = MemoryRegistry(model_files(), break_at=[10**9, 100_000, 100_000])
        with pytest.raises(Unavailable):
            await weights.ensure(registry, registry.version)
        (partial,) = (cache_root / "partial").rglob("weights.bin")
        partial.write_bytes(b"other bytes")
        cached = await reopen().ensure(registry, registry.version)
        assert cached.digest == digest_of(registry.files)
        assert registry.opens[-2:] == [("weights.bin", 11), ("weights.bin", 0)]

    async def test_a_truncated_file(self, weights: WeightsCache, cache_root: Path) -> None:
        registry = MemoryRegistry(model_files(), end_at=[10**9, *[200_000] * 9])
        with pytest.raises(IntegrityError, match="ended after 200000 of 300000 bytes"):
            await weights.ensure(registry, registry.version)
        assert left(cache_root, "versions") == []

    async def test_a_file_longer_than_promised(self, weights: WeightsCache, cache_root: Path) -> None:
        registry = MemoryRegistry(model_files())
        registry.files["weights.bin"] += b"x"
        with pytest.raises(IntegrityError, match="more than the 300000 bytes"):
            await weights.ensure(registry, registry.version)
        assert left(cache_root, "versions") == []

    async def test_a_flipped_byte_is_quarantined(self, weights: WeightsCache, cache_root: Path) -> None:
        registry = MemoryRegistry(model_files())
        good = dict(registry.files)
        registry.files["weights.bin"] = b"!" + registry.files["weights.bin"][1:]
        with pytest.raises(IntegrityError, match=r"'weights\.bin' has sha256"):
            await weights.ensure(registry, registry.version)
        assert left(cache_root, "versions") == left(cache_root, "partial") == []
        assert len(left(cache_root, "quarantine")) == 1
        registry.files = good
        assert (await weights.ensure(registry, registry.version)).digest == digest_of(good)

    async def test_a_flipped_byte_without_checksums_is_found_by_the_pin(
        self, weights: WeightsCache, cache_root: Path
    ) -> None:
        registry = MemoryRegistry(model_files(), checksums=False)
        pinned = digest_of(registry.files)
        registry.files["weights.bin"] = b"!" + registry.files["weights.bin"][1:]
        with pytest.raises(IntegrityError, match=f"not {pinned}"):
            await weights.ensure(registry, registry.version, pinned)
        assert left(cache_root, "versions") == []

    async def test_killed_in_the_middle_leaves_only_what_is_partial(
        self, cache_root: Path, tmp_path: Path
    ) -> None:
        publish_large(tmp_path)
        killed = start_fetch(cache_root, tmp_path, KILLED_AT_2_MIB)
        killed.communicate(timeout=60)
        assert killed.returncode == -9
        assert left(cache_root, "versions") == [] and len(left(cache_root, "partial")) == 1
        again = start_fetch(cache_root, tmp_path, COUNTING)
        out, err = again.communicate(timeout=60)
        assert again.returncode == 0, err
        assert json.loads(out)["offsets"] == [2 * MIB]
        assert left(cache_root, "partial") == []


class Elsewhere(MemoryRegistry):
    """Starts one byte later than it was asked to."""

    def open(self, version, file, *, offset=0):  # type: ignore[no-untyped-def]
        return super().open(version, file, offset=offset + 1 if offset else 0)
