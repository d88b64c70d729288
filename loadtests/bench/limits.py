"""The gateway beside the machine's limits: nginx, a bare uvicorn and a bare protocol, each with a constant.

    make bench
    python -m loadtests.bench.limits [--slices 9] [--seconds 1] [--concurrency 1,16,64] [--only nginx] [--dry]

Writes its tables and a plot into docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from loadtests.bench import servers
from loadtests.bench.harness import Harness, Measured, Subject, add_options, chosen, harness
from loadtests.bench.machine import facts
from loadtests.bench.page import Section, disturbance, figure, run_section, table, with_noise
from loadtests.bench.protocols import CONSTANT, OIP_JSON
from loadtests.bench.rows import all_slices, measured_rows, rate, rate_plot
from loadtests.bench.scaling import two_workers
from loadtests.bench.slices import alternate, ratio, spread
from loadtests.bench.workloads import Workload

OURS = Subject(label="Turnout", starter=servers.turnout, protocol=OIP_JSON)
NGINX = Subject(label="nginx, a constant", starter=servers.nginx, protocol=CONSTANT)
UVICORN = Subject(label="uvicorn, a constant", starter=servers.uvicorn, protocol=CONSTANT)
BARE = Subject(
    label="asyncio.Protocol + httptools, a constant", starter=servers.bare_protocol, protocol=CONSTANT
)
SUBJECTS = (OURS, NGINX, BARE, UVICORN)
PACED_SECONDS = 2


def measure(bench: Harness, only: str) -> Section:
    tiny = bench.workload("tiny")
    at_tiny = bench.compare(chosen(SUBJECTS, only), tiny)
    at_medium = bench.compare([OURS], bench.workload("medium"))
    most = max(rate(at_tiny[0], at).value for at in at_tiny[0].slices)
    parts = [
        f"{facts()}. {disturbance(all_slices([*at_tiny, *at_medium]))}",
        "![Requests a second, tiny model](performance/limits.svg)",
        table(*measured_rows([*at_tiny, *at_medium])),
        *_ratios(at_tiny),
        _half_of_peak(bench, tiny, most / 2, only),
        two_workers(bench, tiny),
    ]
    return Section(name="limits", text="\n\n".join(parts), plot=rate_plot(at_tiny))


def _ratios(measured: Sequence[Measured]) -> list[str]:
    """Ours against each of the others, round by round."""
    ours, *others = measured
    fewest, most = min(ours.slices), max(ours.slices)
    rows = []
    for other in others:
        requests = ratio(ours.slices[most], other.slices[most])
        p50 = ratio(ours.slices[fewest], other.slices[fewest], lambda one: one.p50_us)
        rows.append([other.subject.label, with_noise(requests), with_noise(p50)])
    head = ["Turnout over …, tiny model", f"requests a second, c={most}", f"p50, c={fewest}"]
    return [table(head, rows)] if rows else []


def _half_of_peak(bench: Harness, workload: Workload, per_s: float, only: str) -> str:
    subjects = chosen([OURS, NGINX], only)
    with bench.targets(subjects, workload) as targets:
        print(f"{workload.name}, {per_s:.0f} a second: half of the peak", flush=True)
        taken = alternate(
            targets, bench.plan.rounds, lambda target: target.paced(per_s, PACED_SECONDS, bench.cores)
        )
    rows = [
        [
            target.subject.label,
            figure(spread([one.per_s for one in slices]).value),
            figure(spread([one.p50_us for one in slices]).value),
            with_noise(spread([one.p99_us for one in slices])),
            figure(max(one.p99_us for one in slices)),
        ]
        for target, slices in taken.items()
    ]
    head = [
        "at half of the peak, open load",
        "requests a second",
        "p50, µs",
        "p99, µs",
        "worst slice's p99, µs",
    ]
    return table(head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_options(parser, rounds=9)
    arguments = parser.parse_args()

    def section() -> Section:
        with harness(arguments) as bench:
            return measure(bench, arguments.only)

    return run_section(section, dry=arguments.dry)


if __name__ == "__main__":
    sys.exit(main())
