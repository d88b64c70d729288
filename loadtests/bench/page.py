"""Figures as Markdown, and their place in docs/performance.md: between markers, the rest is written by hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path

from loadtests.bench.machine import BenchError
from loadtests.bench.slices import Slice, Spread, spread

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"


@dataclass(frozen=True, kw_only=True)
class Section:
    """What a bench writes: Markdown between the markers of its name, and a plot beside the page if it has one."""

    name: str
    text: str
    plot: str = ""

    def write(self, page: Path = PAGE) -> None:
        """Raises `BenchError` where the page has no such markers."""
        text = replaced(page.read_text(encoding="utf-8"), self.name, self.text)
        page.write_text(text, encoding="utf-8")
        if self.plot:
            plots = page.with_suffix("")
            plots.mkdir(exist_ok=True)
            (plots / f"{self.name}.svg").write_text(self.plot, encoding="utf-8")


def run_section(measure: Callable[[], Section], *, dry: bool) -> int:
    """Prints what `measure` gives, and writes it into the page unless `dry`; the exit code."""
    try:
        section = measure()
        print(section.text)
        if not dry:
            section.write()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def replaced(text: str, name: str, content: str) -> str:
    """`text` with `content` between the lines `<!-- bench NAME -->` and `<!-- end NAME -->`, which stay."""
    begin, end = f"<!-- bench {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise BenchError(
            f"the page must have the lines {begin} and {end} once each: write them where it goes"
        )
    return pattern.sub(lambda found: f"{found[1]}{content.strip()}\n{found[2]}", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def figure(value: float) -> str:
    """Three significant digits at most: 12,345 → `12,300`, 0.04567 → `0.0457`."""
    if value == 0:
        return "0"
    digits = 2 - floor(log10(abs(value)))
    text = f"{round(value, digits):,.{max(digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def with_noise(measured: Spread) -> str:
    """`61,000 ± 3 %`."""
    return f"{figure(measured.value)} ± {100 * measured.noise:.0f} %"


def disturbance(slices: Sequence[Slice]) -> str:
    """What others took of the server's core: the first thing to look at before the figures."""
    others = sorted(one.others for one in slices)
    return (
        f"Others had {100 * spread(others).value:.0f} % of the server's core in the median slice, "
        f"{100 * others[-1]:.0f} % in the worst."
    )
