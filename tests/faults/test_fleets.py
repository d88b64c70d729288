"""A minute of what `python -m tests.faults` does for as long as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.run import Options, run


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("topology", "kind", "flips"), [("single", "redis", 60), ("sentinel", "valkey", 30), ("embedded", "", 20)]
)
def test_every_promise_holds_whatever_happens(tmp_path: Path, topology: str, kind: str, flips: int) -> None:
    options = Options(seed=4, flips=flips, per_second=3.0, topology=topology, kind=kind)
    judged = run(options, tmp_path, print)
    assert judged.violations == [], judged.summary
    assert judged.troubles == [], judged.summary
    # Else nothing was tried. Some flips are refused, or fail while the store is away.
    assert judged.flips > flips / 2, judged.summary
    assert judged.faults > 3, judged.summary
    assert judged.answers > 1000, judged.summary
