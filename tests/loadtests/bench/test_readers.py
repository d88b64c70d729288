"""The arithmetic of the readers bench, and that a few simulated replicas acknowledge what is committed."""

from __future__ import annotations

import pytest

from loadtests.bench import page
from loadtests.bench.readers import Result, Used, measure, section


def used(at_s: float, commands: int, connections: int = 0, cpu_s: float = 0.0) -> Used:
    return Used(at_s=at_s, commands=commands, connections=connections, cpu_s=cpu_s, clients_cpu_s=cpu_s)


def test_a_change_is_counted_without_what_replicas_send_at_rest() -> None:
    result = Result(
        replicas=10,
        first_ms=[1.0, 2.0],
        last_ms=[3.0, 4.0],
        rest=used(5.0, 250, cpu_s=0.5),  # 50 a second: 5 for each replica
        changing=used(2.0, 100 + 2 * 10 * 7, cpu_s=0.2 + 2 * 0.03),
        connected=20,
    )
    assert result.commands_a_change == pytest.approx(7.0)
    assert result.cpu_s_a_change == pytest.approx(0.03)
    assert "10,000 replicas would have 20,000 connections open, take 100 cores" in section([result]).text


def test_what_is_used_is_the_difference() -> None:
    assert used(9.0, 70, 3, 2.0) - used(4.0, 20, 1, 0.5) == used(5.0, 50, 2, 1.5)


@pytest.mark.timeout(120)
def test_replicas_acknowledge_every_change() -> None:
    result = measure(3, 4, 0.5, 2)
    assert len(result.first_ms) == len(result.last_ms) == 4
    assert all(0 < first <= last for first, last in zip(result.first_ms, result.last_ms, strict=True))
    assert result.changing.commands > 4 * 3
    assert 3 <= result.connected <= 9
    text = section([result]).text
    (row,) = [line for line in text.splitlines() if line.startswith("| 3 |")]
    assert row.count("|") == text.splitlines()[2].count("|")


def test_the_page_has_a_place_for_it() -> None:
    assert "<!-- bench readers -->" in page.PAGE.read_text()
