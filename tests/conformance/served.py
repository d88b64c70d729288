"""The gateway that other people's clients talk to, and what they made of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for
from tests.servers.mlflow import executable

ROOT = Path(__file__).parents[2]
MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  scores: {variants: {stable: {model: local/scores@champion}}}
  sum: {variants: {stable: {model: local/sum@champion}}}
  text: {variants: {stable: {model: local/text@champion}}}
  half: {variants: {stable: {model: local/half@champion}}}
  wide: {variants: {stable: {model: local/wide@champion}}}
"""
MODELS = {
    ("scores", "1"): models.mlp(16, 8, 4, seed=1),
    ("scores", "2"): models.mlp(16, 8, 4, seed=2),
    ("scores", "3"): models.mlp(16, 8, 4, seed=3),
    ("sum", "1"): models.two_inputs(),
    ("text", "1"): models.identity("BYTES", ["batch", 2]),
    ("half", "1"): models.identity("FP16"),
    ("wide", "1"): models.identity("FP32", ["batch", 1024]),
}


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two workers, so that a client's requests reach one that knows nothing of the others."""
    made = Gateway(tmp_path_factory.mktemp("conformance"), MANIFEST, "--workers", "2")
    for (name, version), model in MODELS.items():
        source = models.save(model, made.directory / name / version / "model.onnx")
        publish(
            made.directory / "models", name, source, version=version, aliases=["champion"] * (version == "1")
        )
    try:
        made.start()
        wait_for(lambda: made.ready_workers() == 2, 30, lambda: made.log)
        yield made
        assert "Traceback" not in made.log, made.log
    finally:
        made.kill()


def clients_python() -> Path:
    """The interpreter that has other people's clients; they pin what the gateway uses to other versions."""
    environment = Path(os.environ.get("TURNOUT_TEST_CLIENTS") or ROOT / ".venvs" / "clients")
    python = environment / "bin" / "python"
    if not python.exists():
        pytest.fail(f"no {python}: `make test` sets it up from requirements/clients.lock", pytrace=False)
    return python


def mlflow_python() -> Path:
    """The interpreter that has MLflow."""
    return executable().with_name("python")


def run_client(script: str, address: str, python: Path | None = None) -> dict[str, Any]:
    """What a client script printed."""
    done = subprocess.run(
        [python or clients_python(), Path(__file__).parent / script, address],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
