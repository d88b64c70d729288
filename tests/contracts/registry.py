"""What every `RegistryClient` promises. Subclasses give a fixture `home`: a registry and a way to fill it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Protocol

import pytest

from registry_client import Digest, Lineage, ModelFile, ModelVersion, RegistryClient
from registry_client.errors import NotFound, RegistryError

FILES = {"model.onnx": b"\x08weights of a model" * 50, "extra/labels 1.txt": b"null\neins\n"}
OTHER = {"model.onnx": b"\x08weights of another one" * 40}
LINEAGE = Lineage(
    metrics={"accuracy": 0.97},
    params={"C": "0.1"},
    datasets={"digits": "d1g357"},
    commit="c0ffee",
)


class Home(Protocol):
    """A registry under test; every call is awaited so that blocking ones may go to threads."""

    client: RegistryClient

    async def publish(
        self, model: str, files: Mapping[str, bytes], *, aliases: tuple[str, ...] = (), lineage: Lineage
    ) -> str:
        """The new version's name."""

    async def set_alias(self, model: str, alias: str, version: str) -> None: ...

    async def overwrite(self, model: str, version: str, path: str, data: bytes) -> None:
        """Changes a file of a version behind the registry's back."""


async def download(
    client: RegistryClient, version: ModelVersion, file: ModelFile, offset: int = 0
) -> tuple[int, bytes]:
    """(where the stream began, its bytes)."""
    async with client.open(version, file, offset=offset) as stream:
        return stream.offset, b"".join([bytes(chunk) async for chunk in stream.chunks])


class RegistryContract:
    slashes = False
    """Whether this registry allows slashes in names of models."""

    @pytest.fixture
    def model(self) -> str:
        return f"digits-{uuid.uuid4().hex[:12]}"

    async def test_resolves_an_alias(self, home: Home, model: str) -> None:
        version = await home.publish(model, FILES, aliases=("champion",), lineage=LINEAGE)
        found = await home.client.resolve(model, "champion")
        assert (found.registry, found.model, found.version) == (home.client.name, model, version)
        assert found.aliases == ("champion",)
        assert {file.path: file.size_bytes for file in found.files} == {k: len(v) for k, v in FILES.items()}
        assert found.identity
        assert found.created_ms

    async def test_resolves_a_version_to_the_same_as_its_alias(self, home: Home, model: str) -> None:
        version = await home.publish(model, FILES, aliases=("champion",), lineage=LINEAGE)
        assert await home.client.resolve(model, version) == await home.client.resolve(model, "champion")

    async def test_latest_is_the_newest_only_where_it_is_asked_for(self, home: Home, model: str) -> None:
        for _ in range(11):
            newest = await home.publish(model, FILES, lineage=Lineage())
        assert (await home.client.resolve(model, "latest")).version == newest == "11"
        with pytest.raises(NotFound):
            await home.client.resolve(model, "newest")

    async def test_what_is_missing_is_not_found(self, home: Home, model: str) -> None:
        with pytest.raises(NotFound):
            await home.client.resolve(model, "champion")
        with pytest.raises(NotFound):
            await home.client.resolve(model, "latest")
        with pytest.raises(NotFound):
            await home.client.aliases(model)
        with pytest.raises(NotFound):
            await home.client.versions(model)
        await home.publish(model, FILES, aliases=("champion",), lineage=Lineage())
        with pytest.raises(NotFound, match=model):
            await home.client.resolve(model, "challenger")
        with pytest.raises(NotFound, match=model):
            await home.client.resolve(model, "999")

    async def test_lists_versions_the_newest_first(self, home: Home, model: str) -> None:
        for _ in range(11):
            await home.publish(model, FILES, lineage=Lineage())
        await home.set_alias(model, "champion", "10")
        found = await home.client.versions(model)
        assert [each.version for each in found] == [str(number) for number in range(11, 0, -1)]
        assert [each.version for each in found if each.aliases == ("champion",)] == ["10"]
        assert [each.version for each in await home.client.versions(model, limit=2)] == ["11", "10"]

    async def test_a_listed_version_has_the_identity_of_the_resolved_one(
        self, home: Home, model: str
    ) -> None:
        await home.publish(model, FILES, lineage=Lineage())
        (listed,) = await home.client.versions(model)
        assert listed.identity == (await home.client.resolve(model, "1")).identity

    async def test_lists_aliases_and_follows_one_that_moves(self, home: Home, model: str) -> None:
        first = await home.publish(model, FILES, aliases=("champion", "blue"), lineage=Lineage())
        assert dict(await home.client.aliases(model)) == {"champion": first, "blue": first}
        second = await home.publish(model, OTHER, lineage=Lineage())
        await home.set_alias(model, "champion", second)
        assert dict(await home.client.aliases(model)) == {"champion": second, "blue": first}
        assert (await home.client.resolve(model, "champion")).version == second

    async def test_a_model_without_aliases_has_none(self, home: Home, model: str) -> None:
        await home.publish(model, FILES, lineage=Lineage())
        assert dict(await home.client.aliases(model)) == {}

    async def test_gives_every_file_whole(self, home: Home, model: str) -> None:
        await home.publish(model, FILES, lineage=Lineage())
        version = await home.client.resolve(model, "1")
        for file in version.files:
            assert await download(home.client, version, file) == (0, FILES[file.path])

    async def test_begins_at_the_offset_or_says_that_it_does_not(self, home: Home, model: str) -> None:
        await home.publish(model, FILES, lineage=Lineage())
        version = await home.client.resolve(model, "1")
        (file,) = [each for each in version.files if each.path == "model.onnx"]
        whole = FILES[file.path]
        for offset in (0, 1, len(whole) - 1, len(whole) + 7):
            began, data = await download(home.client, version, file, offset)
            assert began in (0, offset)
            assert data == whole[began:]
        if home.client.capabilities.ranges:
            assert (await download(home.client, version, file, 5))[0] == 5

    async def test_a_stream_says_how_long_the_file_is(self, home: Home, model: str) -> None:
        await home.publish(model, OTHER, lineage=Lineage())
        version = await home.client.resolve(model, "1")
        for offset in (0, 3):
            async with home.client.open(version, version.files[0], offset=offset) as stream:
                assert stream.total_bytes == len(OTHER["model.onnx"])

    async def test_a_stream_may_be_left_early(self, home: Home, model: str) -> None:
        await home.publish(model, FILES, lineage=Lineage())
        version = await home.client.resolve(model, "1")
        async with home.client.open(version, version.files[0]):
            pass
        assert await download(home.client, version, version.files[0])

    @pytest.mark.parametrize("name", ["prüfung", "模型", "a b.c-d_e", "100%", "q?x=1&y#z"])
    async def test_names_are_not_only_ascii(self, home: Home, model: str, name: str) -> None:
        await home.publish(f"{name} {model}", FILES, aliases=("champion",), lineage=Lineage())
        found = await home.client.resolve(f"{name} {model}", "champion")
        assert found.model == f"{name} {model}"
        assert (await home.client.versions(found.model))[0].version == found.version
        assert (await download(home.client, found, found.files[-1]))[1] == FILES[found.files[-1].path]

    async def test_names_with_slashes(self, home: Home, model: str) -> None:
        name = f"team/{model}/eu"
        if not self.slashes:
            with pytest.raises(RegistryError, match="name"):
                await home.client.resolve(name, "champion")
            return
        await home.publish(name, FILES, aliases=("champion",), lineage=Lineage())
        assert (await home.client.resolve(name, "champion")).model == name

    async def test_a_file_that_changes_afterwards_is_noticed(self, home: Home, model: str) -> None:
        await home.publish(model, OTHER, lineage=Lineage())
        before = await home.client.resolve(model, "1")
        (file,) = before.files
        data = OTHER[file.path]
        await home.overwrite(model, "1", file.path, b"\x09" + data[1:] + b"!")
        try:
            after = await home.client.resolve(model, "1")
            received = (await download(home.client, after, after.files[0]))[1]
        except RegistryError:
            return
        if (after.identity, after.digest) != (before.identity, before.digest):
            return
        # Else whoever holds the earlier description can tell from the bytes.
        sha256 = Digest("sha256", hashlib.sha256(received).hexdigest())
        assert len(received) != file.size_bytes or sha256 != file.digest

    async def test_lineage_is_there(self, home: Home, model: str) -> None:
        await home.publish(model, FILES, lineage=LINEAGE)
        lineage = (await home.client.resolve(model, "1")).lineage
        assert dict(lineage.metrics) == dict(LINEAGE.metrics)
        assert dict(lineage.params) == dict(LINEAGE.params)
        assert dict(lineage.datasets) == dict(LINEAGE.datasets)
        assert lineage.commit == LINEAGE.commit
