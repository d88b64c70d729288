"""MLflow's own scoring client, unchanged: what it makes of every endpoint it knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.conformance.served import mlflow_python, run_client
from tests.servers.gateway import Gateway

pytestmark = pytest.mark.mlflow

MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  classes: {variants: {stable: {model: local/classes@1}}}
"""
OUTPUTS = {"total": [[3.0], [7.5]], "same": [[1.0, 2.0], [3.0, 4.5]]}
RECORDS = [{"total": 3.0, "same": [1.0, 2.0]}, {"total": 7.5, "same": [3.0, 4.5]}]


@pytest.fixture(scope="module")
def only_route(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("scoring"), MANIFEST, "--workers", "1")
    source = models.save(models.two_outputs(), made.directory / "model.onnx")
    publish(made.directory / "models", "classes", source, version="1")
    try:
        yield made.start()
        assert "Traceback" not in made.log, made.log
    finally:
        made.kill()


@pytest.fixture(scope="module")
def mlflow(only_route: Gateway) -> dict[str, Any]:
    """Behaviour → what the client gave."""
    return run_client("mlflow_scoring.py", only_route.data.removeprefix("http://"), mlflow_python())


def test_server(mlflow: dict[str, Any]) -> None:
    assert mlflow["ready"] is None
    assert mlflow["version"].count(".") == 2


@pytest.mark.parametrize("behaviour", ["frame_without_names", "records"])
def test_a_table_is_answered_by_records(mlflow: dict[str, Any], behaviour: str) -> None:
    assert mlflow[behaviour] == {"predictions": RECORDS}


def test_the_client_reads_a_frame(mlflow: dict[str, Any]) -> None:
    assert mlflow["frame"]["raw"] == {"predictions": RECORDS}
    assert mlflow["frame"]["frame"] == {"total": [3.0, 7.5], "same": OUTPUTS["same"]}


@pytest.mark.parametrize("behaviour", ["rows", "params", "instances"])
def test_tensors_are_answered_by_outputs(mlflow: dict[str, Any], behaviour: str) -> None:
    assert mlflow[behaviour] == {"predictions": OUTPUTS}


def test_an_array(mlflow: dict[str, Any]) -> None:
    assert mlflow["array"] == {"raw": {"predictions": OUTPUTS}, "same": OUTPUTS["same"]}


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("wrong_width", "Expected [-1,2], got [1,3]"),
        ("missing_values", "NaN is no JSON number"),
    ],
)
def test_errors(mlflow: dict[str, Any], behaviour: str, text: str) -> None:
    raised = mlflow[behaviour]
    assert raised["exception"] == "Exception"
    assert "error code 400" in raised["text"]
    assert '"error_code":"BAD_REQUEST"' in raised["text"]
    assert text in raised["text"]
