"""Weights caches in a directory of the test's own."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.control.weights import WeightsCache
from registry_client.models import version_digest
from tests.control.onnx_models import noise, tiny


def model_files(size_bytes: int = 300_000, seed: int = 1) -> dict[str, bytes]:
    return {"model.onnx": tiny("weights.bin"), "weights.bin": noise(size_bytes, seed)}


def digest_of(files: dict[str, bytes]) -> str:
    return version_digest(
        (path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()
    )


def left(root: Path, where: str) -> list[str]:
    return [path.name for path in (root / where).iterdir()]


@pytest.fixture
def cache_root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
async def weights(cache_root: Path) -> AsyncIterator[WeightsCache]:
    cache = WeightsCache(cache_root)
    yield cache
    await cache.aclose()


@pytest.fixture
async def reopen(cache_root: Path) -> AsyncIterator[Callable[..., WeightsCache]]:
    """Caches on the same directory, as after a restart or in another process."""
    made = []

    def make(**options: object) -> WeightsCache:
        made.append(WeightsCache(cache_root, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        await each.aclose()
