"""How results appear: tables for people, JSON or YAML for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
import yaml
from rich.console import Console
from rich.table import Table

WIDE = 4000
"""Columns, whatever the terminal has: a long line wraps there, and a fitted table would lose whole columns."""


def show(document: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]], output: str) -> None:
    """The document as JSON or YAML, or its rows as a table."""
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))
    elif output == "yaml":
        click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)
    else:
        table(columns, rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Plain columns, as kubectl prints them."""
    drawn = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column.upper(), overflow="fold", no_wrap=True)
    for row in rows:
        # Escaped by going through Text: a reason with [brackets] is no markup.
        drawn.add_row(*(_cell(value) for value in row))
    _console().print(drawn)


def say(text: str) -> None:
    click.echo(text)


def fail(text: str) -> None:
    click.echo(f"turnout: {text}", err=True)


def per_cent(value: float) -> str:
    return f"{value:g} %"


def moment(us: int) -> str:
    """Microseconds since the epoch, as UTC to the millisecond."""
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def size(count: int | None) -> str:
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _cell(value: Any) -> Any:
    from rich.text import Text

    return Text("" if value is None else str(value))


def _console() -> Console:
    return Console(width=WIDE, no_color=not sys.stdout.isatty())
