"""The locks under requirements/ belong to this pyproject.toml: `make lock` makes them anew."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)


def locked(name: str) -> dict[str, set[str]]:
    """Package → its versions; more than one where the versions of Python differ."""
    found: dict[str, set[str]] = {}
    for package, version in _PINNED.findall((ROOT / "requirements" / f"{name}.lock").read_text()):
        found.setdefault(canonicalize_name(package), set()).add(version)
    return found


def declared() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def wanted(name: str) -> list[str]:
    project, groups = declared()["project"], declared()["dependency-groups"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    return {
        "run": project["dependencies"],
        "test": project["dependencies"] + extras + groups["test"],
        "mlflow": groups["mlflow"],
        "clients": groups["clients"],
    }[name]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_what_is_declared(lock: Path) -> None:
    pinned = locked(lock.stem)
    for text in wanted(lock.stem):
        requirement = Requirement(text)
        versions = pinned.get(canonicalize_name(requirement.name), set())
        assert versions, text
        assert all(requirement.specifier.contains(version) for version in versions), (text, versions)


def test_what_runs_is_a_part_of_what_is_tested() -> None:
    assert locked("run").items() <= locked("test").items()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_names_hashes_and_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert text.count("--hash=sha256:") >= len(_PINNED.findall(text))
    assert "://" not in text and "--index" not in text and "--find-links" not in text
