"""Blockbuster proves that no adapter blocks the event loop with files, names or locks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, BlockingError

from registry_client.adapters.directory import DirectoryClient, publish
from registry_client.adapters.mlflow import open_mlflow
from tests.servers.faults import FaultServer


@pytest.fixture
def alarm() -> Iterator[None]:
    guard = BlockBuster()
    guard.activate()
    yield
    guard.deactivate()


async def test_the_alarm_rings(tmp_path: Path, alarm: None) -> None:
    with pytest.raises(BlockingError):
        (tmp_path / "x").write_bytes(b"x")


async def test_a_directory(tmp_path: Path, alarm: None) -> None:
    def fill() -> None:
        (tmp_path / "model.onnx").write_bytes(b"\x08abc")
        publish(tmp_path / "models", "m", tmp_path / "model.onnx", aliases=["champion"])
        (tmp_path / "models" / "m" / "2").mkdir()
        (tmp_path / "models" / "m" / "2" / "model.onnx").write_bytes(b"\x08abc")

    await asyncio.to_thread(fill)
    client = DirectoryClient("local", tmp_path / "models")
    for revision in ("champion", "2"):
        version = await client.resolve("m", revision)
        async with client.open(version, version.files[0], offset=1) as stream:
            assert [bytes(chunk) async for chunk in stream.chunks] == [b"abc"]
    assert len(await client.versions("m")) == 2
    assert await client.aliases("m") == {"champion": "1"}
    await client.aclose()


async def test_mlflow(alarm: None) -> None:
    async with FaultServer() as double:
        double.answer("/", json={"registered_model": {"aliases": [{"alias": "a", "version": "1"}]}})
        client = open_mlflow("prod", {"url": double.url}, environ={})
        assert await client.aliases("m") == {"a": "1"}
        await client.aclose()
