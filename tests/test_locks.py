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
REQUIREMENTS = ROOT / "requirements"
LOCKS = sorted(REQUIREMENTS.rglob("*.lock"))
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)


def name_of(lock: Path) -> str:
    """`run`, or `peers/kserve`."""
    return str(lock.relative_to(REQUIREMENTS).with_suffix(""))


def locked(name: str) -> dict[str, set[str]]:
    """Package → its versions; more than one where the versions of Python differ."""
    found: dict[str, set[str]] = {}
    for package, version in _PINNED.findall((REQUIREMENTS / f"{name}.lock").read_text()):
        found.setdefault(canonicalize_name(package), set()).add(version)
    return found


def declared() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def wanted(name: str) -> list[str]:
    project, groups = declared()["project"], declared()["dependency-groups"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    return {
        "run": project["dependencies"],
        **{group.replace("peer-", "peers/"): group_of(group) for group in groups},
        "test": project["dependencies"] + extras + group_of("test"),
    }[name]


def group_of(name: str) -> list[str]:
    """With what the groups that it includes have."""
    entries = declared()["dependency-groups"][name]
    return [
        text
        for entry in entries
        for text in (group_of(entry["include-group"]) if isinstance(entry, dict) else [entry])
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=name_of)
def test_a_lock_has_what_is_declared(lock: Path) -> None:
    pinned = locked(name_of(lock))
    for text in wanted(name_of(lock)):
        requirement = Requirement(text)
        versions = pinned.get(canonicalize_name(requirement.name), set())
        assert versions, text
        assert all(requirement.specifier.contains(version) for version in versions), (text, versions)


def test_what_runs_is_a_part_of_what_is_tested() -> None:
    assert locked("run").items() <= locked("test").items()


@pytest.mark.parametrize("lock", LOCKS, ids=name_of)
def test_a_lock_names_hashes_and_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert text.count("--hash=sha256:") >= len(_PINNED.findall(text))
    assert "://" not in text and "--index" not in text and "--find-links" not in text
