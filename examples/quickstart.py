"""Trains, exports and publishes the three versions of the model `digits` that the quickstart serves.

    python examples/quickstart.py                      # into configs/quickstart/models
    python examples/quickstart.py --root /tmp/models   # elsewhere

    version 1  champion    logistic regression, trained when only 300 images were labelled
    version 2  challenger  a hidden layer, all images: clearly better
    version 3  broken      version 2, trained further on a label column that slipped by one: to roll back

Everything is seeded: it can run again, and then changes no version and puts the aliases back.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx

# `python examples/quickstart.py` puts the script's own directory on the path and not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.digits.data import CLASSES, Digits, Split, data_digest, load_split
from examples.digits.export import onnx_bytes
from examples.digits.network import (
    Network,
    Schedule,
    accuracy,
    fresh_network,
    log_loss,
    probabilities,
    train,
    with_shifted_copies,
)
from registry_client.adapters.directory import publish
from registry_client.errors import RegistryError

MODELS = Path(__file__).resolve().parents[1] / "configs" / "quickstart" / "models"
MODEL = "digits"
SOURCE = "examples/quickstart.py"
# A date of its own: that of the run would make every run's manifest another one.
CREATED = datetime(2026, 11, 23, tzinfo=UTC)
FIRST_ROWS = 300
SLIPPED_FROM = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A trained version, ready to be published."""

    version: str
    alias: str
    description: str
    network: Network
    params: Mapping[str, str | int | float]
    parent: str = ""


def train_releases(split: Split) -> list[Release]:
    """The three versions, in order."""
    challenger = _challenger(split.train)
    return [_champion(split.train), challenger, _broken(split.train, challenger)]


def _champion(digits: Digits) -> Release:
    schedule = Schedule(epochs=60, rate=0.1, l2=1e-3, batch_rows=64, seed=1)
    return Release(
        version="1",
        alias="champion",
        description=f"Multinomial logistic regression on the first {FIRST_ROWS} labelled images",
        network=train(fresh_network(0, schedule.seed), digits.at(np.arange(FIRST_ROWS)), schedule),
        params={"hidden": 0, "rows": FIRST_ROWS, **_params(schedule)},
    )


def _challenger(digits: Digits) -> Release:
    schedule, hidden = Schedule(epochs=40, rate=0.1, l2=1e-3, batch_rows=64, seed=2), 64
    return Release(
        version="2",
        alias="challenger",
        description=f"One hidden layer of {hidden} on all images and their copies moved by one pixel",
        network=train(fresh_network(hidden, schedule.seed), with_shifted_copies(digits), schedule),
        params={"hidden": hidden, "rows": len(digits), "augmentation": "shift-1", **_params(schedule)},
    )


def _broken(digits: Digits, challenger: Release) -> Release:
    schedule = Schedule(epochs=20, rate=0.05, l2=1e-3, batch_rows=64, seed=3)
    return Release(
        version="3",
        alias="broken",
        description="Version 2, trained further on labels in which 5 to 9 slipped by one: for the rollback",
        network=train(challenger.network, _with_slipped_labels(digits), schedule),
        params={**challenger.params, "augmentation": "none", **_params(schedule)},
        parent=f"{MODEL}@{challenger.version}",
    )


def _with_slipped_labels(digits: Digits) -> Digits:
    slipped = np.where(digits.labels >= SLIPPED_FROM, (digits.labels + 1) % CLASSES, digits.labels)
    return Digits(digits.images, slipped)


def _params(schedule: Schedule) -> dict[str, str | int | float]:
    return {
        "epochs": schedule.epochs,
        "rate": schedule.rate,
        "l2": schedule.l2,
        "batch_rows": schedule.batch_rows,
        "seed": schedule.seed,
    }


def metadata_of(release: Release, test: Digits) -> dict[str, object]:
    """Description and lineage; the metrics are those on the test part, with its true labels."""
    answers = probabilities(release.network, test.images)
    return {
        "description": release.description,
        "lineage": {
            "run_id": f"quickstart-{release.version}",
            "metrics": {
                "accuracy": round(accuracy(answers, test.labels), 4),
                "log_loss": round(log_loss(answers, test.labels), 4),
            },
            "params": dict(release.params),
            "datasets": {"uci-digits": data_digest()},
            "parent": release.parent,
            "environment": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "onnx": onnx.__version__,
            },
            "tags": {"trainer": SOURCE},
        },
    }


def publish_release(root: Path, release: Release, test: Digits) -> None:
    """Raises `IntegrityError` where the version is there already with other bytes."""
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, "model.onnx")
        exported.write_bytes(onnx_bytes(release.network))
        publish(
            root,
            MODEL,
            exported,
            version=release.version,
            aliases=[release.alias],
            metadata=metadata_of(release, test),
            created=CREATED,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Trains and publishes the quickstart's three models.")
    parser.add_argument("--root", type=Path, default=MODELS, help="the directory registry (%(default)s)")
    root: Path = parser.parse_args(arguments).root
    split = load_split()
    for release in train_releases(split):
        try:
            publish_release(root, release, split.test)
        except RegistryError as error:
            print(f"version {release.version} was not published: {error}", file=sys.stderr)
            return 1
        right = accuracy(probabilities(release.network, split.test.images), split.test.labels)
        print(f"{MODEL} {release.version} ({release.alias}): {right:.1%} right on {len(split.test)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
