"""Triton's statistics out of our observations. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import gateway.telemetry.observations as obs
from gateway.telemetry.observations import Counts, Labels, merge
from gateway.wire.oip_documents import BatchStatistics, Document, Duration, ModelStatistics, statistics


def statistics_document(
    totals: Mapping[Labels, Counts], route: str | None = None, version: str | None = None
) -> Document:
    """The counts of all versions, of one route's, or of one version; variants of a version are added up."""
    merged: dict[tuple[str, str], Counts] = {}
    for labels, counts in totals.items():
        key = (labels.route, labels.version)
        if labels.version and route in (None, labels.route) and version in (None, labels.version):
            merged[key] = merge(merged.get(key), counts)
    return statistics(_model(name, number, counts) for (name, number), counts in merged.items())


def _model(name: str, version: str, counts: Counts) -> ModelStatistics:
    codes = obs.requests_by_code(counts)
    succeeded = codes.get(200, 0)
    failed = sum(codes.values()) - succeeded
    failed_ns = int(counts[obs.FAILED_NS])
    runs = int(counts[obs.ENGINE : obs.ENGINE + obs.BUCKETS].sum())
    infer = Duration(count=runs, ns=int(counts[obs.ENGINE_NS]))
    # What goes in and out of a run is a part of it here; perf_analyzer ends where the three counts differ.
    none = Duration(count=runs)
    sizes = counts[obs.BATCHES : obs.BATCHES + obs.BATCH_BUCKETS]
    return ModelStatistics(
        name=name,
        version=version,
        last_inference_ms=int(counts[obs.LAST_MS]),
        inference_count=int(counts[obs.ROWS]),
        execution_count=runs,
        success=Duration(count=succeeded, ns=int(counts[obs.LATENCY_NS]) - failed_ns),
        fail=Duration(count=failed, ns=failed_ns),
        queue=Duration(count=succeeded, ns=int(counts[obs.QUEUE_NS])),
        compute_input=none,
        compute_infer=infer,
        compute_output=none,
        # Sizes are counted in powers of two; the time of a size is its share of all runs.
        batches=[
            BatchStatistics(
                batch_size=1 << power,
                compute_input=Duration(count=int(count)),
                compute_output=Duration(count=int(count)),
                compute_infer=Duration(count=int(count), ns=infer.ns * int(count) // max(runs, 1)),
            )
            for power, count in enumerate(sizes)
            if count
        ],
    )
