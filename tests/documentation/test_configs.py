"""What lies under configs/ works as it is."""

from __future__ import annotations

from gateway.control.manifest_file import read_manifest
from registry_client import open_registry
from tests.documentation.pages import ROOT


async def test_the_mlflow_manifest_opens_its_registry() -> None:
    for name, declared in read_manifest(ROOT / "configs" / "mlflow" / "turnout.yaml").registries.items():
        client = open_registry(name, declared.type, declared.options)
        assert client.kind == "mlflow"
        await client.aclose()
