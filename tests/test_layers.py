"""The imports point one way, files stay small, and no name says nothing: see docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("gateway/**/*.py"), *ROOT.glob("registry_client/**/*.py")])
MAY_IMPORT = {
    "registry_client": ("registry_client",),
    "gateway/routing": ("registry_client", "gateway.routing"),
    "gateway/telemetry/observations.py": (),
    "gateway/telemetry": ("gateway.telemetry",),
    "gateway/serving": ("gateway.routing", "gateway.serving", "gateway.telemetry.observations"),
    "gateway/wire": ("gateway.routing", "gateway.serving", "gateway.wire", "gateway.telemetry.observations"),
    "gateway/control": ("registry_client", "gateway.routing", "gateway.control"),
    "gateway/admin": (
        "registry_client", "gateway.routing", "gateway.control", "gateway.admin", "gateway.telemetry",
        "gateway.settings",
    ),
}  # fmt: skip
"""The most specific path that fits a file decides; `node`, `cli` and the top level compose all of it."""


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_small_and_imports_only_what_is_below_it(path: Path) -> None:
    relative = path.relative_to(ROOT)
    assert len(path.read_text().splitlines()) <= 400
    assert relative.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
    places = [relative.as_posix(), *(parent.as_posix() for parent in relative.parents)]
    allowed = next((MAY_IMPORT[place] for place in places if place in MAY_IMPORT), None)
    if allowed is None:
        return
    ours = {name for name in imported(path) if name.split(".")[0] in ("gateway", "registry_client")}
    wrong = {name for name in ours if not any(name == ok or name.startswith(f"{ok}.") for ok in allowed)}
    assert not wrong, f"{relative} may import {allowed} only"
