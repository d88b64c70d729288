"""What the load generators send and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests.bench import machine, protocols
from loadtests.bench.flip import Flip, flip_times_ms
from loadtests.bench.machine import BenchError
from loadtests.bench.paced import arrivals_ns, is_whole
from loadtests.bench.protocols import Answered, Ask, raw_requests
from loadtests.bench.workloads import MAKERS, tiny
from loadtests.bench.wrk import parse

WRK = """Running 1s test @ http://127.0.0.1:1/
  1 threads and 64 connections
Requests/sec:  61234.56
turnout-bench {"requests":61300,"duration_us":1001000,"p50_us":961,"p90_us":1200,"p99_us":1926,"max_us":4000,\
"bad_status":0,"broken":0,"timeouts":2}
"""


def test_wrks_own_figures_are_read() -> None:
    load = parse(WRK)
    assert (load.requests, load.p50_us, load.p99_us, load.timeouts) == (61300, 961, 1926, 2)
    assert load.per_s == pytest.approx(61238.76, abs=0.01)


def test_what_wrk_says_instead_of_figures_is_told() -> None:
    with pytest.raises(BenchError, match="unable to connect"):
        parse("unable to connect to 127.0.0.1:1 Connection refused")


def test_requests_are_whole_and_each_has_its_key() -> None:
    first, second = raw_requests(Ask(path="/v2/models/tiny/infer", body=b"{}"), "127.0.0.1:1", 2)
    head, body = first.split(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v2/models/tiny/infer HTTP/1.1"
    assert {b"host: 127.0.0.1:1", b"content-length: 2", b"turnout-key: user-0000"} < set(lines)
    assert body == b"{}"
    assert second == first.replace(b"user-0000", b"user-0001")


def test_requests_have_the_size_that_the_page_tells(tmp_path: Path) -> None:
    sizes = {}
    for name, make in MAKERS.items():
        workload = make(tmp_path / name)
        sizes[name] = len(protocols.OIP_JSON.ask(name, workload.row).body)
    assert 180 < sizes["tiny"] < 220
    assert 1_900 < sizes["medium"] < 2_100
    assert 1_000_000 < sizes["image"] < 1_200_000


@pytest.mark.parametrize(
    "protocol, body",
    [
        (protocols.OIP_JSON, b'{"outputs":[{"name":"output","data":[%r,%r]}]}'),
        (protocols.KSERVE_V1, b'{"predictions":[[%r,%r]]}'),
        (protocols.LITSERVE, b'{"output":[[%r,%r]]}'),
        (protocols.BENTOML, b"[[%r,%r]]"),
        (protocols.MLFLOW, b'{"predictions":{"output":[[%r,%r]]}}'),
    ],
)
def test_a_wrong_answer_is_found(tmp_path: Path, protocol: protocols.Protocol, body: bytes) -> None:
    workload = tiny(tmp_path)
    for answer in workload.answers:
        one, two = answer.ravel().tolist()
        right = protocol.read(Answered(body=body % (one, two), headers={}))
        assert right is not None and workload.is_answer(right)
        wrong = protocol.read(Answered(body=body % (one, two + 1), headers={}))
        assert wrong is not None and not workload.is_answer(wrong)


def test_arrivals_are_poisson() -> None:
    due = arrivals_ns(10_000, 2)
    gaps = np.diff(due)
    assert len(due) == pytest.approx(20_000, rel=0.05)
    assert due[-1] < 2e9
    assert due.tolist() == arrivals_ns(10_000, 2).tolist()
    assert bool((gaps >= 0).all())
    # Of an exponential distribution, mean and deviation are the same.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_an_answer_is_whole_with_its_last_byte() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx: y\r\n\r\n12345"
    assert [length for length in range(len(whole) + 1) if is_whole(whole[:length])] == [len(whole)]


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\ncontent-length: 1"]
)
def test_what_is_no_answer_ends_the_load(answer: bytes) -> None:
    with pytest.raises(BenchError):
        is_whole(answer)


def test_a_flip_ends_with_the_last_answer_of_the_denied_version() -> None:
    ms = 1_000_000
    answered = [(1, 2), (2, 1), (11, 2), (14, 2), (15, 1), (31, 2), (32, 1)]
    notes = np.array([(at * ms - 1, at * ms, version) for at, version in answered], np.int64)
    flips = [
        Flip(sent_ns=10 * ms, lifted_ns=30 * ms),  # two answers came after the signal
        Flip(sent_ns=32 * ms, lifted_ns=40 * ms),  # none did
    ]
    assert flip_times_ms(notes, flips).tolist() == [4.0, 0.0]
    assert flip_times_ms(notes[:0], flips).tolist() == [0.0, 0.0]


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BenchError, match="apt-get install wrk nginx-light"):
        machine.require("wrk", "nginx")


def test_one_core_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    with pytest.raises(BenchError, match="only one core"):
        machine.two_cores()
