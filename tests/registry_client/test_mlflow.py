"""What an MLflow server may say that a real one on one machine does not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from registry_client.adapters.mlflow import MlflowClient, open_mlflow
from registry_client.adapters.mlflow.artifacts import proxied_path
from registry_client.errors import (
    InvalidConfiguration,
    NotReady,
    PermissionDenied,
    ProtocolError,
    RegistryError,
    Unsupported,
)
from tests.servers.faults import FaultServer

API = "/api/2.0/mlflow"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
SIGNED = "/api/2.0/mlflow-artifacts/presigned"
VERSION = {"name": "m", "version": "1", "creation_timestamp": 5, "source": "mlflow-artifacts:/0/r"}


@pytest.fixture
async def double() -> AsyncIterator[FaultServer]:
    async with FaultServer() as double:
        yield double


@pytest.fixture
async def client(double: FaultServer) -> AsyncIterator[MlflowClient]:
    client = open_mlflow("prod", {"url": double.url}, environ={})
    yield client
    await client.aclose()


def with_files(double: FaultServer, *files: dict[str, object]) -> None:
    double.answer(f"{API}/registered-models/alias", json={"model_version": VERSION})
    double.answer(PROXY, json={"files": list(files)})


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a\\b", "a/../b", "", ".", "..", "a\nb", "C:x"])
async def test_a_listing_that_leaves_its_directory(
    double: FaultServer, client: MlflowClient, path: str
) -> None:
    with_files(double, {"path": path, "file_size": 3})
    with pytest.raises(ProtocolError, match="file path"):
        await client.resolve("m", "champion")


async def test_what_is_listed_is_not_decoded_again(double: FaultServer, client: MlflowClient) -> None:
    with_files(double, {"path": "%2e%2e%2fx #?", "file_size": "3"})
    double.answer(SIGNED, status=501)
    double.answer(f"{PROXY}/", body=b"abc")
    found = await client.resolve("m", "champion")
    async with client.open(found, found.files[0]) as stream:
        assert [bytes(chunk) async for chunk in stream.chunks] == [b"abc"]
    assert double.asked[-1].target == f"{PROXY}/0/r/%252e%252e%252fx%20%23%3F"
    assert found.files[0].size_bytes == 3


async def test_a_listing_without_end(double: FaultServer, client: MlflowClient) -> None:
    with_files(double, {"path": "again", "is_dir": True})
    with pytest.raises(ProtocolError, match="levels"):
        await client.resolve("m", "champion")


async def test_signed_addresses_are_used_where_they_work(double: FaultServer) -> None:
    async with FaultServer() as store:
        with_files(double, {"path": "model.onnx", "file_size": 6})
        double.answer(SIGNED, json={"url": f"{store.url}/o?sig=1", "headers": {"x-a": "b"}, "file_size": 6})
        store.answer("/o", status=206, body=b"cdef", headers={"Content-Range": "bytes 2-5/6"})
        client = open_mlflow("prod", {"url": double.url}, environ={"MLFLOW_TRACKING_TOKEN": "t0ken"})
        found = await client.resolve("m", "champion")
        async with client.open(found, found.files[0], offset=2) as stream:
            assert (stream.offset, stream.total_bytes) == (2, 6)
            assert [bytes(chunk) async for chunk in stream.chunks] == [b"cdef"]
        await client.aclose()
    assert double.asked[-1].headers["authorization"] == "Bearer t0ken"
    assert "authorization" not in store.asked[0].headers
    assert store.asked[0].headers["x-a"] == "b"


async def test_a_server_that_cannot_sign_is_asked_once(double: FaultServer, client: MlflowClient) -> None:
    with_files(double, {"path": "model.onnx", "file_size": 3})
    double.answer(SIGNED, status=501, json={"error_code": "NOT_IMPLEMENTED", "message": "no"})
    found = await client.resolve("m", "champion")
    for _ in range(2):
        async with client.open(found, found.files[0]):
            pass
    assert len([asked for asked in double.asked if asked.target.startswith(SIGNED)]) == 1


async def test_a_version_that_is_not_ready(double: FaultServer, client: MlflowClient) -> None:
    pending = VERSION | {"status": "FAILED_REGISTRATION", "status_message": "disk full"}
    double.answer(f"{API}/registered-models/alias", json={"model_version": pending})
    with pytest.raises(NotReady, match="FAILED_REGISTRATION: disk full"):
        await client.resolve("m", "champion")


async def test_lineage_that_may_not_be_seen(double: FaultServer, client: MlflowClient) -> None:
    double.answer(f"{API}/registered-models/alias", json={"model_version": VERSION | {"run_id": "r"}})
    double.answer(PROXY, json={"files": [{"path": "model.onnx", "file_size": 3}]})
    double.answer(f"{API}/runs/get", status=403)
    found = await client.resolve("m", "champion")
    assert (found.lineage.run_id, dict(found.lineage.metrics)) == ("r", {})


async def test_a_metric_that_is_no_number(double: FaultServer, client: MlflowClient) -> None:
    double.answer(f"{API}/registered-models/alias", json={"model_version": VERSION | {"run_id": "r"}})
    double.answer(PROXY, json={"files": [{"path": "model.onnx", "file_size": 3}]})
    metrics = [{"key": "loss", "value": "NaN"}, {"key": "auc", "value": 0.5}]
    double.answer(f"{API}/runs/get", json={"run": {"data": {"metrics": metrics}}})
    assert dict((await client.resolve("m", "champion")).lineage.metrics) == {"auc": 0.5}


async def test_a_host_name_that_mlflow_does_not_know(double: FaultServer, client: MlflowClient) -> None:
    double.answer("/", status=403, body=b"Invalid Host header - possible DNS rebinding attack detected")
    with pytest.raises(PermissionDenied, match="MLFLOW_SERVER_ALLOWED_HOSTS"):
        await client.aliases("m")


async def test_versions_are_read_page_by_page(double: FaultServer, client: MlflowClient) -> None:
    double.answer(f"{API}/registered-models/get", json={"registered_model": {}})
    double.answer(f"{API}/model-versions/search", json={"model_versions": [VERSION], "next_page_token": "t"})
    double.answer(f"{API}/model-versions/search", json={"model_versions": [VERSION | {"version": 2}]})
    assert [each.version for each in await client.versions("m")] == ["1", "2"]
    assert "page_token=t" in double.asked[-1].target


async def test_names_are_quoted_in_a_search(double: FaultServer, client: MlflowClient) -> None:
    double.answer(f"{API}/registered-models/get", json={"registered_model": {}})
    double.answer(f"{API}/model-versions/search", json={})
    await client.versions("it's")
    assert "filter=name%3D%22it%27s%22" in double.asked[-1].target
    with pytest.raises(RegistryError, match="quotes"):
        await client.versions("'\"")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("mlflow-artifacts:/0/run/artifacts", "0/run/artifacts"),
        ("mlflow-artifacts://hub:5000/0/run", "0/run"),
        ("http://hub:5000/ml/api/2.0/mlflow-artifacts/artifacts/0/a%20b", "0/a b"),
    ],
)
def test_places_in_the_proxy(uri: str, path: str) -> None:
    assert proxied_path(uri, httpx.URL("http://hub:5000/ml"), registry="prod") == path


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "file:///var/mlruns/0",
            "/var/mlruns/0",
            "s3://bucket/x",
            "dbfs:/x",
            "mlflow-artifacts://other/x",
            "",
        ),
        *("http://other:5000/ml/api/2.0/mlflow-artifacts/artifacts/x", "http://hub:5000/x"),
    ],
)
def test_places_outside_of_the_proxy(uri: str) -> None:
    with pytest.raises(Unsupported, match="--serve-artifacts"):
        proxied_path(uri, httpx.URL("http://hub:5000/ml"), registry="prod")


@pytest.mark.parametrize(
    "uri", ["mlflow-artifacts:/../x", "mlflow-artifacts:/a/%2e%2e\\x", "mlflow-artifacts:/"]
)
def test_places_above_the_proxy(uri: str) -> None:
    with pytest.raises(ProtocolError):
        proxied_path(uri, httpx.URL("http://hub:5000"), registry="prod")


@pytest.mark.parametrize(
    ("environ", "header", "value"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "authorization", "Bearer t"),
        ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}, "authorization", "Basic dTpw"),
        ({"MLFLOW_WORKSPACE": "w"}, "x-mlflow-workspace", "w"),
    ],
)
async def test_the_variables_of_mlflow(
    double: FaultServer, environ: dict[str, str], header: str, value: str
) -> None:
    double.answer(API, json={"registered_model": {}})
    for variable in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        client = open_mlflow("prod", {}, environ=environ | {variable: double.url})
        await client.aliases("m")
        await client.aclose()
    assert [asked.headers[header] for asked in double.asked] == [value, value]


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({}, {}),
        ({"url": 3}, {}),
        ({"url": "http://u:pw@hub"}, {}),
        ({"url": "sqlite:///mlflow.db"}, {}),
        ({}, {"MLFLOW_TRACKING_URI": "file:///mlruns"}),
        ({"url": "http://hub", "token": "pw"}, {}),
        ({"url": "http://hub", "workspace": 3}, {}),
        ({"url": "http://hub"}, {"MLFLOW_TRACKING_SERVER_CERT_PATH": "/nothing"}),
        ({"url": "http://hub"}, {"MLFLOW_TRACKING_CLIENT_CERT_PATH": "/nothing"}),
        (
            {"url": "http://hub"},
            {"MLFLOW_TRACKING_INSECURE_TLS": "true", "MLFLOW_TRACKING_SERVER_CERT_PATH": "/x"},
        ),
    ],
)
def test_declarations_that_cannot_work(options: dict[str, object], environ: dict[str, str]) -> None:
    with pytest.raises(InvalidConfiguration, match="'prod'") as caught:
        open_mlflow("prod", options, environ=environ)
    assert "pw" not in str(caught.value)
