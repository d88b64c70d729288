"""Which files an ONNX model names: read from the protobuf's wire format, without running anything of it.

String checks on external data have failed the ONNX project again and again (CVE-2022-25882, 2024-27318,
2026-34446), so a name only counts if it is exactly one of the version's own files.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

DEPTH_LIMIT = 64
"""Of graphs in graphs. Exporters write a handful."""

# message → field → message, as in onnx.proto (ONNX 1.20); only what leads to a tensor.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _ENTRY = range(9)
_CHILDREN: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
_GRAPH_FIELD = 7
_KEY_FIELD, _VALUE_FIELD = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class OnnxError(ValueError):
    """The file is no ONNX model, or names files that it must not."""


def external_files(model: Path, name: str, files: Collection[str]) -> frozenset[str]:
    """The files of the version that hold tensors of the model.

    `name` is the model's own path in the version, `files` are all paths of the version. Raises `OnnxError`
    where a location is absolute, leads out of the model's directory or is none of the files.
    """
    directory = PurePosixPath(name).parent
    found = set()
    for location in external_locations(model):
        parts = PurePosixPath(location).parts
        if not parts or location.startswith("/") or "\\" in location or ".." in parts or ":" in parts[0]:
            raise OnnxError(
                f"{name} keeps tensors in {location[:200]!r}, which is no path inside the version"
            )
        path = str(directory / location)
        if path not in files:
            raise OnnxError(f"{name} keeps tensors in {location[:200]!r}, which is no file of the version")
        found.add(path)
    return frozenset(found)


def external_locations(model: Path) -> set[str]:
    """The locations of external data as the model writes them. Raises `OnnxError`, or `OSError`."""
    with model.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise OnnxError(f"{model.name} is empty") from None
        with mapped:
            try:
                return _locations(mapped)
            except OnnxError as error:
                raise OnnxError(f"{model.name} is no readable ONNX model: {error}") from None


def _locations(raw: mmap.mmap) -> set[str]:
    found: set[str] = set()
    graphs = 0
    todo = [(_MODEL, 0, len(raw), 0)]
    while todo:
        message, start, end, depth = todo.pop()
        if depth > DEPTH_LIMIT:
            raise OnnxError(f"its graphs are nested more than {DEPTH_LIMIT} deep")
        children = _CHILDREN[message]
        for field, wire, first, last in _fields(raw, start, end):
            child = children.get(field)
            if child is None:
                continue
            if wire != _BYTES:
                raise OnnxError(f"field {field} has wire type {wire}")
            graphs += message == _MODEL and field == _GRAPH_FIELD
            if child == _ENTRY:
                found |= _location(raw, first, last)
            else:
                todo.append((child, first, last, depth + (child == _GRAPH)))
    if not graphs:
        raise OnnxError("it has no graph")
    return found


def _location(raw: mmap.mmap, start: int, end: int) -> set[str]:
    """Of one key and value of a tensor: its location, if it is that. The last of each counts, but as a
    parser may see it otherwise, all values of an entry that has the key anywhere are taken."""
    keys: set[str] = set()
    values: set[str] = set()
    for field, wire, first, last in _fields(raw, start, end):
        if field in (_KEY_FIELD, _VALUE_FIELD) and wire == _BYTES:
            try:
                (keys if field == _KEY_FIELD else values).add(raw[first:last].decode())
            except UnicodeDecodeError:
                raise OnnxError("an external data entry is no UTF-8") from None
    return (values or {""}) if "location" in keys else set()


def _fields(raw: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, first byte, byte after the last) of each field of a message."""
    while at < end:
        tag, at = _varint(raw, at, end)
        field, wire = tag >> 3, tag & 7
        first = at
        if wire == _VARINT:
            _, at = _varint(raw, at, end)
        elif wire == _BYTES:
            length, first = _varint(raw, at, end)
            at = first + length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise OnnxError(f"it has the wire type {wire}")
        if at > end or not field:
            raise OnnxError("it ends in the middle, or is something else")
        yield field, wire, first, at


def _varint(raw: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise OnnxError("it ends in the middle of a number")
