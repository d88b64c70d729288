"""The machine that a bench runs on: its facts, its cores, and the programs that it must have."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = {"wrk": "wrk", "nginx": "nginx-light"}
"""Program → Debian's package of it."""


class BenchError(Exception):
    """The bench cannot run here, or what it measured is not to be trusted; the text says what to do."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Which core serves and which one asks, so that neither takes the other's time."""

    server: int
    load: int


def two_cores() -> Cores:
    """Raises `BenchError` where servers and load cannot be kept apart."""
    if not sys.platform.startswith("linux"):
        raise BenchError(
            f"processes are pinned to cores and their CPU time is read as Linux does it, not {sys.platform}: "
            "run the bench in a container or a virtual machine with two cores"
        )
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise BenchError(
            "only one core is usable: the server and the load need one each. "
            "Give the container or the virtual machine two"
        )
    return Cores(server=usable[0], load=usable[1])


def require(*programs: str) -> None:
    """Raises `BenchError` with the packages to install."""
    missing = [PACKAGES[program] for program in programs if shutil.which(program) is None]
    if missing:
        raise BenchError(f"{' and '.join(missing)} must be installed: apt-get install {' '.join(missing)}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def facts() -> str:
    """The machine in one line, and when."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    virtual = ", virtual" if re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of {model[1] if model else platform.machine()}"
        f"{virtual}, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )
