"""The aggregation of a load test, without a load test.

Nothing here imports locust: importing it patches sockets and threads for the whole process.
"""

from __future__ import annotations

import json

import pytest

from loadtests.comparison import Comparison, Outcome, Row, Served
from loadtests.report import as_json, as_table

STABLE = Served("stable", "1", "1.7")
CANARY = Served("canary", "2", "1.7")


def filled() -> Comparison:
    comparison = Comparison()
    for number in range(1, 91):
        right = Outcome.RIGHT if number <= 81 else Outcome.WRONG
        comparison.record(STABLE, right, latency_ms=number)
    for _ in range(4):
        comparison.record(CANARY, Outcome.RIGHT, latency_ms=0.5)
    for _ in range(5):
        comparison.record(CANARY._replace(revision="1.8"), Outcome.ERROR, latency_ms=10_000)
    comparison.record(Served(), Outcome.ERROR, latency_ms=3)
    return comparison


def test_each_version_has_its_share_errors_accuracy_and_latency() -> None:
    stable, canary, nobody = filled().rows()

    assert stable == Row(
        version="1",
        variant="stable",
        requests=90,
        share_percent=90.0,
        errors=0,
        accuracy_percent=90.0,
        p50_ms=45.0,
        p95_ms=86.0,
        p99_ms=90.0,
        revisions=("1.7",),
    )
    # Accuracy and latency are over the answers: the errors took ten seconds each.
    assert (canary.share_percent, canary.errors, canary.accuracy_percent) == (9.0, 5, 100.0)
    assert (canary.p50_ms, canary.p99_ms, canary.revisions) == (0.5, 0.5, ("1.7", "1.8"))
    assert (nobody.version, nobody.variant, nobody.requests, nobody.errors) == ("-", "-", 1, 1)
    assert (nobody.accuracy_percent, nobody.p50_ms, nobody.revisions) == (None, None, ())


def test_one_variant_with_two_versions_has_two_rows() -> None:
    comparison = Comparison()
    comparison.record(STABLE, Outcome.RIGHT, latency_ms=1)
    comparison.record(STABLE._replace(version="3"), Outcome.WRONG, latency_ms=1)

    assert [(row.variant, row.version, row.accuracy_percent) for row in comparison.rows()] == [
        ("stable", "1", 100.0),
        ("stable", "3", 0.0),
    ]


@pytest.mark.parametrize(
    ("latency_ms", "kept_ms"),
    [
        (0.0, 0.001),  # below the clock's grain, and still a latency
        (0.1234, 0.123),
        (1.2345, 1.23),
        (99.96, 100.0),
        (12345.6, 12300.0),
    ],
)
def test_latencies_keep_three_digits(latency_ms: float, kept_ms: float) -> None:
    comparison = Comparison()
    comparison.record(STABLE, Outcome.RIGHT, latency_ms=latency_ms)

    assert [row.p50_ms for row in comparison.rows()] == [kept_ms]


def test_what_workers_drain_adds_up_to_the_whole() -> None:
    master, worker = Comparison(), filled()
    # Through JSON: a drained report is made of what any wire format carries.
    master.merge(json.loads(json.dumps(worker.drain())))
    assert master.rows() == filled().rows()
    assert worker.rows() == []

    worker.record(STABLE, Outcome.WRONG, latency_ms=200)
    master.merge(worker.drain())
    assert (master.rows()[0].requests, master.rows()[0].p99_ms) == (91, 200.0)


def test_a_new_test_starts_from_nothing() -> None:
    comparison = filled()
    comparison.clear()

    assert comparison.rows() == []


@pytest.mark.parametrize(
    ("headers", "served", "name"),
    [
        (None, Served("-", "-", "-"), "digits (no version)"),
        ({"turnout-revision": "1.7"}, Served("-", "-", "1.7"), "digits (no version)"),
        (
            {"turnout-variant": "canary", "turnout-version": "2", "turnout-revision": "1.7"},
            CANARY,
            "digits canary (v2)",
        ),
    ],
)
def test_the_headers_say_who_answered(headers: dict[str, str] | None, served: Served, name: str) -> None:
    assert Served.from_headers(headers) == served
    assert Served.from_headers(headers).name("digits") == name


def test_the_table_is_for_people() -> None:
    assert as_table("digits", filled().rows()).splitlines() == [
        "Versions behind 'digits'",
        "version  variant  requests  share %  errors  accuracy %  p50 ms  p95 ms  p99 ms",
        "-------  -------  --------  -------  ------  ----------  ------  ------  ------",
        "1        stable         90     90.0       0        90.0   45.00   86.00   90.00",
        "2        canary          9      9.0       5       100.0    0.50    0.50    0.50",
        "-        -               1      1.0       1           -       -       -       -",
    ]


def test_the_json_is_for_machines() -> None:
    document = json.loads(as_json("digits", filled().rows()))

    assert (document["route"], document["requests"], document["errors"]) == ("digits", 100, 6)
    assert [version["version"] for version in document["versions"]] == ["1", "2", "-"]
    assert document["versions"][1]["revisions"] == ["1.7", "1.8"]
    assert document["versions"][2]["accuracy_percent"] is None
