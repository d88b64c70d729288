"""The bench in its smallest form, on real servers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from loadtests.bench import servers
from loadtests.bench.harness import Harness, Plan, Subject, chosen
from loadtests.bench.limits import BARE, NGINX, OURS, UVICORN
from loadtests.bench.machine import BenchError, two_cores
from loadtests.bench.protocols import CONSTANT, OIP_BINARY, OIP_JSON
from loadtests.bench.rows import measured_rows, rate_plot

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pins processes to cores"),
    pytest.mark.skipif(
        not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores"
    ),
]
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@pytest.fixture
def bench(tmp_path: Path) -> Harness:
    return Harness(Plan(rounds=1, seconds=1, concurrency=(4,)), two_cores(), tmp_path)


@needs_wrk
def test_ours_beside_a_constant(bench: Harness) -> None:
    measured = bench.compare([OURS, BARE], bench.workload("tiny"))
    assert [each.subject for each in measured] == [OURS, BARE]
    for each in measured:
        (one,) = each.slices[4]
        assert one.per_s > 0 and 0 < one.p50_us <= one.p99_us
        # Its own processes' time: no more than a core's, and most of what the answers took.
        assert 0 < one.busy < 1.2
        assert each.memory_bytes > 5_000_000
    head, rows = measured_rows(measured)
    assert [len(row) for row in rows] == [len(head), len(head)]
    assert "Turnout" in rate_plot(measured)


def test_an_open_load_and_both_forms_of_a_tensor(bench: Harness) -> None:
    binary = Subject(label="binary", starter=servers.turnout, protocol=OIP_BINARY)
    with bench.targets([OURS, binary], bench.workload("tiny")) as targets:
        assert targets[0].running is targets[1].running  # one process for both
        for target in targets:
            one = target.paced(100, 1, bench.cores)
            assert one.per_s > 0 and 0 < one.p50_us <= one.p99_us
        keeper, *workers = targets[0].running.process.tree()
        assert targets[0].running.serving() == workers
        assert os.sched_getaffinity(keeper) == {bench.cores.load}
        assert all(os.sched_getaffinity(worker) == {bench.cores.server} for worker in workers)


def test_no_server_outlives_its_bench(bench: Harness) -> None:
    with bench.targets([OURS, UVICORN], bench.workload("tiny")) as targets:
        pids = [pid for target in targets for pid in target.running.process.tree()]
        assert len(pids) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_wrong_answer_ends_the_bench(bench: Harness) -> None:
    other = Subject(label="a constant", starter=servers.bare_protocol, protocol=OIP_JSON)
    with pytest.raises(BenchError, match="it is wrong"), bench.targets([other], bench.workload("tiny")):
        pass


def test_a_server_that_does_not_start_tells_its_log(bench: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "MANIFEST", "routes: {{tiny {path} {name}")
    with pytest.raises(BenchError, match=r"turnout\.yaml"), bench.targets([OURS], bench.workload("tiny")):
        pass


def test_a_peer_without_its_environment_says_what_makes_it(bench: Harness) -> None:
    peer = Subject(label="none", starter=servers.peer("none", CONSTANT), protocol=CONSTANT)
    with pytest.raises(BenchError, match="make bench-peers"), bench.targets([peer], bench.workload("tiny")):
        pass


def test_only_some_of_the_others() -> None:
    subjects = [OURS, NGINX, UVICORN, BARE]
    assert chosen(subjects, "") == subjects
    assert chosen(subjects, "NGINX,protocol") == [OURS, NGINX, BARE]
    assert chosen(subjects, "none") == [OURS]
