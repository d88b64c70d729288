"""Triton's perf_analyzer, out of the last wheel of its client that has it, with the two libraries that it needs.

They lie in `.cache/perf_analyzer/` under the root, where `make` puts them; without them the test skips.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent / ".cache" / "perf_analyzer"
PARTS = {
    "tritonclient-*.whl": re.compile(r".*/bin/perf_analyzer"),
    "nvidia_cuda_runtime_cu12-*.whl": re.compile(r".*/libcudart\.so\.12"),
}
"""Wheel → the file of it that is needed."""
BASE64 = "libb64.so.0d"


class PerfAnalyzer:
    """The program, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for pattern, wanted in PARTS.items():
            wheels = sorted(CACHE.glob(pattern))
            if not wheels:
                pytest.skip(f"no {pattern} in {CACHE}: `make test` downloads it, for Linux on x86_64 alone")
            with zipfile.ZipFile(wheels[-1]) as wheel:
                (member,) = filter(wanted.fullmatch, wheel.namelist())
                (directory / Path(member).name).write_bytes(wheel.read(member))
        (directory / "perf_analyzer").chmod(0o755)
        self._libraries = [str(directory), *(str(path.parent) for path in CACHE.rglob(BASE64))]
        if len(self._libraries) == 1 and not _is_installed(BASE64):
            pytest.skip(
                f"no {BASE64}: apt-get install libb64-0d, or `make test` where apt-get can download it"
            )

    def run(self, *options: str, timeout_s: float = 90.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._directory / "perf_analyzer", *options],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=self._directory,
            env={**os.environ, "LD_LIBRARY_PATH": ":".join(self._libraries)},
        )


def _is_installed(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
