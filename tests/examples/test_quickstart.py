"""The committed models are what their lineage says, and training again gives the same ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from examples import quickstart
from examples.digits.data import Split, data_digest, load_split
from examples.digits.export import onnx_bytes
from examples.quickstart import MODELS, Release
from gateway.control.manifest_file import read_manifest
from gateway.control.registries import Registries
from registry_client.adapters.directory import open_directory
from registry_client.models import ModelVersion

CONFIG = MODELS.parent
# The metrics are written with four decimals.
ROUNDED = 5e-5


@pytest.fixture(scope="module")
def split() -> Split:
    return load_split()


@pytest.fixture(scope="module")
def releases(split: Split) -> list[Release]:
    return quickstart.train_releases(split)


async def committed(revision: str) -> ModelVersion:
    client = open_directory("local", {"path": str(MODELS)})
    try:
        return await client.resolve("digits", revision)
    finally:
        await client.aclose()


def session(version: str, root: Path = MODELS) -> onnxruntime.InferenceSession:
    model = root / "digits" / version / "model.onnx"
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def answers(version: str, images: Any) -> tuple[Any, Any]:
    label, probabilities = session(version).run(["label", "probabilities"], {"image": images})
    return label, probabilities


@pytest.mark.parametrize(("alias", "version"), [("champion", "1"), ("challenger", "2"), ("broken", "3")])
async def test_each_alias_leads_to_a_whole_version_with_its_lineage(alias: str, version: str) -> None:
    found = await committed(alias)

    assert (found.version, found.aliases) == (version, (alias,))
    assert found.digest is not None
    assert found.description
    assert found.lineage.datasets == {"uci-digits": data_digest()}
    assert {"epochs", "rate", "seed"} <= found.lineage.params.keys()
    assert {"numpy", "onnx"} <= found.lineage.environment.keys()
    assert found.lineage.parent == ("digits@2" if alias == "broken" else "")


@pytest.mark.parametrize("version", ["1", "2", "3"])
async def test_the_metrics_are_those_of_the_committed_file(version: str, split: Split) -> None:
    label, probabilities = answers(version, split.test.images)

    of_label = probabilities[np.arange(len(split.test)), split.test.labels]
    metrics = (await committed(version)).lineage.metrics
    assert metrics["accuracy"] == pytest.approx((label == split.test.labels).mean(), abs=ROUNDED)
    assert metrics["log_loss"] == pytest.approx(-np.log(of_label).mean(), abs=2 * ROUNDED)


async def test_the_challenger_is_clearly_better_and_the_broken_one_clearly_bad() -> None:
    champion, challenger, broken = [
        (await committed(alias)).lineage.metrics["accuracy"] for alias in ("champion", "challenger", "broken")
    ]

    assert 0.4 < broken < 0.6 < champion < challenger - 0.03


def test_all_versions_have_one_signature_and_load_on_older_runtimes() -> None:
    for version in ("1", "2", "3"):
        loaded = session(version)
        (image,) = loaded.get_inputs()
        label, probabilities = loaded.get_outputs()
        assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 64])
        assert (label.name, label.type, label.shape) == ("label", "tensor(int64)", ["batch"])
        assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
        assert probabilities.shape == ["batch", 10]

        model = onnx.load(MODELS / "digits" / version / "model.onnx")
        assert model.ir_version <= 10
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]


async def test_training_again_gives_the_committed_models(releases: list[Release], split: Split) -> None:
    for release in releases:
        exported = onnx_bytes(release.network)
        written = (await committed(release.version)).lineage.environment
        if (written["onnx"], written["numpy"]) == (onnx.__version__, np.__version__):
            assert exported == Path(MODELS, "digits", release.version, "model.onnx").read_bytes()

        again = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
        label, probabilities = again.run(["label", "probabilities"], {"image": split.test.images})
        expected_label, expected = answers(release.version, split.test.images)
        np.testing.assert_allclose(probabilities, expected, atol=1e-2)
        assert (label == expected_label).mean() > 0.995


def test_the_script_publishes_all_versions_and_may_run_again(tmp_path: Path) -> None:
    said = run_script(tmp_path)
    first = contents(tmp_path)
    # What a reader of the quickstart does, and what running it again puts right.
    (tmp_path / "digits" / "aliases" / "champion").write_text("3\n")
    assert run_script(tmp_path) == said

    assert contents(tmp_path) == first
    assert "digits 2 (challenger): 98.3% right" in said


def run_script(root: Path) -> str:
    # As in the README, but from elsewhere: it must find its own modules.
    command = [sys.executable, str(Path(quickstart.__file__)), "--root", str(root)]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def test_a_version_with_other_bytes_is_never_replaced(tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "digits" / "1"
    other.mkdir(parents=True)
    (other / "model.onnx").write_bytes(b"another model")

    assert quickstart.main(["--root", str(tmp_path)]) == 1

    assert (other / "model.onnx").read_bytes() == b"another model"
    assert "version 1 was not published" in capsys.readouterr().err


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_request_is_a_seven_of_the_test_part(split: Split) -> None:
    request = json.loads((CONFIG / "request.json").read_text())
    (image,) = request["inputs"]
    pixels = np.array(image["data"], np.float32).reshape(image["shape"])

    (rows,) = np.nonzero((split.test.images == pixels).all(axis=1))
    assert split.test.labels[rows].tolist() == [7]
    assert (image["name"], image["datatype"], pixels.shape) == ("image", "FP32", (1, 64))
    assert request["outputs"] == [{"name": "label"}]
    assert json.loads((CONFIG / "instances.json").read_text()) == {"instances": [image["data"]]}
    assert [answers(version, pixels)[0].tolist() for version in ("1", "2", "3")] == [[7], [7], [8]]


async def test_the_manifest_leads_to_the_published_versions() -> None:
    manifest = read_manifest(CONFIG / "turnout.yaml")

    route = manifest.routes["digits"]
    weights = {name: variant.weight_bp for name, variant in route.variants.items()}
    assert weights == {"stable": 9000, "canary": 1000}
    assert (route.fallback, route.sticky, route.overrides) == ("stable", "header:turnout-key", True)
    registries = Registries()
    try:
        found = [await registries.resolve(each, manifest.registries) for _, _, each in manifest.references()]
    finally:
        await registries.aclose()
    assert [version.version for version in found] == ["1", "2"]
