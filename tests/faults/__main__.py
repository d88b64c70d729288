"""Hurts a real fleet and judges what its clients and operators saw.

    python -m tests.faults --flips 1000 --seed 7 [--topology single|sentinel|embedded] [--kind valkey|redis]
                           [--per-second 2] [--faults store:] [--keep DIRECTORY]

Exits 1 where a promise of docs/control-plane.md was broken. The seed gives the same operators and the same
faults again, not the same interleaving.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import msgspec

from tests.faults.history import History
from tests.faults.run import Judged, Options, judge, run
from tests.faults.topologies import TOPOLOGIES
from tests.servers.redis import KINDS

SHOWN = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--topology", choices=[*TOPOLOGIES], default="single")
    parser.add_argument("--kind", choices=KINDS, default="valkey")
    parser.add_argument("--per-second", type=float, default=2.0, help="flips, when nothing is broken")
    parser.add_argument("--faults", default="", help="only those whose names begin so: store: or worker")
    parser.add_argument("--keep", type=Path, help="keep logs and history here")
    parser.add_argument("--judge", type=Path, help="only judge what --keep kept")
    arguments = parser.parse_args()
    if arguments.judge:
        history = msgspec.json.decode((arguments.judge / "history.json").read_bytes(), type=History)
        return show(judge(history, arguments.judge, []))
    print(f"seed {arguments.seed}", flush=True)
    options = Options(
        seed=arguments.seed,
        flips=arguments.flips,
        per_second=arguments.per_second,
        faults=arguments.faults,
        topology=arguments.topology,
        kind=arguments.kind,
    )
    with tempfile.TemporaryDirectory(prefix="turnout-faults-") as scratch:
        directory = (arguments.keep or Path(scratch)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        return show(run(options, directory, partial(print, flush=True)))


def show(judged: Judged) -> int:
    print(judged.summary)
    for kind, count in Counter(violation.kind for violation in judged.violations).items():
        print(f"\n{count} x {kind}")
        for violation in [found for found in judged.violations if found.kind == kind][:SHOWN]:
            print(f"  {violation.text}")
    for title, lines in (("too slow", judged.slow), ("in the logs", judged.troubles)):
        if lines:
            print(f"\n{title}:", *lines[:SHOWN], sep="\n  ")
    broken = bool(judged.violations or judged.slow or judged.troubles)
    print("\nbroken" if broken else "\n0 missed, 0 violations")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
