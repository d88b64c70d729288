"""Every setting, field, metric, command and error is on its page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import msgspec
import pytest

from gateway.admin import problems
from gateway.cli.main import turnout
from gateway.cli.serve import serve
from gateway.routing.manifest import LimitSpec, RouteSpec, VariantSpec
from gateway.routing.state import EngineOptions
from gateway.telemetry.metrics import Standing, TurnoutCollector
from registry_client.client import registry_types
from tests.documentation.pages import ROOT

HOW_TO = ROOT / "docs" / "how-to"
COMMON_OPTIONS = {"--output", "--help", "--file"}
NOWHERE = Standing(
    epoch=1,
    rev=1,
    control_plane_age_s=0.0,
    degraded=False,
    shares={},
    rollback_ready={},
    denies=0,
    workers_ready=1,
    workers_total=1,
    worker_restarts=0,
    cache_bytes=0,
    fetched_bytes=0,
)


def page(name: str) -> str:
    return (HOW_TO / f"{name}.md").read_text(encoding="utf-8")


def documented(name: str) -> set[str]:
    """What the first cells of the page's tables name, in code."""
    rows = [line.split("|")[1] for line in page(name).splitlines() if line.startswith("|")]
    return {code for row in rows for code in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize(
    "option", [param for param in serve.params if param.name != "help"], ids=lambda p: p.name
)
def test_every_setting(option: click.Option) -> None:
    context = click.Context(serve, info_name="serve", **serve.context_settings)
    variable = f"{context.auto_envvar_prefix}_{(option.name or '').upper()}"
    (row,) = [line for line in page("settings").splitlines() if re.match(rf"\| `{option.opts[0]}[` ]", line)]
    assert f"`{variable}`" in row


def test_no_setting_that_is_gone() -> None:
    known = {option.opts[0] for option in serve.params}
    named = {text.split()[0] for text in documented("settings") if text.startswith("--")}
    assert named == known - {"--help"}


@pytest.mark.parametrize(
    "struct", [RouteSpec, VariantSpec, LimitSpec, EngineOptions], ids=lambda struct: struct.__name__
)
def test_every_field_of_a_manifest(struct: type[msgspec.Struct]) -> None:
    assert set(struct.__struct_fields__) <= documented("manifest")


def test_no_field_that_is_gone() -> None:
    known = {
        field
        for struct in (RouteSpec, VariantSpec, LimitSpec, EngineOptions)
        for field in struct.__struct_fields__
    }
    assert documented("manifest") == known | {"type"}


def test_every_metric() -> None:
    names = set(_metrics())
    assert documented("metrics") == names | _alerts()
    for name, help_text in _metrics().items():
        assert help_text, name


def test_every_command_and_option() -> None:
    text = page("commands")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| `turnout "))
    for name, command in _commands(turnout, "turnout"):
        assert re.search(rf"`{name}[ `]", rows), name
        if command is serve:
            continue
        for option in command.params:
            long = [flag for flag in option.opts if flag.startswith("--")]
            if isinstance(option, click.Option) and not set(long) & COMMON_OPTIONS:
                assert f"`{long[0]}" in text or f"{long[0]} " in text, f"{name} {long[0]}"


def test_no_command_that_is_gone() -> None:
    known = {name for name, _ in _commands(turnout, "turnout")}
    for words in documented("commands"):
        if words.startswith("turnout "):
            assert any(words == name or words.startswith(f"{name} ") for name in known), words


def test_every_problem_of_the_admin_api() -> None:
    rows = page("errors")
    for _, status, title in problems._STATUS:
        assert f"| {status} | {title} |" in rows


def test_every_status_of_the_data_plane() -> None:
    """Those that the code names; the metrics have slots for some that nothing answers yet."""
    named = set()
    for source in [*(ROOT / "gateway/serving").rglob("*.py"), *(ROOT / "gateway/wire").rglob("*.py")]:
        named |= set(_statuses(source))
    listed = {int(code) for code in re.findall(r"^\| (\d{3}) \|", page("errors"), re.MULTILINE)}
    assert named - {200} <= listed


def test_every_type_of_registry() -> None:
    for kind in registry_types():
        assert f"type: {kind}" in page("registries")


def test_decisions_are_numbered_in_order() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [path.name[:4] for path in pages] == [f"{number:03}-" for number in range(1, len(pages) + 1)]
    for number, path in enumerate(pages, 1):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. "), path.name
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## Context",
            "## Decision",
            "## Consequences",
        ], path.name


def _statuses(source: Path) -> Iterator[int]:
    raised = r"(?:InferenceError|HTTPException|CallFailed|_error)\(\s*(\d{3})"
    for code in re.findall(raised, source.read_text(encoding="utf-8")):
        yield int(code)


def _metrics() -> Mapping[str, str]:
    collector = TurnoutCollector(totals=dict, standing=lambda: NOWHERE)
    return {
        metric.name + ("_total" if metric.type == "counter" else ""): metric.documentation
        for metric in collector.collect()
    }


def _alerts() -> set[str]:
    """The expressions of the page's last table."""
    return {text for text in documented("metrics") if not re.fullmatch(r"turnout_\w+", text)}


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            inner = command.get_command(context, word)
            assert inner is not None
            yield from _commands(inner, f"{name} {word}")
    else:
        yield name, command
