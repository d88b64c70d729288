from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.control.onnx_files import OnnxError, external_files, external_locations
from tests.control.onnx_models import noise, tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("inside", ["graph", "node", "branch"])
def test_every_place_of_external_data_is_found(model: Path, inside: str) -> None:
    model.write_bytes(tiny("a.bin", "sub/b.bin", inside=inside))
    assert external_locations(model) == {"a.bin", "sub/b.bin"}
    assert external_files(model, "model.onnx", {"model.onnx", "a.bin", "sub/b.bin"}) == {"a.bin", "sub/b.bin"}


def test_a_location_counts_from_the_models_own_directory(model: Path) -> None:
    model.write_bytes(tiny("./a.bin"))
    assert external_files(model, "onnx/model.onnx", {"onnx/a.bin"}) == {"onnx/a.bin"}
    with pytest.raises(OnnxError, match="no file of the version"):
        external_files(model, "onnx/model.onnx", {"a.bin"})


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../a.bin", "sub/../../a.bin", "..", "", ".", "a\\b", "C:/a", "other.bin"]
)
def test_a_location_outside_of_the_version_is_refused(model: Path, location: str) -> None:
    model.write_bytes(tiny(location))
    with pytest.raises(OnnxError):
        external_files(model, "model.onnx", {"model.onnx", "a.bin", "a/b"})


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"hello, world", b"\x80\x04\x95", b"PK\x03\x04", noise(4096)]
)
def test_what_is_no_onnx_is_refused(model: Path, content: bytes) -> None:
    model.write_bytes(content)
    with pytest.raises(OnnxError):
        external_locations(model)


def test_a_model_cut_anywhere_never_does_worse_than_an_error(model: Path) -> None:
    whole = tiny("a.bin", inside="branch")
    for length in range(len(whole)):
        model.write_bytes(whole[:length])
        with suppress(OnnxError):
            assert external_locations(model) <= {"a.bin"}


def test_a_model_with_flipped_bits_never_does_worse_than_an_error(model: Path) -> None:
    chance = random.Random(7)
    whole = tiny("a.bin", inside="node")
    for _ in range(500):
        bent = bytearray(whole)
        bent[chance.randrange(len(bent))] ^= 1 << chance.randrange(8)
        model.write_bytes(bent)
        with suppress(OnnxError):
            external_locations(model)


def test_graphs_nested_without_end_are_refused(model: Path) -> None:
    nested = b""
    for _ in range(200):
        attribute = b"\x32" + _length(nested) + nested  # AttributeProto.g
        node = b"\x2a" + _length(attribute) + attribute  # NodeProto.attribute
        nested = b"\x0a" + _length(node) + node  # GraphProto.node
    model.write_bytes(b"\x3a" + _length(nested) + nested)
    with pytest.raises(OnnxError, match="nested"):
        external_locations(model)


def _length(content: bytes) -> bytes:
    encoded, left = bytearray(), len(content)
    while left >= 0x80:
        encoded.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*encoded, left])
