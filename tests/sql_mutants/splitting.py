"""Finds the guards in SQL and PL/pgSQL, and an edit that drops each part of them.

An operand of AND is dropped as ``(operand OR true)`` and an operand of OR as ``(operand AND
false)``: the planner removes both, while the parameters in them keep their places and types.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.sql_mutants.tokens import Group, Node, parse

# fmt: off
_CLAUSES = frozenset({
    "select", "from", "where", "on", "having", "when", "then", "else", "end", "returning",
    "group", "order", "limit", "for", "window", "union", "except", "intersect", "set",
    "values", "using", "join", "cross", "left", "right", "full", "inner", "natural",
    "lateral", "as", "with", "insert", "update", "delete", "into", "do", "conflict", "if",
    "elsif", "return", "begin", "declare", "check", "perform", "execute", "raise", "by", ",",
    ";", ":=",
})
# fmt: on
_SIDES = frozenset({"left", "right", "full", "inner", "outer", "cross", "natural"})
_COMPARISONS = frozenset({"=", "<>", "!=", "<", "<=", ">", ">="})
_CONDITIONS = frozenset({"where", "on", "having", "when", "if", "elsif"})
_KINDS = {
    **{word: word.upper() for word in ("where", "on", "having", "when", "return", "check", "set")},
    "if": "IF",
    "elsif": "IF",
}
_ACCEPTS = frozenset({"WHERE", "FILTER", "ON", "HAVING", "WHEN", "ON CONFLICT"})
"""Without a condition, all pass."""
_REFUSES = frozenset({"CASE", "IF"})
"""Without a condition, the branch is never taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """An edit of a text. ``table``: qualifies the column names that it leaves ambiguous."""

    kind: str
    dropped: str
    start: int
    end: int
    text: str
    table: str | None = None

    def applied_to(self, sql: str) -> str:
        return sql[: self.start] + self.text + sql[self.end :]


@dataclass(frozen=True, slots=True)
class _Region:
    """The nodes between two keywords, and the clause that they belong to."""

    kind: str
    begins_clause: bool
    nodes: tuple[Node, ...]


def drops(sql: str) -> list[Drop]:
    """In the order of the text."""
    found = _Finder(sql).in_list(parse(sql), "SELECT")
    return sorted(found, key=lambda drop: (drop.start, drop.end))


@dataclass(frozen=True, slots=True)
class _Finder:
    sql: str

    def in_list(self, nodes: Sequence[Node], kind: str) -> Iterator[Drop]:
        yield from self._conflicts(nodes)
        yield from self._join_columns(nodes)
        yield from self._assignments(nodes)
        for region in _regions(nodes, kind):
            yield from self._operands(region)
            yield from self._compared_rows(region)
            for place, node in enumerate(region.nodes):
                if isinstance(node, Group):
                    is_filter = place > 0 and region.nodes[place - 1].name == "filter"
                    yield from self.in_list(node.nodes, _kind_in(node, is_filter, region.kind))

    def _operands(self, region: _Region) -> Iterator[Drop]:
        if not region.nodes or region.kind == "SET":
            return
        alternatives = _split(region.nodes, "or")
        is_conjunction = len(alternatives) == 1 and len(_split(region.nodes, "and")) > 1
        if region.begins_clause:
            if region.kind in _ACCEPTS and not is_conjunction:
                yield from self._neutral(region.kind, region.nodes, "OR true")
            elif region.kind in _REFUSES:
                yield from self._neutral(region.kind, region.nodes, "AND false")
        for alternative in alternatives:
            if len(alternatives) > 1 and not _is_chain(alternative, "or"):
                yield from self._neutral(region.kind, alternative, "AND false")
            operands = _split(alternative, "and")
            for operand in operands if len(operands) > 1 else ():
                if not _is_chain(operand, "and"):
                    yield from self._neutral(region.kind, operand, "OR true")

    def _neutral(self, kind: str, nodes: Sequence[Node], neutral: str) -> Iterator[Drop]:
        if not nodes:
            return
        start, end = nodes[0].start, nodes[-1].end
        text = self.sql[start:end]
        if text.lower() in ("true", "false"):
            return
        inner = f"({text})" if len(_split(nodes, "or")) > 1 else text
        yield self._drop(kind, start, end, f"({inner} {neutral})")

    def _compared_rows(self, region: _Region) -> Iterator[Drop]:
        """Each pair of ``(a, b) = (c, d)``."""
        nodes = region.nodes
        for place, node in enumerate(nodes):
            length = _comparison_length(nodes, place)
            if length == 0 or not _is_row(node):
                continue
            after = place + 1 + length
            if nodes[after].name == "row":
                after += 1
            other = nodes[after]
            if not _is_row(other):
                continue
            lefts, rights = self._elements(node), self._elements(other)
            if len(lefts) != len(rights):
                continue
            operator = self.sql[nodes[place + 1].start : nodes[place + length].end]
            begins_with_row = place > 0 and nodes[place - 1].name == "row"
            start = nodes[place - 1].start if begins_with_row else node.start
            for number, (left, right) in enumerate(zip(lefts, rights, strict=True)):
                text = _comparison(_without(lefts, number), operator, _without(rights, number))
                if "$" in left + right:
                    text += f" AND ({left} = {right} OR true)"
                dropped = f"{left} {operator} {right}"
                yield Drop(
                    kind=region.kind, dropped=dropped, start=start, end=other.end, text=f"({text})"
                )

    def _elements(self, row: Node) -> list[str]:
        assert isinstance(row, Group)
        return [self._text(part) for part in _split(row.nodes, ",")]

    def _join_columns(self, nodes: Sequence[Node]) -> Iterator[Drop]:
        """Each column of ``JOIN ... USING (a, b)``."""
        for place, node in enumerate(nodes):
            if node.name != "using" or not isinstance(nodes[place + 1], Group):
                continue
            joins = [before for before in range(place) if nodes[before].name == "join"]
            if not joins:
                continue
            left = joins[-1] - 1
            while nodes[left].name in _SIDES:
                left -= 1
            if nodes[left - 1].name == "using":
                left -= 2
            columns = self._elements(nodes[place + 1])
            for number, column in enumerate(columns):
                rest = _without(columns, number)
                yield Drop(
                    kind="USING",
                    dropped=column,
                    start=node.start,
                    end=nodes[place + 1].end,
                    text=f"USING ({', '.join(rest)})" if rest else "ON true",
                    table=self.sql[nodes[left].start : nodes[left].end],
                )

    def _conflicts(self, nodes: Sequence[Node]) -> Iterator[Drop]:
        """The target of ON CONFLICT, and the whole clause."""
        for place in range(len(nodes) - 1):
            if (nodes[place].name, nodes[place + 1].name) != ("on", "conflict"):
                continue
            words = [node.name for node in nodes]
            do = words.index("do", place)
            ends = [i for i in range(do, len(words)) if words[i] == "returning"]
            last = (ends[0] if ends else len(nodes)) - 1
            if do > place + 2:
                yield self._drop("ON CONFLICT", nodes[place + 2].start, nodes[do - 1].end, "")
            yield self._drop("ON CONFLICT", nodes[place].start, nodes[last].end, "")

    def _assignments(self, nodes: Sequence[Node]) -> Iterator[Drop]:
        """``NEW.column := ...;`` in a trigger."""
        for place, node in enumerate(nodes):
            if node.name != "new" or [n.name for n in nodes[place + 3 : place + 4]] != [":="]:
                continue
            end = next(i for i in range(place, len(nodes)) if nodes[i].name == ";")
            yield self._drop("ASSIGNMENT", node.start, nodes[end - 1].end, "NULL")

    def _drop(self, kind: str, start: int, end: int, text: str) -> Drop:
        return Drop(kind=kind, dropped=self.sql[start:end], start=start, end=end, text=text)

    def _text(self, nodes: Sequence[Node]) -> str:
        return self.sql[nodes[0].start : nodes[-1].end]


def _kind_in(group: Group, is_filter: bool, kind: str) -> str:
    if is_filter:
        return "FILTER"
    if group.opening == "case":
        return "CASE" if group.nodes and group.nodes[0].name == "when" else "CASE of a value"
    return kind


def _regions(nodes: Sequence[Node], kind: str) -> Iterator[_Region]:
    """``kind``: the clause that the list is part of."""
    outer, begins_clause, start = kind, False, 0
    for place, node in enumerate([*nodes, None]):
        if node is not None and not _begins_clause(nodes, place):
            continue
        yield _Region(kind, begins_clause, tuple(nodes[start:place]))
        if node is not None and nodes[place].name != ",":
            kind, begins_clause = _clause(nodes, place, outer, kind)
        else:
            begins_clause = False
        start = place + 1


def _begins_clause(nodes: Sequence[Node], place: int) -> bool:
    node = nodes[place]
    before = nodes[place - 1].name if place else ""
    if node.name == "from" and before == "distinct":
        return False  # IS DISTINCT FROM
    return node.name in _CLAUSES


def _clause(nodes: Sequence[Node], place: int, outer: str, last: str) -> tuple[str, bool]:
    """The kind of the clause that begins here, after one of the kind ``last``, and whether a
    condition follows."""
    word = nodes[place].name
    before = nodes[place - 1].name if place else ""
    after = nodes[place + 1].name if place + 1 < len(nodes) else ""
    if (before, word) in (("distinct", "on"), ("end", "if")):
        return "SELECT", False
    if (word, after) == ("on", "conflict"):
        return "ON CONFLICT", False
    belongs_to_outer = (
        word in ("then", "else")
        or (word == "where" and outer == "FILTER")
        or (word == "when" and outer.startswith("CASE"))
    )
    if belongs_to_outer:
        kind = outer
    elif last == "ON CONFLICT" and word in ("conflict", "where"):
        kind = last
    elif nodes[place].name == ":=":
        kind = "ASSIGNMENT"
    else:
        kind = _KINDS.get(word, "SELECT")
    return kind, word in _CONDITIONS and kind in _ACCEPTS | _REFUSES


def _split(nodes: Sequence[Node], separator: str) -> list[tuple[Node, ...]]:
    """Between the separators; the AND of ``BETWEEN a AND b`` is none."""
    parts: list[list[Node]] = [[]]
    between = False
    for node in nodes:
        if node.name == separator and not between:
            parts.append([])
        else:
            parts[-1].append(node)
        if node.name in ("between", "and"):
            between = node.name == "between"
    return [tuple(part) for part in parts]


def _is_chain(nodes: Sequence[Node], connective: str) -> bool:
    """Only ``(a OR b)``, or only ``(a AND b)``, of which each part is dropped by itself."""
    if len(nodes) != 1 or not isinstance(nodes[0], Group) or nodes[0].opening != "(":
        return False
    inner = nodes[0].nodes
    if connective == "and" and len(_split(inner, "or")) > 1:
        return False
    return len(_split(inner, connective)) > 1


def _is_row(node: Node) -> bool:
    return (
        isinstance(node, Group)
        and node.opening == "("
        and len(_split(node.nodes, ",")) > 1
        and not any(inner.name == "select" for inner in node.nodes)
    )


def _comparison_length(nodes: Sequence[Node], place: int) -> int:
    """The number of tokens in the comparison after ``place``; 0 if there is none."""
    words = tuple(node.name for node in nodes[place + 1 : place + 5])
    if len(words) < 2:
        return 0
    for operator in (("is", "distinct", "from"), ("is", "not", "distinct", "from")):
        if words[: len(operator)] == operator and place + 1 + len(operator) < len(nodes):
            return len(operator)
    return int(words[0] in _COMPARISONS)


def _comparison(lefts: Sequence[str], operator: str, rights: Sequence[str]) -> str:
    if len(lefts) == 1:
        return f"{lefts[0]} {operator} {rights[0]}"
    return f"({', '.join(lefts)}) {operator} ({', '.join(rights)})"


def _without(items: Sequence[str], number: int) -> list[str]:
    return [item for place, item in enumerate(items) if place != number]
