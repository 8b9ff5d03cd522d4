"""SQL and PL/pgSQL as a tree: tokens, and groups of them in parentheses or in CASE ... END."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_TOKEN = re.compile(
    r"""
    (?P<space>\s+ | --[^\n]* | /\*.*?\*/)
    | (?P<text>[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
        | \$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$)
    | (?P<word>[A-Za-z_][\w$]*)
    | (?P<value>\d+(?:\.\d+)? | \$\d+)
    | (?P<sign>::|:=|<>|<=|>=|!=|\|\||.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CLOSING = {"(": ")", "[": "]", "case": "end"}


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a constant or a sign. ``name``: the sign, or the word in lower case if it may be a
    keyword."""

    text: str
    start: int
    end: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """The nodes between ``(`` and ``)``, ``[`` and ``]``, or ``CASE`` and ``END``."""

    opening: str
    nodes: tuple["Node", ...]
    start: int
    end: int
    name: str = ""


Node: TypeAlias = Token | Group


def parse(sql: str) -> tuple[Node, ...]:
    """Raises ValueError if a group has no end."""
    tokens = list(_tokens(sql))
    nodes, rest = _nodes(tokens, 0, closing=None)
    if rest != len(tokens):
        raise ValueError(f"nothing is open before {sql[tokens[rest].start :][:40]!r}")
    return nodes


def _tokens(sql: str) -> Iterator[Token]:
    """Without white space and comments."""
    before = ""
    for match in _TOKEN.finditer(sql):
        if match.lastgroup is None or match["space"]:
            continue
        text = match[0]
        has_name = match["sign"] or (match["word"] and before != ".")
        yield Token(text, match.start(), match.end(), text.lower() if has_name else "")
        before = text


def _nodes(
    tokens: Sequence[Token], place: int, closing: str | None
) -> tuple[tuple[Node, ...], int]:
    """The nodes up to ``closing``, and where it is."""
    nodes: list[Node] = []
    while place < len(tokens):
        token = tokens[place]
        if token.name == closing or token.name in (")", "]"):
            break
        inner_closing = _CLOSING.get(token.name)
        if inner_closing is None:
            nodes.append(token)
        else:
            inner, place = _nodes(tokens, place + 1, inner_closing)
            if place == len(tokens) or tokens[place].name != inner_closing:
                raise ValueError(f"{token.text} has no {inner_closing}")
            nodes.append(Group(token.name, inner, token.start, tokens[place].end))
        place += 1
    return tuple(nodes), place
