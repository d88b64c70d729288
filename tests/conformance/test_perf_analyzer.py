"""Triton's perf_analyzer, unchanged: it reads the metadata, the configuration and the statistics, and measures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.perf_analyzer import PerfAnalyzer
from tests.servers.gateway import Gateway

REQUESTS = 50


@pytest.fixture(scope="module")
def perf_analyzer(tmp_path_factory: pytest.TempPathFactory) -> PerfAnalyzer:
    directory: Path = tmp_path_factory.mktemp("perf_analyzer")
    return PerfAnalyzer(directory)


@pytest.mark.parametrize(
    ("protocol", "options"),
    [("http", []), ("grpc", []), ("grpc", ["--streaming"])],
    ids=["http", "grpc", "grpc stream"],
)
def test_it_measures(
    gateway: Gateway, perf_analyzer: PerfAnalyzer, protocol: str, options: list[str]
) -> None:
    address = gateway.grpc if protocol == "grpc" else gateway.data.removeprefix("http://")
    # What it measures here means nothing: windows of a few requests, and any noise will do.
    done = perf_analyzer.run(
        *("-m", "scores", "-u", address, "-i", protocol, "--concurrency-range", "2:4:2", *options),
        *("--measurement-mode", "count_windows", "--measurement-request-count", str(REQUESTS)),
        *("--stability-percentage", "999"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for concurrency in (2, 4):
        assert re.search(rf"^Concurrency: {concurrency}, throughput: [1-9]\d*", done.stdout, re.MULTILINE)
    counted = re.findall(r"Successful request count: (\d+)", done.stdout)
    assert len(counted) == 2 and all(int(count) >= REQUESTS for count in counted), done.stdout
