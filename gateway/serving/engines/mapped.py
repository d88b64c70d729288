"""Large models in a form whose weights every worker maps: the pages are there once, however many workers.

ONNX Runtime copies inline weights into each process, and most weights once more when it packs them for its
kernels. It can write a model down as it stands after both, with the weights in a file beside it, which it then
maps (docs/decisions/008 has what was measured). So the first worker that loads a large version makes that form:

    <version>/derived/<machine, release and options>/model.onnx, weights.bin, form.json

It is derived data: checked by its own digests at each load, made anew where they differ, and gone with its
version. ONNX Runtime opens the weights by their path (CVE-2026-34446 is about such files), so they are only
those that we wrote ourselves, into a directory of our own, as plain files without a second name.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import onnxruntime as ort

from gateway.routing.state import EngineOptions

FROM_BYTES = 64 * 2**20
"""Of a version's files, under `share_weights: auto`. What is smaller is not worth the second file."""
MODEL, WEIGHTS, NOTE = "model.onnx", "weights.bin", "form.json"
FORM = 1
"""Counts up with every change of how the form is made."""


class FormUnusable(Exception):
    """The form cannot be made or does not answer as the model does: the model is loaded as it is."""


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    files: dict[str, str]
    """Name → SHA-256 in hex."""
    unusable: str = ""
    """Why there are none, so that it is not tried at every load."""


def derived_directory(model: Path, digest: str) -> Path | None:
    """Where the derived data of the version `digest` goes; None for a model that is in no cache."""
    version = next((parent for parent in model.parents if parent.name == digest), None)
    return version / "derived" if version is not None else None


def worth_sharing(model: Path, options: EngineOptions) -> bool:
    """Whether the manifest, or by `auto` the size, asks for it. Only the CPU's provider maps weights."""
    if options.share_weights == "off" or options.providers != ("CPUExecutionProvider",):
        return False
    size_bytes = sum(path.stat().st_size for path in model.parent.rglob("*") if path.is_file())
    return options.share_weights == "on" or size_bytes >= FROM_BYTES


def mapped_form(directory: Path, options: EngineOptions, make: Callable[[Path], None]) -> Path:
    """The form's model. `make` writes it, where it is not there yet, as the given path, and tries it.

    One process makes it, the others wait. Blocking. Raises `FormUnusable`, `OSError`, and what `make` raises.
    """
    form = directory / _key(options)
    directory.mkdir(mode=0o700, exist_ok=True)
    with _locked(directory):
        _remove_leftovers(directory)
        note = _read(form)
        if note is not None and note.unusable:
            raise FormUnusable(note.unusable)
        if note is None or not _intact(form, note):
            shutil.rmtree(form, ignore_errors=True)
            _make(form, make)
    return form / MODEL


def save_options(session: ort.SessionOptions, model: Path) -> None:
    """Has ONNX Runtime write the session's model to `model`, its weights beside it, packed as they are used."""
    session.optimized_model_filepath = str(model)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", WEIGHTS),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "4096"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        session.add_session_config_entry(key, value)


def _make(form: Path, make: Callable[[Path], None]) -> None:
    scratch = form.with_name(f"{form.name}.making")
    scratch.mkdir(mode=0o700)
    try:
        make(scratch / MODEL)
        _publish(scratch, form, _Note(files={path.name: _sha256(path) for path in scratch.iterdir()}))
    except FormUnusable as error:
        for path in scratch.iterdir():
            path.unlink()
        _publish(scratch, form, _Note(files={}, unusable=str(error)))
        raise
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _publish(scratch: Path, form: Path, note: _Note) -> None:
    (scratch / NOTE).write_bytes(msgspec.json.encode(note))
    scratch.rename(form)


def _read(form: Path) -> _Note | None:
    try:
        return msgspec.json.decode((form / NOTE).read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _intact(form: Path, note: _Note) -> bool:
    try:
        present = {path.name for path in form.iterdir()} - {NOTE}
        return present == set(note.files) and all(
            _sha256(form / name) == sha256 for name, sha256 in note.files.items()
        )
    except OSError:
        return False


def _sha256(path: Path) -> str:
    """Raises `OSError` for what is not a plain file of our own."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
            raise OSError(f"{path.name} is a link, or not ours")
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_leftovers(directory: Path) -> None:
    for path in directory.glob("*.making"):  # of a process that died over it
        shutil.rmtree(path, ignore_errors=True)


def _key(options: EngineOptions) -> str:
    """What a form depends on: packed weights are laid out for one machine's instructions."""
    parts = (FORM, ort.__version__, platform.machine(), _processor(), options.graph_optimization)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
