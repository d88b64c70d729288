"""What any number of replicas cost one Redis, and how long the last of them takes to acknowledge a change.

    python -m loadtests.bench.readers [--replicas 1,10,100,1000] [--changes 100] [--rest 15] [--dry]

Starts a Valkey server and so many simulated replicas: the real reader, deliverer and reports over the real store,
with workers that take each state at once (see `reader_processes`). Then it denies a version and lifts the deny, again
and again, each time when every replica has acknowledged the change before. The replicas share all cores, in a process
for each, and give way to the server (nice). Times are from the call that commits to the moment at which the last
replica's report was answered. Commands, connections and CPU time are the server's own figures, at rest and while
it changes: where connections are made anew, this machine cannot simulate so many. Writes the table into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import redis

from gateway.control.redis_store import RedisStore
from gateway.control.store import Author
from gateway.routing.state import DenyKey, Pin, Revision, Route, State, Variant
from loadtests.bench.machine import BenchError, facts
from loadtests.bench.page import Section, figure, run_section, table
from loadtests.bench.reader_processes import REVISIONS, START_S, Notes, make_notes
from loadtests.bench.servers import ROOT
from tests.servers.redis import RedisServer

NAMESPACE = "bench"
REPLICAS = (1, 10, 100, 1000)
ON_PAPER = 10_000
TIMEOUT_S = 60.0
CONNECTIONS = 3
"""Of a replica, at most; file descriptors are reserved for so many."""
_GIVE_WAY = ("nice", "-n", "10")
_FILES = 512
"""File descriptors beside those."""
KEY = DenyKey("digits", "2" * 64)


@dataclass(frozen=True, kw_only=True)
class Used:
    """The server's counters, or what they rose by."""

    at_s: float
    commands: int
    connections: int
    cpu_s: float
    clients_cpu_s: float
    """Of the replicas' processes."""

    def __sub__(self, before: Used) -> Used:
        return Used(
            at_s=self.at_s - before.at_s,
            commands=self.commands - before.commands,
            connections=self.connections - before.connections,
            cpu_s=self.cpu_s - before.cpu_s,
            clients_cpu_s=self.clients_cpu_s - before.clients_cpu_s,
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    replicas: int
    first_ms: Sequence[float]
    """From each commit to the first acknowledgement."""
    last_ms: Sequence[float]
    rest: Used
    changing: Used
    connected: int
    """Connections that are open at rest, the bench's own two left out."""

    @property
    def commands_a_change(self) -> float:
        """For each replica, beyond what it sends at rest."""
        at_rest = self.rest.commands / self.rest.at_s * self.changing.at_s
        return (self.changing.commands - at_rest) / len(self.last_ms) / self.replicas

    @property
    def cpu_s_a_change(self) -> float:
        """The server's, beyond what it takes at rest."""
        at_rest = self.rest.cpu_s / self.rest.at_s * self.changing.at_s
        return max(0.0, self.changing.cpu_s - at_rest) / len(self.last_ms)

    @property
    def own_cpu_s_a_change(self) -> float:
        """Of one replica, beyond what it takes at rest."""
        at_rest = self.rest.clients_cpu_s / self.rest.at_s * self.changing.at_s
        return max(0.0, self.changing.clients_cpu_s - at_rest) / len(self.last_ms) / self.replicas


class Fleet:
    """Replicas on one server, and their acknowledgements."""

    def __init__(self, server: RedisServer, notes: Notes, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._redis = redis.Redis.from_url(server.url)
        self._notes = notes
        self._processes = processes

    def wait(self, revision: Revision, timeout_s: float = TIMEOUT_S) -> tuple[int, int]:
        """When the first and the last replica had reported it: nanoseconds of the monotonic clock."""
        column = self._notes[:, revision.rev]
        deadline = time.monotonic() + timeout_s
        while not column.all():
            if time.monotonic() > deadline:
                raise BenchError(
                    f"{int((column == 0).sum())} of {len(column)} replicas did not acknowledge revision "
                    f"{revision} within {timeout_s:g} s: fewer, or a machine with more cores"
                )
            for process in self._processes:
                if process.poll() is not None:
                    raise BenchError(f"a process of replicas ended with {process.returncode}")
            # Seldom: what is measured shares its core with whoever looks.
            time.sleep(0.005)
        return int(column.min()), int(column.max())

    def connected(self) -> int:
        return int(self._redis.info("clients")["connected_clients"]) - 2

    def used(self) -> Used:
        stats, cpu = self._redis.info("stats"), self._redis.info("cpu")
        return Used(
            at_s=time.monotonic(),
            commands=int(stats["total_commands_processed"]),
            connections=int(stats["total_connections_received"]),
            cpu_s=float(cpu["used_cpu_sys"]) + float(cpu["used_cpu_user"]),
            clients_cpu_s=sum(_cpu_s(process.pid) for process in self._processes),
        )


def measure(replicas: int, changes: int, rest_s: float, processes: int) -> Result:
    with (
        tempfile.TemporaryDirectory(prefix="turnout-readers-", dir=_memory()) as scratch,
        ExitStack() as stack,
    ):
        directory = Path(scratch)
        server = RedisServer("valkey", directory / "valkey")
        server.start("--appendfsync", "everysec", "--maxclients", str(CONNECTIONS * replicas + _FILES))
        stack.callback(server.kill)
        notes = make_notes(directory / "notes", replicas)
        with asyncio.Runner() as runner:
            operator = RedisStore(server.url, NAMESPACE, "operator")
            first = runner.run(operator.put(_state(), Revision(0, 0), _author("put"), ()))
            running = stack.enter_context(_processes(server.url, directory, replicas, processes))
            fleet = Fleet(server, notes, running)
            fleet.wait(first, TIMEOUT_S + replicas * START_S)
            print(f"{replicas} replicas", flush=True)
            before = fleet.used()
            time.sleep(rest_s)
            rested, connected = fleet.used(), fleet.connected()
            waits = []
            for number in range(changes):
                sent_ns = time.monotonic_ns()
                revision = runner.run(_change(operator, number))
                waits.append([(noted - sent_ns) / 1e6 for noted in fleet.wait(revision)])
            changed = fleet.used()
            runner.run(operator.aclose())
    return Result(
        replicas=replicas,
        first_ms=[first_ms for first_ms, _ in waits],
        last_ms=[last_ms for _, last_ms in waits],
        rest=rested - before,
        changing=changed - rested,
        connected=connected,
    )


async def _change(operator: RedisStore, number: int) -> Revision:
    """A deny, and every other time the end of it."""
    if number % 2:
        return await operator.undeny([KEY], _author(f"allow{number}"), ())
    return await operator.deny({KEY: "2"}, _author(f"deny{number}"), ())


def _author(op_id: str) -> Author:
    return Author(actor="bench", op_id=op_id)


def _state() -> State:
    variants = {
        name: Variant(
            pin=Pin(registry="local", model="digits", version=version, digest=version * 64),
            reference=f"local/digits@{version}",
            weight_bp=weight_bp,
        )
        for name, version, weight_bp in (("stable", "1", 9000), ("canary", "2", 1000))
    }
    return State(routes={"digits": Route(variants=variants, fallback="stable")})


@contextmanager
def _processes(
    url: str, directory: Path, replicas: int, processes: int
) -> Iterator[list[subprocess.Popen[str]]]:
    shares = np.array_split(np.arange(replicas), min(processes, replicas))
    started = []
    try:
        for share in shares:
            command = [*_GIVE_WAY, sys.executable, "-m", "loadtests.bench.reader_processes", url, NAMESPACE]
            command += [str(directory / "notes"), str(share[0]), str(len(share)), str(directory)]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=ROOT))
        yield started
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def _memory() -> str | None:
    """Where the replicas' state files cost no disk: a thousand share this machine's, each has its own elsewhere."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _reserve_files(replicas: int) -> None:
    """Raises `BenchError` where the system allows fewer; children inherit the limit."""
    needed = CONNECTIONS * replicas + _FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(f"{replicas} replicas need {needed} open files, `ulimit -Hn` is {hard}: raise it")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def section(results: Sequence[Result]) -> Section:
    head = [
        "replicas", "first acknowledgement, p50 ms", "last, p50 ms", "p99 ms",
        "commands of a replica, a second at rest", "for a change",
        "CPU of a replica at rest", "for a change, ms",
        "CPU of the server at rest", "for a change, ms", "connections anew",
    ]  # fmt: skip
    rows = [
        [
            str(result.replicas),
            figure(float(np.percentile(result.first_ms, 50))),
            *(figure(float(np.percentile(result.last_ms, q))) for q in (50, 99)),
            figure(result.rest.commands / result.rest.at_s / result.replicas),
            figure(result.commands_a_change),
            f"{100 * result.rest.clients_cpu_s / result.rest.at_s / result.replicas:.2f} %",
            figure(1000 * result.own_cpu_s_a_change),
            f"{100 * result.rest.cpu_s / result.rest.at_s:.1f} %",
            figure(1000 * result.cpu_s_a_change),
            str(result.rest.connections + result.changing.connections),
        ]
        for result in results
    ]
    changes, most = len(results[0].last_ms), results[-1]
    times = ON_PAPER / most.replicas
    rest_cores = most.rest.cpu_s / most.rest.at_s * times
    change_s = most.cpu_s_a_change * times
    return Section(
        name="readers",
        text=f"{facts()}. {changes} changes each; the replicas share these cores, and give way to the server. "
        "CPU is of one core.\n\n"
        f"{table(head, rows)}\n\n"
        f"On paper, by the figures of {most.replicas:,}: {ON_PAPER:,} replicas would have "
        f"{figure(most.connected * times)} connections open, take {figure(rest_cores)} cores of the server at "
        f"rest, and {figure(change_s)} s of it for each change. A server works on one core, and "
        "accepts 10,000 connections unless `maxclients` says otherwise: what is over that breaks first.",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replicas", default=",".join(map(str, REPLICAS)))
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--rest", type=float, default=15.0, help="seconds without a change, for each number")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="that the replicas share"
    )
    parser.add_argument("--dry", action="store_true", help="the page stays as it is")
    arguments = parser.parse_args()
    numbers = [int(number) for number in arguments.replicas.split(",")]

    def run() -> Section:
        if not 0 < arguments.changes < REVISIONS - 1:
            raise BenchError(f"--changes {arguments.changes}: from 1 to {REVISIONS - 2}")
        _reserve_files(max(numbers))
        return section(
            [measure(number, arguments.changes, arguments.rest, arguments.processes) for number in numbers]
        )

    return run_section(run, dry=arguments.dry or tuple(numbers) != REPLICAS)


if __name__ == "__main__":
    sys.exit(main())
