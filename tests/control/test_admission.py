from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.control.admission import Limits
from gateway.control.weights import (
    WeightsCache,
    WeightsRefused,
)
from registry_client.errors import Unavailable
from registry_client.models import ModelFile
from tests.control.onnx_models import noise, tiny
from tests.servers.memory_registry import MemoryRegistry
from tests.servers.weights import left, model_files

SOON_S = 10
MIB = 2**20


class TestAdmission:
    @pytest.mark.parametrize("name", ["m.pkl", "sub/M.PICKLE", "a.joblib", "w.pt", "w.pth", "w.ckpt"])
    async def test_a_pickle_by_name_is_refused_before_anything_is_fetched(
        self, weights: WeightsCache, name: str
    ) -> None:
        registry = MemoryRegistry({**model_files(), name: b""})
        with pytest.raises(WeightsRefused, match=name):
            await weights.ensure(registry, registry.version)
        assert registry.opens == []

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    async def test_a_pickle_by_content_is_refused(
        self, weights: WeightsCache, cache_root: Path, protocol: int
    ) -> None:
        registry = MemoryRegistry({**model_files(), "extra.bin": pickle.dumps({"a": 1}, protocol)})
        with pytest.raises(WeightsRefused, match=r"extra\.bin"):
            await weights.ensure(registry, registry.version)
        assert left(cache_root, "versions") == left(cache_root, "partial") == []

    async def test_a_pickle_in_an_archive_is_refused(self, weights: WeightsCache) -> None:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("archive/data.pkl", b"")
        registry = MemoryRegistry({**model_files(), "pytorch_model.bin": archive.getvalue()})
        with pytest.raises(WeightsRefused, match=r"pytorch_model\.bin"):
            await weights.ensure(registry, registry.version)

    @pytest.mark.parametrize("name", ["weights.bin", "header.safetensors"])
    async def test_raw_tensors_may_begin_with_any_bytes(self, weights: WeightsCache, name: str) -> None:
        registry = MemoryRegistry({**model_files(), name: b"\x80\x02" + bytes(100)})
        await weights.ensure(registry, registry.version)

    @pytest.mark.parametrize(
        ("names", "model"),
        [
            (["model.onnx"], "model.onnx"),
            (["fraud.onnx", "README.md"], "fraud.onnx"),
            (["model.onnx", "other.onnx"], "model.onnx"),
            (["fraud.onnx", "old/fraud.onnx"], "fraud.onnx"),
            (["onnx/fraud.onnx"], "onnx/fraud.onnx"),
        ],
    )
    async def test_the_model_of_a_version(self, weights: WeightsCache, names: list[str], model: str) -> None:
        registry = MemoryRegistry({name: tiny() for name in names})
        assert (await weights.ensure(registry, registry.version)).model == model

    @pytest.mark.parametrize("names", [["a.onnx", "b.onnx"], ["x/a.onnx", "y/b.onnx"], ["a.txt"], []])
    async def test_no_one_model(self, weights: WeightsCache, names: list[str]) -> None:
        registry = MemoryRegistry(dict.fromkeys(names, b""))
        with pytest.raises(WeightsRefused) as error:
            await weights.ensure(registry, registry.version)
        assert all(name in str(error.value) for name in names)

    @pytest.mark.parametrize("location", ["/etc/passwd", "../up.bin", "missing.bin"])
    async def test_external_data_that_is_not_the_versions_own(
        self, weights: WeightsCache, location: str
    ) -> None:
        registry = MemoryRegistry({"model.onnx": tiny(location), "weights.bin": b""})
        with pytest.raises(WeightsRefused, match=location):
            await weights.ensure(registry, registry.version)

    async def test_what_is_no_onnx_inside(self, weights: WeightsCache) -> None:
        registry = MemoryRegistry({"model.onnx": b"<html>sign in</html>"})
        with pytest.raises(WeightsRefused, match="no readable ONNX model"):
            await weights.ensure(registry, registry.version)

    @pytest.mark.parametrize(
        "path",
        [
            "/abs",
            "../up",
            "a/../b",
            "a//b",
            "./a",
            "a\\b",
            "a\0b",
            "a\nb",
            "",
            "x" * 256,
            "d/" * 20 + "x",
            "\ud800",
        ],
    )
    async def test_a_path_that_leads_anywhere_else(self, weights: WeightsCache, path: str) -> None:
        await self._refused_path(weights, path)

    @pytest.mark.parametrize("path", ["MODEL.onnx", "model.onnx/below"])
    async def test_paths_that_clash(self, weights: WeightsCache, path: str) -> None:
        await self._refused_path(weights, path)

    async def _refused_path(self, weights: WeightsCache, path: str) -> None:
        registry = MemoryRegistry({"model.onnx": tiny()})
        bad = replace(registry.version, files=(*registry.version.files, ModelFile(path=path, size_bytes=0)))
        with pytest.raises(WeightsRefused, match=r"has the file|twice"):
            await weights.ensure(registry, bad)
        assert registry.opens == []

    async def test_too_many_files_or_bytes(self, reopen: Callable[..., WeightsCache]) -> None:
        known, unknown = MemoryRegistry(model_files()), MemoryRegistry(model_files(), sizes=False)
        with pytest.raises(WeightsRefused, match="2 files, the limit is 1"):
            await reopen(limits=Limits(max_files=1)).ensure(known, known.version)
        small = reopen(limits=Limits(max_version_bytes=100_000))
        with pytest.raises(WeightsRefused, match="the limit is 100000"):
            await small.ensure(known, known.version)
        assert known.opens == []
        with pytest.raises(WeightsRefused, match="more than 100000 bytes"):
            await small.ensure(unknown, unknown.version)

    @pytest.mark.parametrize("link", ["hard", "symbolic", "directory"])
    async def test_a_link_in_what_broke_off_is_not_written_through(
        self,
        weights: WeightsCache,
        reopen: Callable[..., WeightsCache],
        cache_root: Path,
        tmp_path: Path,
        link: str,
    ) -> None:
        registry = MemoryRegistry(
            {"model.onnx": tiny("d/w.bin"), "d/w.bin": noise(300_000)}, break_at=[10**9, 100_000, 100_000]
        )
        with pytest.raises(Unavailable):
            await weights.ensure(registry, registry.version)
        (partial,) = (cache_root / "partial").rglob("w.bin")
        victim = tmp_path / "victim"
        victim.mkdir()
        (victim / "w.bin").write_bytes(b"precious")
        partial.unlink()
        if link == "directory":
            partial.parent.rmdir()
            partial.parent.symlink_to(victim)
        else:
            (partial.hardlink_to if link == "hard" else partial.symlink_to)(victim / "w.bin")
        cached = await reopen().ensure(registry, registry.version)
        assert (victim / "w.bin").read_bytes() == b"precious"
        assert (cached.path / "d" / "w.bin").read_bytes() == noise(300_000)
