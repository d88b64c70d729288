"""Figures on the page, and the page's own text around them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from loadtests.bench import page
from loadtests.bench.machine import BenchError
from loadtests.bench.page import PAGE, Section, figure, replaced, run_section, table, with_noise
from loadtests.bench.plot import Bar, bars
from loadtests.bench.slices import Spread

TEXT = "before\n<!-- bench one -->\nold\nfigures\n<!-- end one -->\nbetween\n<!-- bench two -->\n<!-- end two -->\n"


def test_only_what_is_between_the_markers_changes() -> None:
    once = replaced(TEXT, "one", "| a | b |\n")
    assert once == TEXT.replace("old\nfigures", "| a | b |")
    assert replaced(once, "one", "| a | b |") == once
    assert replaced(TEXT, "two", r"\1 stays as it is") == TEXT.replace(
        "two -->\n<", "two -->\n\\1 stays as it is\n<"
    )


@pytest.mark.parametrize("text", ["", TEXT + TEXT, TEXT.replace("<!-- end one -->", "")])
def test_a_page_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="<!-- bench one -->"):
        replaced(text, "one", "figures")


def test_the_page_has_the_place_of_every_bench() -> None:
    text = PAGE.read_text()
    for name in ("limits", "budget", "peers", "flip"):
        assert "| figures |" in replaced(text, name, "| figures |")


def test_a_section_is_written_with_its_plot(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(TEXT)
    Section(name="one", text="new", plot="<svg/>").write(path)
    assert path.read_text() == TEXT.replace("old\nfigures", "new")
    assert (tmp_path / "page" / "one.svg").read_text() == "<svg/>"


def test_a_dry_run_prints_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "none.md")
    assert run_section(lambda: Section(name="one", text="| 42 |"), dry=True) == 0
    assert "| 42 |" in capsys.readouterr().out


def test_a_bench_that_cannot_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> Section:
        raise BenchError("wrk must be installed")

    assert run_section(fails, dry=True) == 1
    assert capsys.readouterr().err == "error: wrk must be installed\n"


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (61_234, "61,200"), (999.6, "1,000"), (100, "100"), (12.34, "12.3"), (2.0, "2"),
     (0.04567, "0.0457"), (-3.456, "-3.46")],
)  # fmt: skip
def test_a_figure_has_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_table_and_its_noise() -> None:
    cell = with_noise(Spread(value=61_234, noise=0.031))
    assert table(["", "a second"], [["ours", cell]]) == (
        "|  | a second |\n| --- | --: |\n| ours | 61,200 ± 3 % |"
    )


def test_a_plots_bars_are_to_scale() -> None:
    rows = [
        Bar(label="Turnout", measured=Spread(value=200.0, noise=0.0), ours=True),
        Bar(label="<peer> & co", measured=Spread(value=50.0, noise=0.1), ours=False),
    ]
    root = ElementTree.fromstring(bars("A & B", rows))
    space = "{http://www.w3.org/2000/svg}"
    widths = [float(rect.attrib["width"]) for rect in root.iter(f"{space}rect")]
    assert widths[0] == pytest.approx(4 * widths[1])
    assert "<peer> & co" in [text.text for text in root.iter(f"{space}text")]
