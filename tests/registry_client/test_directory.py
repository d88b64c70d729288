"""What only a directory registry has: publishing, hand-made versions, and hostile trees."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from registry_client import Digest, ModelFile, open_registry, version_digest
from registry_client.adapters.directory import DirectoryClient, open_directory, publish, set_alias
from registry_client.adapters.directory.scan import DigestCache
from registry_client.errors import (
    IntegrityError,
    InvalidConfiguration,
    InvalidReference,
    NotFound,
    ProtocolError,
    RegistryError,
    Unavailable,
    Unsupported,
)
from registry_client.local_files import hash_file_below

ONNX = b"\x08not really ONNX"
LATER_NS = 10**19


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    root.mkdir()
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source" / "model.onnx"
    source.parent.mkdir()
    source.write_bytes(ONNX)
    return source


@pytest.fixture
async def client(root: Path) -> AsyncIterator[DirectoryClient]:
    client = DirectoryClient("local", root, digests=DigestCache(now_ns=lambda: LATER_NS))
    yield client
    await client.aclose()


async def whole(client: DirectoryClient, model: str, revision: str) -> bytes:
    version = await client.resolve(model, revision)
    async with client.open(version, version.files[0]) as stream:
        return b"".join([bytes(chunk) async for chunk in stream.chunks])


def test_publishing_one_file(root: Path, source: Path) -> None:
    created = datetime(2026, 1, 2, tzinfo=UTC)
    version = publish(root, "digits", source, aliases=["champion"], created=created)
    assert (version.version, version.aliases) == ("1", ("champion",))
    assert version.digest == version.identity
    assert version.created_ms == created.timestamp() * 1000
    manifest = json.loads((root / "digits" / "1" / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert [entry["path"] for entry in manifest["files"]] == ["model.onnx"]
    assert manifest["created"] == "2026-01-02T00:00:00+00:00"
    assert (root / "digits" / "aliases" / "champion").read_text() == "1\n"
    assert sorted(each.name for each in (root / "digits").iterdir()) == ["1", "aliases"]


def test_numbers_go_on_from_the_highest(root: Path, source: Path) -> None:
    names = [publish(root, "m", source, version=name).version for name in ("9", "v40", "2026-rc1")]
    assert names == ["9", "v40", "2026-rc1"]
    assert publish(root, "m", source).version == "10"


def test_the_same_again_changes_nothing_but_aliases(root: Path, source: Path) -> None:
    first = publish(root, "m", source, version="1", metadata={"description": "first"})
    again = publish(root, "m", source, version="1", aliases=["champion"], metadata={"description": "again"})
    assert (again.identity, again.description, again.aliases) == (first.identity, "first", ("champion",))


def test_other_content_under_the_same_version_is_refused(root: Path, source: Path) -> None:
    publish(root, "m", source, version="1")
    source.write_bytes(ONNX + b"!")
    with pytest.raises(IntegrityError, match="m version 1 exists"):
        publish(root, "m", source, version="1")
    assert (root / "m" / "1" / "model.onnx").read_bytes() == ONNX
    assert [each.name for each in (root / "m").iterdir()] == ["1"]


def test_publishers_at_the_same_time_get_different_numbers(root: Path, source: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        versions = list(threads.map(lambda _: publish(root, "m", source).version, range(16)))
    assert sorted(map(int, versions)) == list(range(1, 17))


def test_metadata_is_checked_and_kept(root: Path, source: Path) -> None:
    lineage = {
        "run_id": "r",
        "metrics": {"acc": 1},
        "params": {"C": 0.1},
        "datasets": {"d": "x"},
        "parent": "0",
    }
    kept = publish(root, "m", source, metadata={"description": "d", "lineage": lineage})
    assert kept.description == "d"
    assert (kept.lineage.metrics, kept.lineage.params) == ({"acc": 1.0}, {"C": "0.1"})
    assert (kept.lineage.run_id, kept.lineage.parent, kept.lineage.datasets) == ("r", "0", {"d": "x"})
    for wrong in (
        {"author": "me"},
        {"lineage": {"metrics": {"a": "x"}}},
        {"lineage": {"metrics": {"a": 1e999}}},
    ):
        with pytest.raises(InvalidConfiguration):
            publish(root, "m", source, metadata=wrong)
    assert [each.name for each in (root / "m").iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["", "aliases", "latest", "../x", ".x", "a/b", "a b", "-x", "x" * 129, "ü"])
def test_names_of_versions_and_aliases(root: Path, source: Path, name: str) -> None:
    with pytest.raises(InvalidReference):
        publish(root, "m", source, version=name)
    with pytest.raises(InvalidReference):
        publish(root, "m", source, aliases=[name])
    publish(root, "m", source)
    with pytest.raises(InvalidReference):
        set_alias(root, "m", name, "1")


@pytest.mark.parametrize(
    "model", ["", "/m", "m/", "a//b", "../m", "a/../b", "aliases", "m/aliases", "a\\b", "a\nb"]
)
async def test_names_of_models(root: Path, source: Path, client: DirectoryClient, model: str) -> None:
    with pytest.raises(InvalidReference):
        publish(root, model, source)
    for call in (client.resolve(model, "1"), client.versions(model), client.aliases(model)):
        with pytest.raises(InvalidReference):
            await call


def test_an_alias_needs_its_version(root: Path, source: Path) -> None:
    publish(root, "m", source)
    with pytest.raises(NotFound):
        set_alias(root, "m", "champion", "2")
    with pytest.raises(NotFound):
        set_alias(root, "other", "champion", "1")


def test_models_and_versions_do_not_lie_inside_each_other(root: Path, source: Path) -> None:
    publish(root, "team/fraud", source)
    with pytest.raises(InvalidReference):
        publish(root, "team", source, version="fraud")
    with pytest.raises(InvalidReference):
        publish(root, "team/fraud/1", source)


def _torch_zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.pkl", b"x"),
        ("model.PICKLE", b"x"),
        ("model.joblib", b"x"),
        ("model.pt", b"x"),
        ("model.pth", b"x"),
        ("weights.bin", _torch_zip()),
        ("weights.onnx", _torch_zip()),
        *((f"weights{p}.bin", pickle.dumps({"a": [1, 2.5, "x"], "p": Path}, protocol=p)) for p in range(6)),
        ("renamed.onnx", pickle.dumps({"a": 1})),
    ],
)
def test_pickles_are_refused_by_name(root: Path, source: Path, name: str, data: bytes) -> None:
    (source.parent / name).write_bytes(data)
    with pytest.raises(Unsupported, match=name):
        publish(root, "m", source.parent)
    assert not (root / "m").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", (0x280).to_bytes(8, "little") + b"{" + b" " * 700),
        ("weights.bin", b"\x00\x00\x80\x3f" * 100),
        ("weights.bin", b""),
        ("weights.bin", b"(not a pickle at all"),
        ("data.npz", b"PK\x03\x04 broken zip"),
    ],
)
def test_weights_are_no_pickles(root: Path, source: Path, name: str, data: bytes) -> None:
    (source.parent / name).write_bytes(data)
    assert len(publish(root, "m", source.parent).files) == 2


def test_sources_that_are_no_plain_files(root: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        publish(root, "m", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound):
        publish(root, "m", tmp_path / "empty")
    for make in (
        lambda path: path.symlink_to(source),
        lambda path: path.symlink_to(tmp_path),
        os.mkfifo,
    ):
        odd = source.parent / "odd"
        make(odd)
        with pytest.raises(Unsupported, match="odd"):
            publish(root, "m", source.parent)
        with pytest.raises(Unsupported, match="odd"):
            publish(root, "m", odd)
        odd.unlink()
    (source.parent / "manifest.json").write_text("{}")
    with pytest.raises(Unsupported, match=r"manifest\.json"):
        publish(root, "m", source.parent)


async def test_a_version_made_by_hand(root: Path, client: DirectoryClient) -> None:
    home = root / "digits" / "3"
    (home / "deep").mkdir(parents=True)
    (home / "deep" / "model.onnx").write_bytes(ONNX)
    found = await client.resolve("digits", "latest")
    assert (found.version, [file.path for file in found.files]) == ("3", ["deep/model.onnx"])
    digest = found.files[0].digest
    assert digest is not None
    assert found.identity == version_digest([("deep/model.onnx", len(ONNX), digest.value)])
    (listed,) = await client.versions("digits")
    assert (listed.version, listed.files, listed.identity) == ("3", (), "")


@pytest.mark.parametrize(("now_ns", "hashed"), [(LATER_NS, 1), (0, 2)])
async def test_hashes_are_kept_once_the_file_has_settled(root: Path, now_ns: int, hashed: int) -> None:
    calls: list[tuple[str, ...]] = []

    def hash_file(root: Path, parts: Sequence[str]) -> tuple[str, os.stat_result]:
        calls.append(tuple(parts))
        return hash_file_below(root, parts)

    cache = DigestCache(now_ns=lambda: now_ns, hash_file=hash_file)
    client = DirectoryClient("local", root, digests=cache)
    (root / "digits" / "3").mkdir(parents=True)
    (root / "digits" / "3" / "model.onnx").write_bytes(ONNX)
    assert await client.resolve("digits", "3") == await client.resolve("digits", "3")
    assert calls == [("digits", "3", "model.onnx")] * hashed
    await client.aclose()


async def test_a_change_with_the_old_time_is_noticed(root: Path, client: DirectoryClient) -> None:
    home = root / "digits" / "3"
    home.mkdir(parents=True)
    (home / "model.onnx").write_bytes(ONNX)
    first = await client.resolve("digits", "3")
    status = (home / "model.onnx").stat()
    (home / "model.onnx").write_bytes(ONNX[::-1])
    os.utime(home / "model.onnx", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (await client.resolve("digits", "3")).identity != first.identity


async def test_newest_is_by_number_then_by_time(root: Path, source: Path, client: DirectoryClient) -> None:
    for day, name in enumerate(["10", "9", "1.10.0", "1.9.0"], start=1):
        publish(root, "m", source, version=name, created=datetime(2026, 1, day, tzinfo=UTC))
    assert [each.version for each in await client.versions("m")] == ["10", "9", "1.10.0", "1.9.0"]
    for day, name in enumerate(["red", "blue", "green"], start=1):
        publish(root, "colours", source, version=name, created=datetime(2026, 1, day, tzinfo=UTC))
    assert (await client.resolve("colours", "latest")).version == "green"


async def test_an_alias_goes_before_a_version(root: Path, source: Path, client: DirectoryClient) -> None:
    publish(root, "m", source)
    publish(root, "m", source)
    set_alias(root, "m", "1", "2")
    assert (await client.resolve("m", "1")).version == "2"
    assert publish(root, "m", source, version="1").version == "1"


@pytest.mark.parametrize("content", ["", "../1", "a b", "latest", "1\n2", "x" * 600])
async def test_an_alias_that_holds_no_version(
    root: Path, source: Path, client: DirectoryClient, content: str
) -> None:
    publish(root, "m", source)
    (root / "m" / "aliases").mkdir()
    (root / "m" / "aliases" / "champion").write_text(content)
    with pytest.raises(ProtocolError):
        await client.resolve("m", "champion")


async def test_an_alias_of_a_version_that_is_gone(root: Path, source: Path, client: DirectoryClient) -> None:
    publish(root, "m", source, aliases=["champion"])
    (root / "m" / "1").rename(root / "m" / ".gone")
    with pytest.raises(NotFound, match="'champion' of local/m names version '1'"):
        await client.resolve("m", "champion")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "/x", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "a\\b", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "size": -1, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "size": 1, "sha256": "zz"}]},
        {"files": [{"path": "x", "size": 1, "sha256": "0" * 64}] * 2},
        {"files": [{"path": "manifest.json", "size": 1, "sha256": "0" * 64}]},
        {"files": "x"},
        {"created": "yesterday"},
    ],
)
async def test_a_manifest_that_lies(
    root: Path, source: Path, client: DirectoryClient, change: dict[str, object]
) -> None:
    publish(root, "m", source)
    path = root / "m" / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ProtocolError, match="local/m version 1"):
        await client.resolve("m", "1")


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"schema":1}'])
async def test_a_manifest_that_is_none(
    root: Path, source: Path, client: DirectoryClient, data: bytes
) -> None:
    publish(root, "m", source)
    (root / "m" / "1" / "manifest.json").write_bytes(data)
    with pytest.raises(ProtocolError, match="local/m version 1"):
        await client.resolve("m", "1")


async def test_a_file_that_is_missing_or_has_another_size(
    root: Path, source: Path, client: DirectoryClient
) -> None:
    publish(root, "m", source)
    file = root / "m" / "1" / "model.onnx"
    file.write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        await client.resolve("m", "1")
    file.unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        await client.resolve("m", "1")


async def test_symlinks_are_not_followed(
    root: Path, source: Path, client: DirectoryClient, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "model.onnx").write_bytes(ONNX)
    publish(root, "m", source)
    assert await whole(client, "m", "1") == ONNX
    version = await client.resolve("m", "1")

    file = root / "m" / "1" / "model.onnx"
    file.unlink()
    file.symlink_to(secret / "model.onnx")
    with pytest.raises(ProtocolError, match="symlink"):
        await client.resolve("m", "1")
    with pytest.raises(ProtocolError, match="symlink"):
        async with client.open(version, version.files[0]):
            pass

    (root / "m" / "2").symlink_to(secret)
    with pytest.raises(NotFound):
        await client.resolve("m", "2")
    (root / "other").symlink_to(root / "m")
    with pytest.raises(ProtocolError, match="symlink"):
        await client.resolve("other", "1")
    (root / "hand" / "1").mkdir(parents=True)
    (root / "hand" / "1" / "model.onnx").symlink_to(secret / "model.onnx")
    with pytest.raises(ProtocolError, match="symlink"):
        await client.resolve("hand", "1")


async def test_only_regular_files(root: Path, client: DirectoryClient) -> None:
    (root / "m" / "1").mkdir(parents=True)
    os.mkfifo(root / "m" / "1" / "model.onnx")
    with pytest.raises(ProtocolError, match="not a regular file"):
        await client.resolve("m", "1")


@pytest.mark.parametrize("path", ["../2/model.onnx", "/etc/passwd", "a/../../x", "", "a\\b", "a\0b"])
async def test_a_path_that_somebody_made_up(
    root: Path, source: Path, client: DirectoryClient, path: str
) -> None:
    publish(root, "m", source)
    version = await client.resolve("m", "1")
    with pytest.raises(RegistryError):
        async with client.open(version, ModelFile(path=path, size_bytes=1, digest=Digest("sha256", "0"))):
            pass


async def test_a_directory_that_is_not_mounted(tmp_path: Path) -> None:
    client = open_directory("local", {"path": str(tmp_path / "nothing")})
    with pytest.raises(Unavailable, match="mounted"):
        await client.resolve("m", "1")
    await client.aclose()


async def test_a_relative_path_starts_at_the_working_directory(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(root, "m", source)
    monkeypatch.chdir(root.parent)
    client = open_registry("local", "directory", {"path": "./models"})
    monkeypatch.chdir("/")
    assert (await client.resolve("m", "1")).version == "1"
    await client.aclose()


@pytest.mark.parametrize(
    "options", [{}, {"path": ""}, {"path": 3}, {"path": "a\0"}, {"path": "x", "url": "y"}]
)
def test_options(options: dict[str, object]) -> None:
    with pytest.raises(InvalidConfiguration, match="'local'"):
        open_directory("local", options)
