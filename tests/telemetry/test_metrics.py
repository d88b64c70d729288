from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from gateway.telemetry import observations as obs
from gateway.telemetry.exposure import Exposed
from gateway.telemetry.metrics import (
    FLIP_BOUNDS_S,
    LATENCY_BOUNDS_S,
    Flips,
    Standing,
    TurnoutCollector,
    metrics_registry,
)
from gateway.telemetry.observations import UNKNOWN, Counts, Labels, ObservationWriter, read_blocks

STABLE = Labels("digits", "stable", "1")
REFUSED = Labels("digits", "", "")
ODD = Labels("digits", "pinned", 'a "b"\\c\nd ü')
STANDING = Standing(
    epoch=2,
    rev=17,
    control_plane_age_s=1.5,
    degraded=True,
    shares={STABLE: 0.9, Labels("digits", "canary", "2"): 0.1},
    rollback_ready={"digits": True, "other": False},
    denies=3,
    workers_ready=1,
    workers_total=2,
    worker_restarts=4,
    cache_bytes=10**12,
    fetched_bytes=5,
    troubles={"fork": True, "emptied": False},
    exposed={
        Labels("digits", "canary", "2"): Exposed(
            used={"requests": 40, "errors": 0}, limits={"requests": 100, "errors": 5}, lease_s=9.5
        ),
        Labels("digits", "b", "3"): Exposed(used={"keys": 1}, limits={"keys": 2}, lease_s=None),
    },
)
PLAIN = "text/plain"
OPEN = "application/openmetrics-text; version=1.0.0"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def recorded(latencies_ns: Mapping[Labels, list[int]]) -> dict[Labels, Counts]:
    memory = memoryview(mmap.mmap(-1, obs.SIZE_BYTES))
    writer = ObservationWriter(memory)
    for labels, latencies in latencies_ns.items():
        block = writer.block(labels)
        for latency in latencies:
            block.answered(200, latency)
            if labels.version:
                block.ran(rows=3, queued_ns=0, engine_ns=latency // 2, now_ms=1)
    return {labels: counts for labels, _, counts in read_blocks(memory)}


def rendered(totals: Mapping[Labels, Counts], accept: str, flips: Flips | None = None) -> str:
    collector = TurnoutCollector(totals=lambda: totals, standing=lambda: STANDING, flips=flips or Flips())
    encode, _ = choose_encoder(accept)
    return encode(metrics_registry(collector)).decode()


def families(text: str, accept: str) -> Iterator[Metric]:
    if accept == OPEN:
        assert text.endswith("# EOF\n")
        return iter(openmetrics_parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
    return iter(parser.text_string_to_metric_families(text))


def samples(totals: Mapping[Labels, Counts], accept: str = PLAIN, flips: Flips | None = None) -> Samples:
    text = rendered(totals, accept, flips)
    found: Samples = {}
    for family in families(text, accept):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, "a series twice: Prometheus refuses the whole scrape"
            found[key] = sample.value
    return found


def of(read: Samples, name: str, **labels: str) -> float:
    return read[name, frozenset(labels.items())]


def labelled(labels: Labels, **more: str) -> dict[str, str]:
    return {**labels._asdict(), **more}


TOTALS = recorded(
    {STABLE: [900_000, 2_000_000], REFUSED: [1000], ODD: [5_000_000], Labels(UNKNOWN, "", ""): [7]}
)


@pytest.mark.parametrize("accept", [PLAIN, OPEN])
def test_both_formats_are_parsed_by_prometheus_own_parser(accept: str) -> None:
    read = samples(TOTALS, accept)
    assert of(read, "turnout_requests_total", **labelled(STABLE, code="200")) == 2
    assert of(read, "turnout_requests_total", **labelled(ODD, code="200")) == 1
    assert of(read, "turnout_requests_total", route=UNKNOWN, variant="", version="", code="200") == 1
    assert of(read, "turnout_request_duration_seconds_sum", **labelled(STABLE)) == pytest.approx(0.0029)
    assert of(read, "turnout_request_duration_seconds_count", **labelled(STABLE)) == 2
    assert of(read, "turnout_engine_duration_seconds_count", **labelled(STABLE)) == 2
    assert of(read, "turnout_engine_duration_seconds_sum", **labelled(STABLE)) == pytest.approx(0.00145)
    assert of(read, "turnout_batch_size_sum", **labelled(STABLE)) == 6
    assert of(read, "turnout_batch_size_bucket", **labelled(STABLE, le="2.0")) == 0
    assert of(read, "turnout_batch_size_bucket", **labelled(STABLE, le="4.0")) == 2


@pytest.mark.parametrize("accept", [PLAIN, OPEN])
def test_the_standing(accept: str) -> None:
    read = samples({}, accept)
    assert of(read, "turnout_state_revision", epoch="2") == 17
    assert of(read, "turnout_control_plane_age_seconds") == 1.5
    assert of(read, "turnout_degraded") == 1
    assert of(read, "turnout_control_plane_trouble", kind="fork") == 1
    assert of(read, "turnout_control_plane_trouble", kind="emptied") == 0
    assert of(read, "turnout_denies") == 3
    assert of(read, "turnout_route_weight", **labelled(STABLE)) == 0.9
    assert of(read, "turnout_rollback_ready", route="digits") == 1
    assert of(read, "turnout_rollback_ready", route="other") == 0
    assert of(read, "turnout_workers", state="ready") == 1
    assert of(read, "turnout_workers", state="wanted") == 2
    assert of(read, "turnout_worker_restarts_total") == 4
    assert of(read, "turnout_weights_cache_bytes") == 10**12
    assert of(read, "turnout_weights_fetch_bytes_total") == 5
    canary, other = labelled(Labels("digits", "canary", "2")), labelled(Labels("digits", "b", "3"))
    assert of(read, "turnout_exposure", **canary, kind="requests") == 40
    assert of(read, "turnout_exposure", **canary, kind="errors") == 0
    assert of(read, "turnout_exposure_limit", **canary, kind="errors") == 5
    assert of(read, "turnout_exposure_limit", **other, kind="keys") == 2
    assert of(read, "turnout_lease_seconds", **canary) == 9.5
    assert sum(name == "turnout_lease_seconds" for name, _ in read) == 1


def test_the_names_are_those_that_dashboards_and_alerts_use() -> None:
    named = {(family.name, family.type) for family in families(rendered(TOTALS, OPEN), OPEN)}
    assert named == {
        ("turnout_requests", "counter"),
        ("turnout_requests_rejected", "counter"),
        ("turnout_requests_in_flight", "gauge"),
        ("turnout_concurrency_limit", "gauge"),
        ("turnout_request_duration_seconds", "histogram"),
        ("turnout_engine_duration_seconds", "histogram"),
        ("turnout_batch_size", "histogram"),
        ("turnout_route_weight", "gauge"),
        ("turnout_exposure", "gauge"),
        ("turnout_exposure_limit", "gauge"),
        ("turnout_lease_seconds", "gauge"),
        ("turnout_rollback_ready", "gauge"),
        ("turnout_state_revision", "gauge"),
        ("turnout_control_plane_age_seconds", "gauge"),
        ("turnout_degraded", "gauge"),
        ("turnout_control_plane_trouble", "gauge"),
        ("turnout_denies", "gauge"),
        ("turnout_workers", "gauge"),
        ("turnout_worker_restarts", "counter"),
        ("turnout_weights_cache_bytes", "gauge"),
        ("turnout_weights_fetch_bytes", "counter"),
        ("turnout_flip_seconds", "histogram"),
    }
    assert all(family.documentation for family in families(rendered(TOTALS, OPEN), OPEN))


def test_what_is_in_flight_and_the_limit_on_it() -> None:
    memory = memoryview(mmap.mmap(-1, obs.SIZE_BYTES))
    writer = ObservationWriter(memory)
    block = writer.block(STABLE)
    block.limited(63)
    block.in_flight(7)
    block.rejected()
    writer.block(ODD).in_flight(1)
    read = samples({labels: counts for labels, _, counts in read_blocks(memory)})
    assert of(read, "turnout_concurrency_limit", **labelled(STABLE)) == 63
    assert of(read, "turnout_requests_in_flight", **labelled(STABLE)) == 7
    assert of(read, "turnout_requests_rejected_total", **labelled(STABLE)) == 1
    unlimited = "turnout_concurrency_limit", frozenset(labelled(ODD).items())
    assert unlimited not in read, "a version that never ran has no limit yet"


def test_requests_that_reached_no_version_have_no_engine_series() -> None:
    read = samples(TOTALS)
    assert ("turnout_engine_duration_seconds_count", frozenset(labelled(REFUSED).items())) not in read
    assert of(read, "turnout_request_duration_seconds_count", **labelled(REFUSED)) == 1


def test_a_code_without_a_slot_is_other() -> None:
    memory = memoryview(mmap.mmap(-1, obs.SIZE_BYTES))
    ObservationWriter(memory).block(STABLE).answered(418, 1)
    totals = {labels: counts for labels, _, counts in read_blocks(memory)}
    assert of(samples(totals), "turnout_requests_total", **labelled(STABLE, code="other")) == 1


def buckets(read: Samples, name: str, **labels: str) -> list[tuple[float, float]]:
    found = []
    for (sample, pairs), value in read.items():
        given_labels = dict(pairs)
        bound = given_labels.pop("le", None)
        if sample == f"{name}_bucket" and bound is not None and given_labels == labels:
            found.append((float(bound), value))
    return sorted(found)


@given(st.lists(st.integers(0, 100_000_000_000), min_size=1, max_size=30))
def test_a_histogram_never_falls_and_never_counts_too_early(latencies: list[int]) -> None:
    read = samples(recorded({STABLE: latencies}))
    for name in ("turnout_request_duration_seconds", "turnout_engine_duration_seconds", "turnout_batch_size"):
        found = buckets(read, name, **labelled(STABLE))
        counts = [count for _, count in found]
        assert counts == sorted(counts)
        assert found[-1][0] == float("inf") and counts[-1] == len(latencies)
        assert of(read, f"{name}_count", **labelled(STABLE)) == len(latencies)
    found = buckets(read, "turnout_request_duration_seconds", **labelled(STABLE))
    assert [bound for bound, _ in found[:-1]] == list(LATENCY_BOUNDS_S)
    for bound, count in found[:-1]:
        # Ours are 2 % wide: whoever is that near to an edge may count as slower, never as faster.
        surely = sum(latency / 1e9 <= bound / 1.021 for latency in latencies)
        possibly = sum(latency / 1e9 <= bound * 1.000001 for latency in latencies)
        assert surely <= count <= possibly


def test_flips() -> None:
    flips = Flips()
    for seconds in (0.0005, 0.001, 0.002, 4.0, 6.0, 100.0):
        flips.observe(seconds)
    read = samples({}, OPEN, flips)
    found = buckets(read, "turnout_flip_seconds")
    assert [bound for bound, _ in found] == [*FLIP_BOUNDS_S, float("inf")]
    assert dict(found)[0.001] == 2
    assert dict(found)[0.0025] == 3
    assert dict(found)[5.0] == 4
    assert dict(found)[float("inf")] == 6
    assert of(read, "turnout_flip_seconds_sum") == pytest.approx(110.0035)
