"""Tells pickles from weights. To load a pickle is to run its author's code, so none is published.

This is a courtesy to the publisher, who learns it early and by name. It is no scanner: those were bypassed
again and again, and what protects the gateway is that it loads nothing but ONNX and safetensors.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth"})
_HEAD_BYTES = 64 * 1024
_FEW_OPCODES = 8
_IMPORTING = frozenset({"GLOBAL", "STACK_GLOBAL", "INST"})


def is_pickle(path: Path) -> bool:
    """Whether `path` is a pickle: by its suffix, by its first opcodes, or as a zip that holds one."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return _holds_pickle(path)
    # Without its protocol byte a pickle looks like any text, so only the suffix that pickles use is tried.
    if head[:1] == b"\x80" or path.suffix.lower() == ".bin":
        return _starts_with_opcodes(head)
    return False


def _holds_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).suffix.lower() in PICKLE_SUFFIXES for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _starts_with_opcodes(head: bytes) -> bool:
    # A safetensors header of 640 bytes begins with 80 02 as well: two bytes prove nothing.
    seen = 0
    try:
        for opcode, _, position in pickletools.genops(head):
            seen += 1
            if opcode.name in _IMPORTING or seen >= _FEW_OPCODES:
                return True
            if opcode.name == "STOP":
                return position is not None and position + 1 == len(head)
    except (ValueError, UnicodeError, IndexError, OverflowError):
        return False
    return False
