"""Measured subjects as the rows of a table: the same columns for the limits and for the peers."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.bench.harness import Measured
from loadtests.bench.page import figure, with_noise
from loadtests.bench.plot import Bar, bars
from loadtests.bench.slices import Slice, Spread, spread


def rate(measured: Measured, at: int) -> Spread:
    """Requests a second at this concurrency."""
    return spread([one.per_s for one in measured.slices[at]])


def all_slices(measured: Sequence[Measured]) -> list[Slice]:
    return [one for each in measured for slices in each.slices.values() for one in slices]


def measured_rows(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: requests a second at each concurrency, latencies at the ends, CPU time, memory."""
    concurrency = sorted(measured[0].slices)
    fewest, most = concurrency[0], concurrency[-1]
    head = ["", *(f"requests/s, c={at}" for at in concurrency)]
    head += [f"p50, c={fewest}, µs", f"p99, c={most}, µs", f"CPU µs a request, c={most}", "core busy", "MiB"]
    return head, [_row(each, concurrency) for each in measured]


def _row(measured: Measured, concurrency: Sequence[int]) -> list[str]:
    first, last = measured.slices[concurrency[0]], measured.slices[concurrency[-1]]
    return [
        f"{measured.subject.label}; {measured.workload}",
        *(with_noise(rate(measured, at)) for at in concurrency),
        figure(spread([one.p50_us for one in first]).value),
        figure(spread([one.p99_us for one in last]).value),
        figure(spread([one.cpu_us for one in last]).value),
        f"{100 * spread([one.busy for one in last]).value:.0f} %",
        figure(measured.memory_bytes / 2**20),
    ]


def rate_plot(measured: Sequence[Measured]) -> str:
    """A bar for each, the fastest first; the first of `measured` is ours."""
    at = max(measured[0].slices)
    rows = [
        Bar(label=each.subject.label, measured=rate(each, at), ours=each is measured[0])
        for each in sorted(measured, key=lambda each: -rate(each, at).value)
    ]
    return bars(f"Requests a second on one core, {measured[0].workload} model, {at} connections", rows)
