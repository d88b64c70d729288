"""The registry contract against a directory, with and without manifests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from registry_client import Lineage
from registry_client.adapters.directory import DirectoryClient, open_directory, publish, set_alias
from tests.contracts.registry import RegistryContract


class DirectoryHome:
    def __init__(self, client: DirectoryClient, root: Path) -> None:
        self.client = client
        self.root = root

    async def publish(
        self, model: str, files: Mapping[str, bytes], *, aliases: tuple[str, ...] = (), lineage: Lineage
    ) -> str:
        return await asyncio.to_thread(self._publish, model, files, aliases, lineage)

    def _publish(
        self, model: str, files: Mapping[str, bytes], aliases: tuple[str, ...], lineage: Lineage
    ) -> str:
        source = self.root.parent / "source"
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
        described = {
            "metrics": dict(lineage.metrics),
            "params": dict(lineage.params),
            "datasets": dict(lineage.datasets),
            "commit": lineage.commit,
        }
        version = publish(self.root, model, source, aliases=aliases, metadata={"lineage": described}).version
        for name in files:
            (source / name).unlink()
        return version

    async def set_alias(self, model: str, alias: str, version: str) -> None:
        set_alias(self.root, model, alias, version)

    async def overwrite(self, model: str, version: str, path: str, data: bytes) -> None:
        (self.root / model / version / path).write_bytes(data)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[DirectoryHome]:
    root = tmp_path / "models"
    root.mkdir()
    client = open_directory("local", {"path": str(root)})
    yield DirectoryHome(client, root)
    await client.aclose()


class TestDirectory(RegistryContract):
    slashes = True
