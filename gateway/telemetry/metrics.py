"""The metrics, rendered from integers at each scrape: nothing of Prometheus is on the way of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gateway.telemetry import observations as obs
from gateway.telemetry.observations import Counts, Labels

LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
FLIP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_LABELS = ("route", "variant", "version")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the supervisor knows at the moment of a scrape, apart from the observations."""

    epoch: int
    rev: int
    control_plane_age_s: float
    degraded: bool
    shares: Mapping[Labels, float]
    """(route, variant, version) → the share that it gets in fact, 0 to 1."""
    rollback_ready: Mapping[str, bool]
    denies: int
    workers_ready: int
    workers_total: int
    worker_restarts: int
    cache_bytes: int
    fetched_bytes: int


class Flips:
    """Times from this replica's learning of a change to its last worker's swap."""

    def __init__(self) -> None:
        self.counts = [0] * (len(FLIP_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        index = next((i for i, bound in enumerate(FLIP_BOUNDS_S) if seconds <= bound), len(FLIP_BOUNDS_S))
        self.counts[index] += 1
        self.sum_s += seconds


@dataclass(kw_only=True, eq=False)
class TurnoutCollector(Collector):
    """Collects at each scrape; register it with a registry of its own."""

    totals: Callable[[], Mapping[Labels, Counts]]
    standing: Callable[[], Standing]
    flips: Flips = field(default_factory=Flips)

    def collect(self) -> Iterable[Metric]:
        totals = self.totals()
        yield _requests(totals)
        yield from _concurrency(totals)
        yield from _histograms(totals)
        yield from _standing(self.standing())
        flips = HistogramMetricFamily(
            "turnout_flip_seconds", "From a change's commit to the last worker's swap, by the store's clock."
        )
        flips.add_metric([], _cumulative(zip(FLIP_BOUNDS_S, self.flips.counts, strict=False), self.flips.counts[-1]),
                         sum_value=self.flips.sum_s)  # fmt: skip
        yield flips


def metrics_registry(collector: TurnoutCollector) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


def _requests(totals: Mapping[Labels, Counts]) -> Metric:
    family = CounterMetricFamily(
        "turnout_requests", "Requests answered on the data plane, by the version that answered.",
        labels=[*_LABELS, "code"],
    )  # fmt: skip
    for labels, counts in totals.items():
        for code, count in obs.requests_by_code(counts).items():
            family.add_metric([*labels, str(code) if code else "other"], count)
    return family


def _concurrency(totals: Mapping[Labels, Counts]) -> Iterator[Metric]:
    rejected = CounterMetricFamily(
        "turnout_requests_rejected", "Requests that the version's limit or its full queue refused (503).",
        labels=_LABELS,
    )  # fmt: skip
    in_flight = GaugeMetricFamily(
        "turnout_requests_in_flight", "Requests between their arrival and their answer.", labels=_LABELS
    )
    limit = GaugeMetricFamily(
        "turnout_concurrency_limit",
        "Requests that a version may have in flight now; all variants that are it share it.",
        labels=_LABELS,
    )
    for labels, counts in totals.items():
        if not labels.version:
            continue
        rejected.add_metric(list(labels), int(counts[obs.REJECTED]))
        in_flight.add_metric(list(labels), int(counts[obs.IN_FLIGHT]))
        if counts[obs.LIMIT]:
            limit.add_metric(list(labels), int(counts[obs.LIMIT]))
    yield from (rejected, in_flight, limit)


def _histograms(totals: Mapping[Labels, Counts]) -> Iterator[Metric]:
    latency = HistogramMetricFamily(
        "turnout_request_duration_seconds",
        "From a request's arrival to its answer, in the worker.",
        labels=_LABELS,
    )
    engine = HistogramMetricFamily(
        "turnout_engine_duration_seconds", "One run of the engine, whatever its batch size.", labels=_LABELS
    )
    batch = HistogramMetricFamily("turnout_batch_size", "Rows in one run of the engine.", labels=_LABELS)
    for labels, counts in totals.items():
        buckets = _rebucketed(counts[obs.LATENCY : obs.LATENCY + obs.BUCKETS])
        latency.add_metric(list(labels), buckets, sum_value=int(counts[obs.LATENCY_NS]) / 1e9)
        if labels.version:
            buckets = _rebucketed(counts[obs.ENGINE : obs.ENGINE + obs.BUCKETS])
            engine.add_metric(list(labels), buckets, sum_value=int(counts[obs.ENGINE_NS]) / 1e9)
            sizes = [int(count) for count in counts[obs.BATCHES : obs.BATCHES + obs.BATCH_BUCKETS]]
            bounds = [float(1 << power) for power in range(obs.BATCH_BUCKETS - 1)]
            batch.add_metric(
                list(labels),
                _cumulative(zip(bounds, sizes, strict=False), sizes[-1]),
                sum_value=int(counts[obs.ROWS]),
            )
    yield from (latency, engine, batch)


_EDGES = np.searchsorted(obs.bucket_bounds_s(), LATENCY_BOUNDS_S, side="right")


def _rebucketed(fine: Counts) -> list[tuple[str, float]]:
    """Prometheus' few buckets out of our many. An edge between two of ours counts the lower one."""
    running = np.concatenate(([0], np.cumsum(fine)))
    buckets = [
        (str(bound), float(running[edge])) for bound, edge in zip(LATENCY_BOUNDS_S, _EDGES, strict=True)
    ]
    return [*buckets, ("+Inf", float(running[-1]))]


def _cumulative(pairs: Iterable[tuple[float, int]], beyond: int) -> list[tuple[str, float]]:
    running = 0
    buckets = []
    for bound, count in pairs:
        running += count
        buckets.append((str(bound), float(running)))
    return [*buckets, ("+Inf", float(running + beyond))]


def _standing(now: Standing) -> Iterator[Metric]:
    weight = GaugeMetricFamily(
        "turnout_route_weight", "Share of a route's traffic that a version gets, denies applied; 0 to 1.",
        labels=_LABELS,
    )  # fmt: skip
    for labels, share in now.shares.items():
        weight.add_metric(list(labels), share)
    yield weight
    ready = GaugeMetricFamily(
        "turnout_rollback_ready", "Whether a rollback of the route is a pointer swap to a loaded version.",
        labels=["route"],
    )  # fmt: skip
    for route, is_ready in now.rollback_ready.items():
        ready.add_metric([route], float(is_ready))
    yield ready
    revision = GaugeMetricFamily(
        "turnout_state_revision", "Revision in force on this replica.", labels=["epoch"]
    )
    revision.add_metric([str(now.epoch)], now.rev)
    yield revision
    restarts = CounterMetricFamily("turnout_worker_restarts", "Workers that died and were replaced.")
    restarts.add_metric([], now.worker_restarts)
    yield restarts
    fetched = CounterMetricFamily("turnout_weights_fetch_bytes", "Bytes fetched from registries.")
    fetched.add_metric([], now.fetched_bytes)
    yield fetched
    workers = GaugeMetricFamily("turnout_workers", "Worker processes of this replica.", labels=["state"])
    workers.add_metric(["ready"], now.workers_ready)
    workers.add_metric(["wanted"], now.workers_total)
    yield workers
    for name, text, value in (
        ("turnout_control_plane_age_seconds", "Since the store was heard of last.", now.control_plane_age_s),
        (
            "turnout_degraded",
            "1 while this replica may be behind the store, or its disk fails.",
            float(now.degraded),
        ),
        ("turnout_denies", "Versions that are denied, over all routes.", now.denies),
        ("turnout_weights_cache_bytes", "Bytes of verified versions in the weights cache.", now.cache_bytes),
    ):
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric([], value)
        yield gauge
