"""A server in a process of its own, on one core; its CPU time and its memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from loadtests.bench.machine import BenchError

READY_S = 90.0
STOP_S = 15.0
_CPUCLOCK_SCHED = 2


class Process:
    """Started pinned, in a group of its own, its output in a file; children inherit the core."""

    def __init__(
        self, command: Sequence[str], log: Path, *, core: int, cwd: Path, environment: Mapping[str, str]
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env={**os.environ, **environment},
                process_group=0,
            )
        self.pid = self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Raises `BenchError` with the end of the log where the process ends, or takes too long."""
        deadline = time.monotonic() + READY_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{self._process.args!r} did not get ready:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def tree(self) -> list[int]:
        """This process and all below it."""
        found = [self.pid]
        for pid in found:
            found += _children(pid)
        return found

    def memory_bytes(self) -> int:
        """The proportional share (PSS) of the whole tree, so that shared pages count once."""
        return sum(map(_pss_bytes, self.tree()))

    def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL, for the whole group."""
        pids = self.tree()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_S)


def pin(pids: Sequence[int], core: int) -> None:
    """Moves whole processes, each of their threads, to a core."""
    for pid in pids:
        for thread in _threads(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, {core})


def core_busy_ns(core: int) -> int:
    """The time since the start of the machine in which the core worked for anybody, or was taken away."""
    line = next(
        line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} ")
    )
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, line.split()[1:])
    ticks = user + nice + system + irq + softirq + steal
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _threads(pid: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):
        yield from (int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for thread in _threads(pid):
        with contextlib.suppress(OSError):
            children += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return children


def cpu_ns(pids: Sequence[int]) -> int:
    """User and system time that these processes took since they began."""
    return sum(map(_cpu_ns, pids))


def _cpu_ns(pid: int) -> int:
    # The clock of another process: to the nanosecond, where /proc/<pid>/stat counts in 10 ms.
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
