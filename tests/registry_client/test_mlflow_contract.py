"""The registry contract against a real MLflow server, and what only MLflow has."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping

import pytest

from registry_client import Lineage
from registry_client.adapters.mlflow import MlflowClient, open_mlflow
from registry_client.errors import InvalidReference, NotFound, Unsupported
from tests.contracts.registry import FILES, OTHER, RegistryContract, download
from tests.servers.mlflow import MlflowSeeder, MlflowServer

pytestmark = pytest.mark.mlflow


class MlflowHome:
    def __init__(self, client: MlflowClient, seeder: MlflowSeeder) -> None:
        self.client = client
        self.seeder = seeder
        self._paths: dict[tuple[str, str], str] = {}

    async def publish(
        self, model: str, files: Mapping[str, bytes], *, aliases: tuple[str, ...] = (), lineage: Lineage
    ) -> str:
        seeded = await asyncio.to_thread(
            self.seeder.publish,
            model,
            files,
            aliases=aliases,
            metrics=lineage.metrics,
            params=lineage.params,
            datasets=lineage.datasets,
            commit=lineage.commit,
        )
        self._paths[model, seeded.version] = seeded.artifact_path
        return seeded.version

    async def set_alias(self, model: str, alias: str, version: str) -> None:
        await asyncio.to_thread(self.seeder.set_alias, model, alias, version)

    async def overwrite(self, model: str, version: str, path: str, data: bytes) -> None:
        await asyncio.to_thread(self.seeder.put, f"{self._paths[model, version]}/{path}", data)


@pytest.fixture
async def home(mlflow_server: MlflowServer, mlflow_seeder: MlflowSeeder) -> AsyncIterator[MlflowHome]:
    client = open_mlflow("prod", {"url": mlflow_server.url}, environ={})
    yield MlflowHome(client, mlflow_seeder)
    await client.aclose()


@pytest.fixture
def model() -> str:
    return f"digits-{uuid.uuid4().hex[:12]}"


class TestMlflow(RegistryContract):
    pass


async def test_alias_goes_before_version_and_stage(home: MlflowHome, model: str) -> None:
    for _ in range(2):
        await home.publish(model, FILES, lineage=Lineage())
    home.seeder.set_stage(model, "2", "Production")
    assert (await home.client.resolve(model, "Production")).version == "2"
    home.seeder.set_alias(model, "Production", "1")
    home.seeder.set_alias(model, "1", "2")
    assert (await home.client.resolve(model, "Production")).version == "1"
    assert (await home.client.resolve(model, "1")).version == "2"


async def test_a_qualifier_says_which_kind(home: MlflowHome, model: str) -> None:
    for _ in range(2):
        await home.publish(model, FILES, lineage=Lineage())
    home.seeder.set_alias(model, "1", "2")
    home.seeder.set_stage(model, "1", "Staging")
    assert (await home.client.resolve(model, "alias:1")).version == "2"
    assert (await home.client.resolve(model, "version:1")).version == "1"
    assert (await home.client.resolve(model, "stage:staging")).version == "1"
    with pytest.raises(NotFound):
        await home.client.resolve(model, "stage:Production")
    for wrong in ("stage:Prod", "version:x", "label:x"):
        with pytest.raises(InvalidReference):
            await home.client.resolve(model, wrong)


async def test_a_logged_model_brings_its_files_and_lineage(home: MlflowHome, model: str) -> None:
    home.seeder.create_model(model)
    run_id, _ = home.seeder.create_run(commit="abc")
    logged = home.seeder.create_logged_model(run_id, FILES, {"depth": "3"})
    home.seeder.log(run_id, metrics={"auc": 0.9}, params={}, datasets={}, model_id=logged)
    home.seeder.create_version(model, f"models:/{logged}", model_id=logged)
    found = await home.client.resolve(model, "1")
    assert found.lineage.metrics == {"auc": 0.9}
    assert found.lineage.params == {"depth": "3"}
    assert [await download(home.client, found, file) for file in found.files] == [
        (0, FILES[file.path]) for file in found.files
    ]


async def test_a_version_that_is_one_file(home: MlflowHome, model: str) -> None:
    home.seeder.create_model(model)
    run_id, root = home.seeder.create_run()
    home.seeder.put(f"{root}/only.onnx", b"\x08abc")
    home.seeder.create_version(model, f"mlflow-artifacts:/{root}/only.onnx", run_id=run_id)
    found = await home.client.resolve(model, "1")
    assert [(file.path, file.size_bytes) for file in found.files] == [("only.onnx", 4)]
    assert await download(home.client, found, found.files[0]) == (0, b"\x08abc")


async def test_a_version_whose_files_are_gone(home: MlflowHome, model: str) -> None:
    home.seeder.create_model(model)
    run_id, root = home.seeder.create_run()
    home.seeder.create_version(model, f"mlflow-artifacts:/{root}/nothing", run_id=run_id)
    with pytest.raises(NotFound, match="no files"):
        await home.client.resolve(model, "1")


async def test_files_outside_of_the_proxy(home: MlflowHome, model: str) -> None:
    home.seeder.create_model(model)
    home.seeder.create_version(model, "s3://bucket/model")
    with pytest.raises(Unsupported, match="--serve-artifacts"):
        await home.client.resolve(model, "1")


async def test_a_model_that_was_deleted_and_made_again_is_another_one(home: MlflowHome, model: str) -> None:
    await home.publish(model, FILES, lineage=Lineage())
    before = await home.client.resolve(model, "1")
    home.seeder.delete_model(model)
    await home.publish(model, OTHER, lineage=Lineage())
    after = await home.client.resolve(model, "1")
    assert after.version == before.version
    assert after.identity != before.identity
