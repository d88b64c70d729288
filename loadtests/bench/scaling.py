"""One worker against two: what a request costs in CPU time, since two cores cannot show requests a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from loadtests.bench import servers
from loadtests.bench.harness import Harness, Subject, Target
from loadtests.bench.machine import Cores
from loadtests.bench.page import table, with_noise
from loadtests.bench.process import pin
from loadtests.bench.protocols import OIP_JSON
from loadtests.bench.servers import Running
from loadtests.bench.slices import Slice, alternate, ratio, spread
from loadtests.bench.workloads import Workload

CONNECTIONS = 64
"""For each worker, so that each has as many requests a tick to batch as one alone would."""


@contextmanager
def on_both_cores(directory: Path, workload: Workload, cores: Cores) -> Iterator[Running]:
    """Two workers, each with a core: the second shares its with wrk."""
    with servers.turnout(directory, workload, cores, workers=2) as running:
        pin(running.serving()[1:], cores.load)
        yield running


ONE = Subject(label="one worker", starter=servers.turnout, protocol=OIP_JSON)
TOGETHER = Subject(
    label="two workers, both on the server's core",
    starter=partial(servers.turnout, workers=2),
    protocol=OIP_JSON,
)
APART = Subject(label="two workers, the second on wrk's core", starter=on_both_cores, protocol=OIP_JSON)


def two_workers(bench: Harness, workload: Workload) -> str:
    """A table of CPU µs a request, and of twice one worker's over it: 2 is perfect scaling."""

    def measure(target: Target) -> Slice:
        workers = len(target.running.serving())
        return target.closed(CONNECTIONS * workers, bench.plan.seconds, bench.cores)

    with bench.targets([ONE, TOGETHER, APART], workload) as targets:
        print(f"{workload.name}: one worker and two", flush=True)
        for target in targets:
            measure(target)  # warms it up
        taken = alternate(targets, bench.plan.rounds, measure)
    one = taken[targets[0]]
    rows = []
    for target, slices in taken.items():
        cpu = spread([each.cpu_us for each in slices])
        speedup = ratio(one, slices, lambda each: each.cpu_us)
        twice = "" if slices is one else f"{2 * speedup.value:.2f} ± {100 * speedup.noise:.0f} %"
        rows.append([target.subject.label, with_noise(cpu), twice])
    return table(
        ["tiny model, 64 connections a worker", "CPU µs a request", "times one worker, by CPU time"], rows
    )
