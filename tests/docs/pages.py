"""Markdown, as far as the tests need it: fenced blocks, commands, links, headings and tables."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
_CODE_SPAN = re.compile(r"`([^`\n]+)`")
_PROMPT = "$ "
_CONTINUED = "    "


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``line`` is the first of its text, counted from 1."""

    language: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and the output that the page shows for it; empty if it shows none."""

    command: str
    output: str
    line: int


@cache
def pages() -> dict[str, str]:
    """The text of every Markdown file of the repository, by its path."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(files)}


def blocks(text: str) -> list[Block]:
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start(2)) + 1)
        for found in _FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return _FENCE.sub("", text)


def steps(block: Block) -> Iterator[Step]:
    """The commands of a ``console`` block. A command begins with ``$``; lines indented by four
    spaces or more right after it belong to it. Everything else is its output."""
    command: list[str] = []
    output: list[str] = []
    began = block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith(_PROMPT):
            if command:
                yield Step("\n".join(command), "\n".join(output), began)
            command, output, began = [line.removeprefix(_PROMPT)], [], number
        elif not command:
            raise ValueError(f"line {number}: output before any command")
        elif line.startswith(_CONTINUED) and not output:
            command.append(line)
        else:
            output.append(line)
    if command:
        yield Step("\n".join(command), "\n".join(output), began)


def links(text: str) -> list[str]:
    """The targets of all links and pictures."""
    return _LINK.findall(prose(text))


def anchors(text: str) -> set[str]:
    """What a link may have after ``#``: each heading as repository hosts write it."""
    return {_anchor(heading) for heading in _HEADING.findall(prose(text))}


def _anchor(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def code_spans(text: str) -> list[str]:
    return _CODE_SPAN.findall(prose(text))


def table_after(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind the line ``heading``, without its head."""
    _, found, rest = text.partition(f"\n{heading}\n")
    if not found:
        raise ValueError(f"no heading {heading!r}")
    rows = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    if rows is None:
        raise ValueError(f"no table after {heading!r}")
    _, _, *body = rows[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in body]
