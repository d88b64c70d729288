"""The form of a large model whose weights are mapped: it answers as the model does, or is not used."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from gateway.routing.state import EngineOptions
from gateway.serving.engines.mapped import derived_directory, worth_sharing
from gateway.serving.engines.onnx import OnnxEngine, load_onnx
from tests import models

ON = EngineOptions(share_weights="on")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.mlp(64, 256, 8), tmp_path / "files")


@pytest.fixture
def derived(tmp_path: Path) -> Path:
    return tmp_path / "derived"


def answer(engine: OnnxEngine) -> bytes:
    name = engine.signature.inputs[0].name
    rows = np.random.default_rng(3).standard_normal((5, 64), dtype=np.float32)
    return engine.run({name: rows}, [engine.signature.outputs[0].name])[0].tobytes()


def weights_of(derived: Path) -> Path:
    (found,) = derived.glob("*/weights.bin")
    return found


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_it_answers_as_the_model_does(model: Path, derived: Path) -> None:
    plain = answer(load_onnx(model, ON))
    assert not derived.exists()
    assert answer(load_onnx(model, ON, derived)) == plain
    assert answer(load_onnx(model, ON, derived)) == plain, "when it was there already"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_its_weights_are_mapped_and_made_once(model: Path, derived: Path) -> None:
    first = load_onnx(model, ON, derived)
    weights = weights_of(derived)
    made = weights.stat().st_ino
    assert is_mapped(weights)
    second = load_onnx(model, ON, derived)
    assert weights.stat().st_ino == made
    assert first.signature == second.signature


def test_other_options_have_a_form_of_their_own(model: Path, derived: Path) -> None:
    load_onnx(model, ON, derived)
    load_onnx(model, EngineOptions(share_weights="on", graph_optimization="basic"), derived)
    assert len(list(derived.glob("*/weights.bin"))) == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def link_twice(path: Path) -> None:
    os.link(path, path.parent.parent / "second name")


def link_away(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def add_beside(path: Path) -> None:
    path.with_name("more.bin").write_bytes(b"x")


@pytest.mark.parametrize("harm", [flip, link_twice, link_away, add_beside, Path.unlink])
def test_what_is_not_as_it_was_written_is_made_anew(model: Path, derived: Path, harm: object) -> None:
    plain = answer(load_onnx(model, ON, derived))
    weights = weights_of(derived)
    harm(weights)  # type: ignore[operator]
    assert answer(load_onnx(model, ON, derived)) == plain
    status = weights.lstat()
    assert (status.st_nlink, weights.is_symlink()) == (1, False)
    assert {path.name for path in weights.parent.iterdir()} == {"model.onnx", "weights.bin", "form.json"}


def test_leftovers_of_a_killed_worker_do_not_matter(model: Path, derived: Path) -> None:
    load_onnx(model, ON, derived)
    form = weights_of(derived).parent
    form.rename(form.with_name(f"{form.name}.making"))
    load_onnx(model, ON, derived)
    assert weights_of(derived).parent == form


def test_a_model_that_is_not_comparable_is_loaded_as_it_is(
    tmp_path: Path, derived: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes neither ones nor zeros of any size that is tried: nothing shows that the form answers alike."""
    model = models.save(models.needs_even_rows(), tmp_path / "files")
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            load_onnx(model, ON, derived)
    assert "does not answer as the model does" in caplog.text
    assert not list(derived.glob("*/weights.bin"))


def test_a_cache_that_cannot_be_written_costs_only_the_sharing(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    plain = answer(load_onnx(model, ON))
    assert answer(load_onnx(model, ON, tmp_path / "file" / "derived")) == plain
    assert "own memory" in caplog.text


def test_when_it_is_worth_it(model: Path) -> None:
    assert worth_sharing(model, ON)
    assert not worth_sharing(model, EngineOptions()), "small"
    assert not worth_sharing(model, EngineOptions(share_weights="off"))
    assert not worth_sharing(model, EngineOptions(share_weights="on", providers=("CUDAExecutionProvider",)))


def test_it_lies_with_its_version(tmp_path: Path) -> None:
    digest = "a" * 64
    version = tmp_path / "versions" / digest
    assert derived_directory(version / "files" / "sub" / "model.onnx", digest) == version / "derived"
    assert derived_directory(tmp_path / "model.onnx", digest) is None
