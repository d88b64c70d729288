"""How far limited versions are exposed, as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from gateway.telemetry.observations import Labels

_LABELS = ("route", "variant", "version")


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """One variant with limits. The kinds are requests, errors and keys, each only where it is limited."""

    used: Mapping[str, int]
    """Over all replicas, since the version was last allowed, as far as this replica knows."""
    limits: Mapping[str, int]
    lease_s: float | None
    """What is left of its lease, None where it has none."""


def exposure_metrics(exposed: Mapping[Labels, Exposed]) -> Iterator[Metric]:
    used = GaugeMetricFamily(
        "turnout_exposure",
        "How far a limited version was exposed, over all replicas, since it was last allowed.",
        labels=[*_LABELS, "kind"],
    )
    limit = GaugeMetricFamily(
        "turnout_exposure_limit", "Where the version is denied.", labels=[*_LABELS, "kind"]
    )
    lease = GaugeMetricFamily(
        "turnout_lease_seconds", "What is left of a version's lease, if nobody renews it.", labels=_LABELS
    )
    for labels, each in exposed.items():
        for kind, most in each.limits.items():
            used.add_metric([*labels, kind], each.used[kind])
            limit.add_metric([*labels, kind], most)
        if each.lease_s is not None:
            lease.add_metric(list(labels), each.lease_s)
    yield from (used, limit, lease)
