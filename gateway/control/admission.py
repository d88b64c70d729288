"""Which versions may enter the cache: ONNX and what belongs to it, never anything that runs code when read.

Scanners for harmful pickles were bypassed again and again (CVE-2025-1716, 2025-10155), so none is let in.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gateway.control.onnx_files import OnnxError, external_files
from gateway.control.weights_errors import WeightsRefused
from registry_client.models import ModelVersion

PATH_BYTES = 1024
PART_BYTES = 255
PATH_DEPTH = 16

PICKLE_SUFFIXES = frozenset((".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".pt", ".pth", ".ckpt"))
"""Of formats that are pickles or may hold some; what hides behind another name is found by its content."""
MODEL_NAME = "model.onnx"
SUFFIX = ".onnx"

_PICKLE_PROTOCOLS = (2, 3, 4, 5)
_ZIP_NAMES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one version may hold."""

    max_files: int = 1000
    max_version_bytes: int = 64 * 2**30


def admit_names(version: ModelVersion, limits: Limits) -> str:
    """Before anything is fetched: the model's path. Raises `WeightsRefused` and names the file."""
    name = f"{version.registry}/{version.model} version {version.version}"
    if len(version.files) > limits.max_files:
        raise WeightsRefused(f"{name} has {len(version.files)} files, the limit is {limits.max_files}")
    total = sum(file.size_bytes or 0 for file in version.files)
    if total > limits.max_version_bytes:
        raise WeightsRefused(f"{name} has {total} bytes, the limit is {limits.max_version_bytes}")
    paths = [file.path for file in version.files]
    for path in paths:
        problem = _path_problem(path)
        if problem:
            raise WeightsRefused(f"{name} has the file {path[:200]!r}, {problem}")
        if PurePosixPath(path).suffix.lower() in PICKLE_SUFFIXES:
            raise WeightsRefused(
                f"{name} has {path!r}, a pickle by its name: only ONNX is loaded. Export the model to ONNX "
                "and register it without that file"
            )
    _refuse_clashes(name, paths)
    return _model_name(name, paths)


def admit_content(root: Path, model: str, paths: Sequence[str]) -> None:
    """After everything is fetched below `root`. Raises `WeightsRefused` and names the file, or `OSError`."""
    for path in paths:
        refuse_links(root / path, path)
    try:
        tensors = external_files(root / model, model, frozenset(paths))
    except OnnxError as error:
        raise WeightsRefused(str(error)) from error
    for path in paths:
        # Raw tensors may begin with any bytes, and nothing but the engine's own memory map reads them.
        if path != model and path not in tensors and _is_pickle(root / path):
            raise WeightsRefused(f"{path!r} is a pickle by its content: only ONNX is loaded")


def refuse_links(file: Path, path: str) -> None:
    """A hard link passes every check of names (CVE-2026-34446): the bytes could be anybody's."""
    status = os.lstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise WeightsRefused(f"{path!r} is a link or no regular file")


def _path_problem(path: str) -> str:
    parts = path.split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        return "which is no plain relative path"
    if "\\" in path or not path.isprintable():
        return "which has a backslash or unprintable characters"
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError:
        return "which is no UTF-8"
    too_long = len(path.encode()) > PATH_BYTES or any(len(part) > PART_BYTES for part in encoded)
    return "which is too long or too deep" if too_long or len(parts) > PATH_DEPTH else ""


def _refuse_clashes(name: str, paths: Sequence[str]) -> None:
    # Folded, because a file system that ignores case would write one over the other.
    folded = [path.casefold() for path in paths]
    directories = {str(parent) for path in folded for parent in PurePosixPath(path).parents}
    for path, same in zip(paths, folded, strict=True):
        if folded.count(same) > 1 or same in directories:
            raise WeightsRefused(f"{name} has {path!r} twice, or as a file and a directory")


def _model_name(name: str, paths: Collection[str]) -> str:
    candidates = sorted(path for path in paths if path.lower().endswith(SUFFIX))
    top = [path for path in candidates if "/" not in path]
    if MODEL_NAME in top:
        return MODEL_NAME
    for few in (top, candidates):
        if len(few) == 1:
            return few[0]
    if not candidates:
        raise WeightsRefused(
            f"{name} has no *{SUFFIX} file among {_some(sorted(paths))}: only ONNX is loaded"
        )
    raise WeightsRefused(
        f"{name} has several models, {_some(candidates)}: keep one at the top, or call it {MODEL_NAME}"
    )


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(path[:80] for path in paths[:5])
    return (f"{shown} and {len(paths) - 5} more" if len(paths) > 5 else shown) or "no files at all"


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(2)
    if len(head) == 2 and head[0] == 0x80 and head[1] in _PICKLE_PROTOCOLS:
        return True
    return zipfile.is_zipfile(file) and _holds_pickle(file)


def _holds_pickle(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
    return len(names) > _ZIP_NAMES or any(
        PurePosixPath(entry).suffix.lower() in PICKLE_SUFFIXES for entry in names
    )
