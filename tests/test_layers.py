"""Imports point one way, as the design's layout says; files stay small and are named after a noun."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for package in ("gateway", "registry_client") for path in (ROOT / package).rglob("*.py")
)
OBSERVATIONS = "gateway.telemetry.observations"
LAYERS = {
    # What may be imported of our own; the most derived name decides.
    "registry_client": ("registry_client",),
    OBSERVATIONS: (),
    "gateway.routing": ("gateway.routing", "registry_client"),
    "gateway.serving": ("gateway.serving", "gateway.routing", OBSERVATIONS),
    "gateway.wire": ("gateway.wire", "gateway.serving", "gateway.routing", "gateway.telemetry"),
    "gateway.telemetry": ("gateway.telemetry", "gateway.routing"),
    "gateway.control": (
        "gateway.control", "gateway.routing", "gateway.telemetry", "gateway.serving", "registry_client",
    ),
    "gateway.settings": (),
    "gateway.admin": (
        "gateway.admin", "gateway.control", "gateway.routing", "gateway.telemetry", "gateway.settings",
        "registry_client",
    ),
    "gateway": ("gateway", "registry_client"),  # node and cli compose
}  # fmt: skip


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Every import of the file, also inside of functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from gateway.telemetry import observations` is an import of that module.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (ROOT / Path(*whole.split("."))).with_suffix(".py").exists()
                yield whole if is_module else str(node.module)


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_imports_point_one_way(path: Path) -> None:
    layer = next(layer for layer in sorted(LAYERS, key=len, reverse=True) if below(module(path), layer))
    for name in imported(path):
        if name.partition(".")[0] in ("gateway", "registry_client"):
            allowed = any(below(name, package) for package in LAYERS[layer])
            assert allowed, f"{module(path)} imports {name}: {layer} knows only {LAYERS[layer]}"


def test_files_are_small_and_named_after_what_is_in_them() -> None:
    for path in (*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "loadtests").rglob("*.py")):
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines: split it by noun"
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}, path.relative_to(
            ROOT
        )
