"""The data set is the one that its page describes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from examples.digits.data import DATA, data_digest, load_digits, load_split


def test_the_file_is_the_one_that_the_readme_names() -> None:
    (named,) = re.findall(r"`([0-9a-f]{64})`", Path(DATA.parent, "README.md").read_text())

    assert data_digest() == f"sha256:{named}"


def test_images_and_labels_are_in_their_ranges() -> None:
    digits = load_digits()

    assert digits.images.shape == (1797, 64)
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (0.0, 1.0)
    assert sorted(set(digits.labels.tolist())) == list(range(10))


def test_the_split_is_whole_and_never_moves() -> None:
    split = load_split()

    both = np.concatenate([split.train.images, split.test.images])
    assert (len(split.train), len(split.test)) == (1197, 600)
    assert sorted(map(bytes, both)) == sorted(map(bytes, load_digits().images))
    # Written down: models are published that must never have seen a test image.
    assert split.test.labels[:20].tolist() == [6, 3, 8, 2, 9, 5, 5, 2, 8, 7, 3, 5, 4, 6, 6, 7, 1, 9, 6, 5]
