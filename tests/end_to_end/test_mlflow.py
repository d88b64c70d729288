"""An alias in a real MLflow server, followed by plan and apply, and rolled back against the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests import models
from tests.end_to_end.test_shared_store import REQUEST, Load, versions
from tests.servers.gateway import Gateway, wait_for
from tests.servers.mlflow import MlflowSeeder, MlflowServer

pytestmark = pytest.mark.mlflow

MANIFEST = """
registries:
  prod: {{type: mlflow, url: "{url}"}}
routes:
  number:
    variants:
      stable: {{model: prod/number@champion}}
"""


def test_an_alias_moved_in_mlflow(
    gateways: Callable[..., Gateway],
    mlflow_server: MlflowServer,
    mlflow_seeder: MlflowSeeder,
    tmp_path: Path,
) -> None:
    def onnx(value: float) -> dict[str, bytes]:
        return {"model.onnx": models.save(models.constant(value), tmp_path / f"{value}.onnx").read_bytes()}

    first = mlflow_seeder.publish("number", onnx(1.0), aliases=("champion",), metrics={"accuracy": 0.9})
    gateway = gateways(MANIFEST.format(url=mlflow_server.url), "--workers", "2").start()
    manifest = str(gateway.manifest)
    assert versions(gateway) == {first.version}
    assert gateway.turnout("plan", "-f", manifest).returncode == 0

    second = mlflow_seeder.publish("number", onnx(2.0), aliases=("champion",), metrics={"accuracy": 0.95})
    with Load(gateway) as load:
        wait_for(lambda: len(load.answers) > 50, 20)
        planned = gateway.turnout("plan", "-f", manifest)
        assert planned.returncode == 2, planned.stderr
        assert "routes.number.variants.stable.version: 1" in planned.stdout
        assert gateway.turnout("apply", "-f", manifest, "--wait").returncode == 0
        assert versions(gateway) == {second.version}
        assert gateway.turnout("rollback", "number", "--reason", "worse", "--wait").returncode == 0
        assert versions(gateway) == {first.version}
    assert {status for *_, status in load.answers} == {200}

    # The registry's alias still points to the new one, and it is not followed until it is allowed again.
    assert gateway.turnout("apply", "-f", manifest).returncode == 0
    assert versions(gateway) == {first.version}
    assert gateway.stop() == 0
    gateway.start()
    assert versions(gateway) == {first.version}
    described = gateway.turnout("resolve", "prod/number@champion").stdout
    assert "accuracy" in described
    assert gateway.turnout("allow", "number", second.version).returncode == 0
    assert versions(gateway) == {second.version}


def test_a_model_that_was_deleted_and_made_again_is_another_release(
    gateways: Callable[..., Gateway],
    mlflow_server: MlflowServer,
    mlflow_seeder: MlflowSeeder,
    tmp_path: Path,
) -> None:
    def publish(value: float) -> None:
        model = models.save(models.constant(value), tmp_path / f"{value}.onnx").read_bytes()
        mlflow_seeder.publish("again", {"model.onnx": model}, aliases=("champion",))

    publish(1.0)
    text = MANIFEST.format(url=mlflow_server.url).replace("prod/number", "prod/again")
    gateway = gateways(text).start()
    mlflow_seeder.delete_model("again")
    publish(7.0)
    planned = gateway.turnout("plan", "-f", str(gateway.manifest))
    assert planned.returncode == 2, planned.stdout + planned.stderr
    assert gateway.turnout("apply", "-f", str(gateway.manifest), "--wait").returncode == 0
    url = f"{gateway.data}/v2/models/number/infer"
    assert httpx.post(url, json=REQUEST).json()["outputs"][0]["data"] == [7.0]
