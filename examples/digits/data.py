"""The UCI handwritten digits as arrays, cut once into a part to train on and a part to test with."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).with_name("digits.csv.gz")
PIXELS = 64
CLASSES = 10
TEST_ROWS = 600
_DARKEST = 16
_SPLIT_SEED = 2026


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """`images`, float32 (n, 64) in [0, 1], row by row from the top left; `labels`, int64 (n,), 0 to 9."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: NDArray[np.int64]) -> Digits:
        return Digits(self.images[rows], self.labels[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """1,197 rows to train on and 600 to test with, in an order that never changes."""

    train: Digits
    test: Digits


def load_digits(path: Path = DATA) -> Digits:
    """All 1,797 rows, in the file's order."""
    with gzip.open(path, "rt", encoding="ascii") as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.float64)
    return Digits((rows[:, :PIXELS] / _DARKEST).astype(np.float32), rows[:, PIXELS].astype(np.int64))


def load_split(path: Path = DATA) -> Split:
    digits = load_digits(path)
    # RandomState, not default_rng: its stream is frozen for good (NEP 19), and another numpy must not
    # move rows from the test part into the training part of models that are published already.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(digits)).astype(np.int64)
    return Split(train=digits.at(order[TEST_ROWS:]), test=digits.at(order[:TEST_ROWS]))


def data_digest(path: Path = DATA) -> str:
    """`sha256:…` of the file as it is in the repository."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
