"""A comparison's rows as a table for people and as JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from loadtests.comparison import NOBODY, Row

_COLUMNS = ("version", "variant", "requests", "share %", "errors", "accuracy %", "p50 ms", "p95 ms", "p99 ms")
_TEXT_COLUMNS = 2


def as_table(route: str, rows: Sequence[Row]) -> str:
    lines = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([f"Versions behind {route!r}", text[0], rule, *text[1:]])


def as_json(route: str, rows: Sequence[Row]) -> str:
    """`{"route", "requests", "errors", "versions": [the fields of `Row`]}`."""
    document = {
        "route": route,
        "requests": sum(row.requests for row in rows),
        "errors": sum(row.errors for row in rows),
        "versions": [asdict(row) for row in rows],
    }
    return json.dumps(document, indent=2) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    latencies = (row.p50_ms, row.p95_ms, row.p99_ms)
    return (
        row.version,
        row.variant,
        str(row.requests),
        f"{row.share_percent:.1f}",
        str(row.errors),
        _number(row.accuracy_percent, 1),
        *(_number(latency, 2) for latency in latencies),
    )


def _number(value: float | None, decimals: int) -> str:
    return NOBODY if value is None else f"{value:.{decimals}f}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
