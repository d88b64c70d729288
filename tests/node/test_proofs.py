"""What the supervisor makes of what a worker tells."""

from __future__ import annotations

import pytest

from gateway.node.proofs import SILENT_S, Proofs


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def proofs(clock: Clock) -> Proofs:
    return Proofs(clock)


async def test_nothing_is_proved_by_saying_nothing(proofs: Proofs) -> None:
    assert proofs.lacking("1") == "has not proved of late that it answers"
    await proofs.note({}, {}, 15.0)
    assert proofs.lacking("1") == "has not proved of late that it answers"


async def test_a_proof_holds_for_a_while_and_no_longer(proofs: Proofs, clock: Clock) -> None:
    await proofs.note({"1": ""}, {}, 15.0)
    for second in range(15):
        assert proofs.lacking("1") == "", second
        clock.now_s += 1
        await proofs.note({}, {}, 15.0)
    assert proofs.lacking("1") == "has not proved of late that it answers"


async def test_a_worker_that_is_silent_proves_nothing_whatever_it_had_proved(
    proofs: Proofs, clock: Clock
) -> None:
    await proofs.note({"1": ""}, {}, 15.0)
    clock.now_s += SILENT_S + 1
    assert proofs.lacking("1") == f"has not been heard of for {SILENT_S + 1:.0f} s"
    await proofs.note({}, {}, 15.0)
    assert proofs.lacking("1") == ""


async def test_a_failure_counts_at_once_and_until_a_proof(proofs: Proofs) -> None:
    await proofs.note({"1": "", "2": ""}, {}, 15.0)
    await proofs.note({}, {"1": "broken"}, 15.0)
    assert (proofs.lacking("1"), proofs.lacking("2")) == ("broken", "")
    await proofs.note({}, {}, 15.0)
    assert proofs.lacking("1") == "broken"
    await proofs.note({"1": "zeros"}, {}, 15.0)
    assert (proofs.lacking("1"), proofs.leaves_open("1"), proofs.leaves_open("2")) == ("", "zeros", "")
