"""What the pages tell their readers to type does what they say that it does."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gateway.cli.main import turnout
from gateway.control.manifest_file import read_manifest
from gateway.routing.manifest import parse_manifest
from tests.documentation.pages import PAGES, ROOT, Block, blocks, every_block, matches, steps
from tests.documentation.session import Session, expected_exit

RUN = [page for page in PAGES if any(block.language == "console" for block in blocks(page))]
_LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    opened = Session(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_every_console_block_prints_what_the_page_shows(page: Path, session: Session) -> None:
    for block in blocks(page):
        if block.language != "console":
            continue
        for step in steps(block):
            output, code = expected_exit(step)
            printed, returned = session.run(step)
            assert returned == code, f"{block}: $ {step.command}\n{printed}"
            assert matches(output, printed), (
                f"{block}: $ {step.command}\n--- shown\n{output}--- printed\n{printed}"
            )


@pytest.mark.parametrize("block", every_block("yaml"), ids=str)
def test_every_manifest_is_accepted(block: Block) -> None:
    parse_manifest(block.text)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*/turnout.yaml")), ids=str)
def test_every_shipped_manifest_is_accepted(path: Path) -> None:
    assert read_manifest(path).routes


@pytest.mark.parametrize("block", every_block("sh"), ids=str)
def test_every_shell_block_could_be_typed(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, timeout=10)
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["turnout"]:
            _parse(words[1:])
        elif words[:1] == ["make"]:
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in words[1:] if "=" not in word} <= set(targets), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def _parse(words: list[str]) -> None:
    """Raises `click.UsageError` for an unknown command or option, or a missing argument."""
    group: click.Command = turnout
    context = group.make_context("turnout", list(words))
    while isinstance(group, click.Group):
        name, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        group = found
        context = group.make_context(name, rest, parent=context)
