"""The gateway beside KServe, MLServer, LitServe, BentoML and MLflow's server: same models, same load, same core.

    make bench-peers
    python -m loadtests.bench.peers [--slices 7] [--seconds 1] [--concurrency 1,16,64] [--only kserve] [--dry]

Each peer runs beside ours alone, in an environment of its own under .venvs/, so that no third server idles on
the core. Writes its tables and a plot into docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.bench import servers
from loadtests.bench.harness import Harness, Measured, Subject, add_options, chosen, harness
from loadtests.bench.machine import facts
from loadtests.bench.page import Section, disturbance, run_section, table, with_noise
from loadtests.bench.protocols import BENTOML, KSERVE_V1, LITSERVE, MLFLOW, OIP_BINARY, OIP_JSON
from loadtests.bench.rows import all_slices, measured_rows, rate_plot
from loadtests.bench.slices import Spread, ratio

IMAGE_CONCURRENCY = (1, 4)
"""JSON of an image takes tens of milliseconds: more connections would only wait."""

OURS = Subject(label="Turnout", starter=servers.turnout, protocol=OIP_JSON)
_KSERVE = servers.peer("kserve", KSERVE_V1)
_MLSERVER = servers.peer("mlserver", OIP_JSON)
KSERVE = Subject(label="KServe 0.21, v1 protocol", starter=_KSERVE, protocol=KSERVE_V1)
KSERVE_V2 = Subject(label="KServe 0.21, v2 protocol", starter=_KSERVE, protocol=OIP_JSON)
MLSERVER = Subject(label="MLServer 1.7.1", starter=_MLSERVER, protocol=OIP_JSON)
LIT = Subject(label="LitServe 0.2.19", starter=servers.peer("litserve", LITSERVE), protocol=LITSERVE)
FLOW = Subject(label="MLflow 3.17.2", starter=servers.peer("mlflow", MLFLOW), protocol=MLFLOW)
BENTO = Subject(label="BentoML 1.4.39", starter=servers.peer("bentoml", BENTOML), protocol=BENTOML)
GROUPS = ((KSERVE, KSERVE_V2), (MLSERVER,), (LIT,), (FLOW,), (BENTO,))

BINARY = Subject(label="Turnout, binary tensors", starter=servers.turnout, protocol=OIP_BINARY)
IMAGE_GROUPS = (
    (
        Subject(label="Turnout, JSON", starter=servers.turnout, protocol=OIP_JSON),
        Subject(label="KServe 0.21, v1 protocol, JSON", starter=_KSERVE, protocol=KSERVE_V1),
        Subject(label="KServe 0.21, binary tensors", starter=_KSERVE, protocol=OIP_BINARY),
    ),
    (Subject(label="MLServer 1.7.1, JSON", starter=_MLSERVER, protocol=OIP_JSON),),
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A server, and how often ours answers in the time in which it answers once, by concurrency."""

    measured: Measured
    ours: dict[int, Spread]


def measure(bench: Harness, only: str) -> Section:
    tiny = _compare_groups(bench, "tiny", OURS, GROUPS, bench.plan.concurrency, only)
    medium = _compare_groups(bench, "medium", OURS, GROUPS, bench.plan.concurrency, only)
    image = _compare_groups(bench, "image", BINARY, IMAGE_GROUPS, IMAGE_CONCURRENCY, only)
    slices = all_slices([one.measured for one in (*tiny, *medium, *image)])
    text = [
        f"{facts()}. {disturbance(slices)}",
        "![Requests a second, tiny model](performance/peers.svg)",
        *(_table(compared) for compared in (tiny, medium, image)),
    ]
    return Section(name="peers", text="\n\n".join(text), plot=rate_plot([one.measured for one in tiny]))


def _compare_groups(
    bench: Harness,
    workload: str,
    ours: Subject,
    groups: Sequence[Sequence[Subject]],
    concurrency: Sequence[int],
    only: str,
) -> list[Compared]:
    """Ours first, with the slices of all groups together."""
    model = bench.workload(workload)
    all_ours: list[Measured] = []
    others: list[Compared] = []
    for group in groups:
        subjects = chosen([ours, *group], only)
        if len(subjects) > 1:
            mine, *theirs = bench.compare(subjects, model, concurrency)
            all_ours.append(mine)
            others += [_compared(mine, their) for their in theirs]
    if not all_ours:
        all_ours = bench.compare([ours], model, concurrency)
    return [Compared(measured=_joined(all_ours), ours={}), *others]


def _compared(mine: Measured, their: Measured) -> Compared:
    return Compared(
        measured=their, ours={at: ratio(mine.slices[at], their.slices[at]) for at in their.slices}
    )


def _joined(parts: Sequence[Measured]) -> Measured:
    slices = {at: [one for part in parts for one in part.slices[at]] for at in parts[0].slices}
    memory = max(part.memory_bytes for part in parts)
    return Measured(subject=parts[0].subject, workload=parts[0].workload, slices=slices, memory_bytes=memory)


def _table(compared: Sequence[Compared]) -> str:
    head, rows = measured_rows([one.measured for one in compared])
    at = max(compared[0].measured.slices)
    ratios = [with_noise(one.ours[at]) if one.ours else "" for one in compared]
    return table(
        [*head, f"Turnout over it, c={at}"], [[*row, last] for row, last in zip(rows, ratios, strict=True)]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_options(parser, rounds=7)
    arguments = parser.parse_args()

    def section() -> Section:
        with harness(arguments) as bench:
            return measure(bench, arguments.only)

    return run_section(section, dry=arguments.dry)


if __name__ == "__main__":
    sys.exit(main())
