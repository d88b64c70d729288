"""The load test as it is run: locust in a process of its own, against a server."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import loadtests
from examples.quickstart import MODELS
from tests.loadtests.stand_in import StandIn, running

LOADTESTS = Path(*loadtests.__path__)
LOCUSTFILE = LOADTESTS / "locustfile.py"
SHAPES = LOADTESTS / "shapes.py"
TIMEOUT_S = 100
KEYS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run of locust left behind."""

    code: int
    output: str
    report: dict[str, Any]

    def version(self, variant: str) -> dict[str, Any]:
        (found,) = [each for each in self.report["versions"] if each["variant"] == variant]
        return dict(found)


def run_locust(base_url: str, folder: Path, *options: str, files: tuple[Path, ...] = (LOCUSTFILE,)) -> Run:
    report = folder / "report.json"
    command = [
        *(sys.executable, "-m", "locust", "-f", ",".join(map(str, files)), "--host", base_url),
        # With a stop time-out every request that was sent is also counted.
        *("--headless", "--only-summary", "--stop-timeout", "30", "--report-json", str(report)),
        *("--keys", str(KEYS), *options),
    ]
    # From elsewhere, where no configuration of locust's is: the locustfile must find its own modules.
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S
    )
    assert report.exists(), done.stdout
    return Run(code=done.returncode, output=done.stdout, report=json.loads(report.read_text()))


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with running(StandIn()) as server:
        yield server


@pytest.fixture(scope="module")
def base_url(stand_in: StandIn) -> str:
    """Whatever serves the quickstart's manifest."""
    return stand_in.base_url


@pytest.fixture(scope="module")
def run(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_locust(base_url, tmp_path_factory.mktemp("locust"), "-u", "20", "-r", "20", "-t", "5s")


def lineage_accuracy(version: str) -> float:
    manifest = json.loads((MODELS / "digits" / version / "manifest.json").read_text())
    return float(manifest["lineage"]["metrics"]["accuracy"])


def spread(part: float, count: int) -> float:
    """Five standard deviations of a share that is measured on `count`, in per cent."""
    return 500 * math.sqrt(part * (1 - part) / count)


@pytest.mark.parametrize(
    ("variant", "version", "weight"), [("stable", "1", 0.9), ("canary", "2", 0.1)], ids=["stable", "canary"]
)
def test_each_version_is_measured(run: Run, variant: str, version: str, weight: float) -> None:
    found = run.version(variant)

    assert run.code == 0, run.output
    assert (found["version"], found["errors"], len(found["revisions"])) == (version, 0, 1)
    # Which keys fall to whom is chance once, which keys are drawn is chance again.
    chance = spread(weight, run.report["requests"]) + spread(weight, KEYS)
    assert found["share_percent"] == pytest.approx(100 * weight, abs=chance)
    accuracy = lineage_accuracy(version)
    chance = spread(accuracy, found["requests"])
    assert found["accuracy_percent"] == pytest.approx(100 * accuracy, abs=chance)
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]


def test_the_versions_have_names_in_locusts_own_statistics(run: Run) -> None:
    for name in ("digits stable (v1)", "digits canary (v2)"):
        (line, *_) = [line for line in run.output.splitlines() if name in line]
        variant = name.split()[1]
        assert int(line.split(name)[1].split()[0]) == run.version(variant)["requests"]


def test_the_table_comes_last_and_says_what_the_json_says(run: Run) -> None:
    title, header, _, *rows = run.output.strip().splitlines()[-5:]

    assert title == "Versions behind 'digits'"
    assert header.split()[:4] == ["version", "variant", "requests", "share"]
    for row, variant in zip(rows, ("stable", "canary"), strict=True):
        found = run.version(variant)
        share, accuracy = found["share_percent"], found["accuracy_percent"]
        latencies = [f"{found[each]:.2f}" for each in ("p50_ms", "p95_ms", "p99_ms")]
        expected = [found["version"], variant, str(found["requests"]), f"{share:.1f}", "0", f"{accuracy:.1f}"]
        assert row.split() == [*expected, *latencies]


def test_every_request_was_counted_where_it_was_answered(run: Run, stand_in: StandIn) -> None:
    for variant in ("stable", "canary"):
        right, wrong = stand_in.answered[variant, "right"], stand_in.answered[variant, "wrong"]
        found = run.version(variant)
        assert found["requests"] == right + wrong
        assert found["accuracy_percent"] == pytest.approx(100 * right / (right + wrong))


def test_errors_are_the_versions_that_made_them_also_under_a_shape(tmp_path: Path) -> None:
    steps = ("--steps", "2", "--step-users", "10", "--step-seconds", "2")
    with running(StandIn(faults=True)) as server:
        run = run_locust(server.base_url, tmp_path, *steps, files=(LOCUSTFILE, SHAPES))

    assert run.code == 1, run.output
    canary, stable, nobody = (run.version(variant) for variant in ("canary", "stable", "-"))
    assert canary["requests"] == canary["errors"] == server.answered["canary", "error"] > 0
    assert (canary["accuracy_percent"], canary["p50_ms"]) == (None, None)
    assert stable["requests"] > stable["errors"] == server.answered["stable", "error"] > 0
    assert stable["accuracy_percent"] > 80
    assert nobody["requests"] == nobody["errors"] > 0
    assert "the answer has no output `label`" in run.output
    assert run.report["errors"] == sum(each["errors"] for each in (canary, stable, nobody))
