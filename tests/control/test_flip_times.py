from __future__ import annotations

import msgspec

from gateway.node.flip_times import FlipTimes
from gateway.routing.state import InForce, Revision, State
from tests.contracts.store import member


def held(rev: int, commit_us: int = 1_000_000) -> InForce:
    return InForce(revision=Revision(1, rev), state=State(), commit_us=commit_us)


def test_from_the_commit_to_the_last_workers_swap() -> None:
    seen: list[float] = []
    flips = FlipTimes(seen.append)
    flips.note(held(1), member("one"), 900_000_000)
    assert seen == [], "what a replica starts with is no flip"
    flips.note(held(2), msgspec.structs.replace(member("one", 2), workers_ok=1), 1_001_000)
    assert seen == [], "one worker has not swapped"
    flips.note(held(2), member("one", 2), 1_004_000)
    flips.note(held(2), member("one", 2), 1_004_000)
    assert seen == [0.004], "a heartbeat is no flip"
    flips.note(held(4), member("one", 4), 999_000)
    assert seen == [0.004, 0], "the clock of the next primary is behind"
    flips.note(held(5, commit_us=0), member("one", 5), 1_004_000)
    assert len(seen) == 2, "a state from an earlier release does not say when it was made"
