"""What a statement does, in a few words of which there are few: ``db.query.summary``."""

import re
from functools import lru_cache

MAX_LENGTH = 255
"""The conventions' bound."""

_TEXTS = re.compile(
    r"--[^\n]*|'(?:[^']|'')*'|\b(?:extract|overlay|substring|trim)\s*\([^()]*\bFROM\b",
    re.IGNORECASE,
)
"""Comments, literals, and functions that have a FROM of their own."""
_NAMED = re.compile(
    r"\b(\w+)\s*(?:\([\w\s,]*\))?\s+AS\s+(?:NOT\s+)?(?:MATERIALIZED\s*)?\([\s(]*"
    r"(?:SELECT|INSERT|UPDATE|DELETE|WITH|VALUES)\b",
    re.IGNORECASE,
)
"""A subquery in front of the statement, with its name."""
_STEP = re.compile(
    r"\b(?:(INSERT)\s+INTO|(DELETE)\s+FROM|(?<!FOR\s)(?<!DO\s)(?<!KEY\s)(UPDATE)"
    r"|(?<!DISTINCT\s)(?:FROM|JOIN)(?!\s+(?:ONLY\s+|LATERAL\s+)?[\w.]+\s*\())"
    r"\s+(?:ONLY\s+)?([a-z_][\w.]*)",
    re.IGNORECASE,
)
"""A table, and what is done with it. A function after FROM is none."""
_NO_TABLES = frozenset({"set", "skip", "nowait", "of", "lateral", "distinct", "only"})
"""Words that follow these keywords elsewhere."""
_FIRST = re.compile(r"\s*(\w+)")


@lru_cache(maxsize=1_024)
def summary_of(sql: str) -> str:
    """Each operation with its table, once, in the order of the text: ``SELECT credit_accounts
    UPDATE credit_accounts INSERT generation_sessions``. Literals, arguments, functions and the
    names of subqueries are not in it."""
    text = _TEXTS.sub(" ", sql)
    named = {match[1].lower() for match in _NAMED.finditer(text)}
    steps: dict[str, None] = {}
    for match in _STEP.finditer(text):
        operation = (match[1] or match[2] or match[3] or "SELECT").upper()
        table = match[4].lower()
        if table not in named and table not in _NO_TABLES:
            steps[f"{operation} {table}"] = None
    return _cut(list(steps)) or _operation(text)


def operation_of(summary: str) -> str:
    """Its first word: ``db.operation.name``."""
    return summary.partition(" ")[0]


def _operation(text: str) -> str:
    found = _FIRST.match(text)
    return found[1].upper() if found else "SQL"


def _cut(steps: list[str]) -> str:
    while len(" ".join(steps)) > MAX_LENGTH:
        steps.pop()
    return " ".join(steps)
