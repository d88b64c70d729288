"""The pages for people, and the fenced blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is where it begins."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Step:
    """A command line of a console block, and what the page says that it prints."""

    command: str
    output: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])


def every_block(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def steps(block: Block) -> list[Step]:
    """The `$ ` lines of a console block; a backslash at its end joins a line to the next."""
    found: list[Step] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], ""))
        else:
            assert found, f"{block}: a console block begins with a command"
            found[-1] = Step(found[-1].command, found[-1].output + line + "\n")
    return found


def matches(expected: str, printed: str) -> bool:
    """Whether a page's output is what was printed. `…` stands for anything, alone on a line for any lines."""
    pattern = "".join(_line_pattern(line) for line in expected.splitlines())
    lines = [" ".join(line.split()) + "\n" for line in printed.splitlines()]
    return re.fullmatch(pattern, "".join(lines)) is not None


def _line_pattern(line: str) -> str:
    words = " ".join(line.split())
    if words == "…":
        return r"(?:.*\n)*?"
    # Columns are as wide as their widest cell, so spaces are compared as words are.
    parts = [re.escape(part.strip()) for part in words.split("…")]
    return r" ?.*? ?".join(parts) + r"\n"
