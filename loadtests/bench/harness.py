"""Starts servers, loads each of them in its turn, and keeps what was seen."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtests.bench import paced
from loadtests.bench.machine import BenchError, Cores, require, two_cores
from loadtests.bench.process import core_busy_ns, cpu_ns
from loadtests.bench.protocols import KEYS, Protocol, raw_requests
from loadtests.bench.servers import Running, Starter, check
from loadtests.bench.slices import Slice, alternate
from loadtests.bench.workloads import MAKERS, Workload
from loadtests.bench.wrk import Load, Script

IDLE_SHARE = 0.05
"""Of a core: below it a server has done with the requests that the last slice left behind."""
_LOOK_S = 0.05
_SETTLE_S = 10.0
_LARGE_BYTES = 100_000
_LONGER = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A server asked in one way. Subjects with the same starter share a process."""

    label: str
    starter: Starter
    protocol: Protocol


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: int
    concurrency: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One subject with one model: its slices by concurrency, and its memory after them."""

    subject: Subject
    workload: str
    slices: dict[int, list[Slice]]
    memory_bytes: int


class Target:
    """A subject whose server runs, with the requests made for it."""

    def __init__(self, subject: Subject, running: Running, workload: Workload, scratch: Path) -> None:
        self.subject = subject
        self.running = running
        ask = subject.protocol.ask(workload.name, workload.row)
        keys = KEYS if len(ask.body) < _LARGE_BYTES else 4
        self.requests = raw_requests(ask, running.address, keys)
        self.script = Script(scratch, "load", self.requests)

    def closed(self, connections: int, seconds: int, cores: Cores) -> Slice:
        """So many connections, each asking as soon as it has its answer.

        A slice that is too short for one answer is taken again, twice as long. Raises `BenchError` at last.
        """
        address = self.running.address
        for longer in _LONGER:
            run = partial(
                self.script.run,
                address,
                connections=connections,
                seconds=seconds * longer,
                core=cores.load,
            )
            taken = self._slice(cores, run)
            if taken is not None:
                return taken
        raise BenchError(
            f"{self.subject.label} answered nothing in {seconds * longer} s on {connections} connections"
        )

    def paced(self, per_s: float, seconds: int, cores: Cores) -> Slice:
        """So many requests a second, whatever the answers do."""
        address = self.running.address
        taken = self._slice(
            cores,
            lambda: paced.run(address, self.requests, per_s=per_s, seconds=seconds, core=cores.load),
        )
        assert taken is not None, "the paced load waits for every answer"
        return taken

    def _slice(self, cores: Cores, run: Callable[[], Load]) -> Slice | None:
        """None where there was no answer."""
        started, core_before = time.monotonic_ns(), core_busy_ns(cores.server)
        before = cpu_ns(self.running.serving())
        load = run()
        took_us = (cpu_ns(self.running.serving()) - before) / 1000
        core_us = (core_busy_ns(cores.server) - core_before) / 1000
        passed_us = (time.monotonic_ns() - started) / 1000
        self._wait_until_idle()
        if not load.requests:
            return None
        return Slice(
            per_s=load.per_s,
            p50_us=load.p50_us,
            p99_us=load.p99_us,
            cpu_us=took_us / load.requests,
            busy=took_us / load.duration_us,
            others=max(0.0, (core_us - took_us) / passed_us),
        )

    def _wait_until_idle(self) -> None:
        """wrk leaves at the end of its time; a slow server goes on for seconds, on the core of the next."""
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            before = cpu_ns(self.running.serving())
            time.sleep(_LOOK_S)
            if cpu_ns(self.running.serving()) - before < _LOOK_S * 1e9 * IDLE_SHARE:
                return


class Harness:
    """Everything that the benches share; says on the screen what it does."""

    def __init__(self, plan: Plan, cores: Cores, scratch: Path) -> None:
        self.plan = plan
        self.cores = cores
        self._scratch = scratch
        self._started = 0

    def workload(self, name: str) -> Workload:
        return MAKERS[name](self._scratch / "models")

    @contextmanager
    def targets(self, subjects: Sequence[Subject], workload: Workload) -> Iterator[list[Target]]:
        """The servers of these subjects, all ready, each checked to answer rightly."""
        with ExitStack() as stack:
            running: dict[Starter, Running] = {}
            targets = []
            for subject in subjects:
                if subject.starter not in running:
                    context = subject.starter(self._directory(), workload, self.cores)
                    running[subject.starter] = stack.enter_context(context)
                check(running[subject.starter], workload, subject.protocol)
                targets.append(Target(subject, running[subject.starter], workload, self._directory()))
            yield targets

    def compare(
        self, subjects: Sequence[Subject], workload: Workload, concurrency: Sequence[int] | None = None
    ) -> list[Measured]:
        """Rounds of slices at each concurrency, the servers by turns."""
        with self.targets(subjects, workload) as targets:
            return self.compare_targets(targets, workload.name, concurrency or self.plan.concurrency)

    def compare_targets(
        self, targets: Sequence[Target], workload: str, concurrency: Sequence[int]
    ) -> list[Measured]:
        for target in targets:
            target.closed(concurrency[-1], 1, self.cores)  # warms it up
        taken = {at: self._rounds(targets, workload, at) for at in concurrency}
        return [
            Measured(
                subject=target.subject,
                workload=workload,
                slices={at: slices[target] for at, slices in taken.items()},
                memory_bytes=target.running.process.memory_bytes(),
            )
            for target in targets
        ]

    def _rounds(self, targets: Sequence[Target], workload: str, at: int) -> dict[Target, list[Slice]]:
        names = ", ".join(target.subject.label for target in targets)
        print(f"{workload}, c={at}: {names}", flush=True)
        return alternate(
            targets, self.plan.rounds, lambda target: target.closed(at, self.plan.seconds, self.cores)
        )

    def _directory(self) -> Path:
        self._started += 1
        directory = self._scratch / str(self._started)
        directory.mkdir()
        return directory


def add_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """The options that every bench has."""
    parser.add_argument("--slices", type=int, default=rounds, help="of each server, at each concurrency")
    parser.add_argument("--seconds", type=int, default=1, help="of a slice")
    parser.add_argument("--concurrency", default="1,16,64", help="connections, by commas")
    parser.add_argument("--only", default="", help="servers whose name has one of these words, by commas")
    parser.add_argument("--dry", action="store_true", help="one slice of each, and the page stays as it is")


def plan_of(arguments: argparse.Namespace) -> Plan:
    concurrency = tuple(int(text) for text in arguments.concurrency.split(","))
    rounds = 1 if arguments.dry else arguments.slices
    return Plan(rounds=rounds, seconds=arguments.seconds, concurrency=concurrency)


def chosen(subjects: Sequence[Subject], only: str) -> list[Subject]:
    """The first, which is ours, always; of the others those that `only` names, or all."""
    words = [word.lower() for word in only.split(",") if word]
    ours, *others = subjects
    wanted = [
        subject for subject in others if not words or any(word in subject.label.lower() for word in words)
    ]
    return [ours, *wanted]


@contextmanager
def harness(arguments: argparse.Namespace) -> Iterator[Harness]:
    """Raises `BenchError` where this machine cannot run a bench."""
    require("wrk")
    cores = two_cores()
    with TemporaryDirectory(prefix="turnout-bench-") as scratch:
        yield Harness(plan_of(arguments), cores, Path(scratch))
