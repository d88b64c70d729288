"""Horizontal bars as SVG: text and lines follow the reader's light or dark theme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loadtests.bench.page import figure
from loadtests.bench.slices import Spread

_ROW, _BAR = 26, 14
_LEFT, _WIDTH, _RIGHT = 240, 380, 110
_TOP = 44
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; } .ours { fill: #0969da; } .other { fill: #8c959f; }
.noise { stroke: #1f2328; stroke-width: 1.2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .ours { fill: #4493f8; } .other { fill: #7d8590; } .noise { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True, kw_only=True)
class Bar:
    label: str
    measured: Spread
    ours: bool


def bars(title: str, rows: Sequence[Bar]) -> str:
    """A document of one plot; the line at a bar's end is the noise to both sides."""
    widest = max(row.measured.value * (1 + row.measured.noise) for row in rows)
    scale = _WIDTH / widest
    lines = [_row(row, _TOP + index * _ROW, scale) for index, row in enumerate(rows)]
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + len(rows) * _ROW + 6
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{escape(title)}">',
            f"<style>{_STYLE}</style>",
            f'<text class="title" x="8" y="22">{escape(title)}</text>',
            *lines,
            "</svg>\n",
        ]
    )


def _row(row: Bar, top: int, scale: float) -> str:
    value = row.measured.value
    end, middle = _LEFT + value * scale, top + _BAR / 2
    noise = value * row.measured.noise * scale
    kind = "ours" if row.ours else "other"
    return (
        f'<text x="{_LEFT - 8}" y="{middle + 4.5}" text-anchor="end">{escape(row.label)}</text>'
        f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{max(end - _LEFT, 1):.1f}" height="{_BAR}"/>'
        f'<line class="noise" x1="{end - noise:.1f}" x2="{end + noise:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<text x="{end + noise + 8:.1f}" y="{middle + 4.5}">{figure(value)}</text>'
    )
