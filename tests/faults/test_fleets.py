"""A minute of what `python -m tests.faults` does for as long as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.run import Options, run


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("topology", "kind", "faults"), [("single", "redis", ""), ("sentinel", "valkey", "store:")]
)
def test_every_promise_holds_whatever_happens(tmp_path: Path, topology: str, kind: str, faults: str) -> None:
    """Every fault that there is, once."""
    options = Options(seed=4, flips=40, per_second=3.0, topology=topology, kind=kind, faults=faults)
    judged = run(options, tmp_path, print)
    assert judged.violations == [], judged.summary
    assert judged.troubles == [], judged.summary
    # Else nothing was tried. Some flips are refused, or fail while the store is away.
    assert judged.flips > 20, judged.summary
    assert judged.faults > 5, judged.summary
    assert judged.answers > 1000, judged.summary
