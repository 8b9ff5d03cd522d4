"""Mutants of the statements that the adapters send, and of the schema after all migrations."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import asyncpg

from tests.sql_mutants.splitting import Drop, drops

MAX_AMBIGUOUS = 10
"""Bound on the columns that a dropped USING leaves ambiguous in one statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """``before`` and ``after`` are texts of one statement, or of one definition in the schema.

    ``ddl``: the changes to the schema; empty for a statement. ``objects``: the tables that a test
    of this guard writes, or the function that it calls; empty for a statement.
    """

    place: str
    kind: str
    dropped: str
    before: str
    after: str
    ddl: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Names the change, independent of the place of the text."""
        text = "\0".join((self.before, self.after, *self.ddl))
        return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        return f"{self.place}: {self.kind} without {' '.join(self.dropped.split())}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A mutant that could never run, because PostgreSQL does not accept it."""

    mutant: Mutant
    message: str


def statement_mutants(place: str, sql: str) -> Iterator[tuple[Mutant, Drop]]:
    for drop in drops(sql):
        yield (
            Mutant(
                place=place,
                kind=drop.kind,
                dropped=drop.dropped,
                before=sql,
                after=drop.applied_to(sql),
            ),
            drop,
        )


Chosen = Callable[[Mutant], bool]


async def accepted(
    connection: asyncpg.Connection, place: str, sql: str, chosen: Chosen
) -> tuple[list[Mutant], list[Refused]]:
    """Mutants of a statement, by whether the server can plan them."""
    mutants, refused = [], []
    for mutant, drop in statement_mutants(place, sql):
        if not chosen(mutant):
            continue
        try:
            after = await _planned(connection, mutant.after, drop.table)
        except asyncpg.PostgresError as error:
            refused.append(Refused(mutant=mutant, message=str(error)))
        else:
            mutants.append(replace(mutant, after=after))
    return mutants, refused


async def _planned(connection: asyncpg.Connection, sql: str, table: str | None) -> str:
    """The statement, with a table before each column that a dropped USING left ambiguous."""
    for _ in range(MAX_AMBIGUOUS):
        try:
            await _plan(connection, sql)
        except asyncpg.AmbiguousColumnError as error:
            if table is None or error.position is None:
                raise
            place = int(error.position) - 1 - len(_PREPARE)
            sql = f"{sql[:place]}{table}.{sql[place:]}"
        else:
            return sql
    raise ValueError(f"more than {MAX_AMBIGUOUS} ambiguous columns: {sql}")


_PREPARE = "PREPARE mutant AS "


async def _plan(connection: asyncpg.Connection, sql: str) -> None:
    count = max((int(number) for number in re.findall(r"\$(\d+)", sql)), default=0)
    arguments = f"({', '.join(['NULL'] * count)})" if count else ""
    await connection.execute(_PREPARE + sql)
    try:
        await connection.execute(f"EXPLAIN EXECUTE mutant{arguments}")
    finally:
        await connection.execute("DEALLOCATE mutant")


class _Undone(Exception):
    """Ends a transaction that is not to be committed."""


async def schema_mutants(
    connection: asyncpg.Connection, chosen: Chosen
) -> tuple[list[Mutant], list[Refused]]:
    """Mutants of constraints, triggers, functions and unique indexes, by whether the server accepts
    them."""
    mutants, refused = [], []
    everything = [
        *_of_constraints(await connection.fetch(_CONSTRAINTS)),
        *_of_triggers(await connection.fetch(_TRIGGERS)),
        *_of_functions(await connection.fetch(_FUNCTIONS)),
        *_of_indexes(await connection.fetch(_INDEXES)),
    ]
    for mutant in filter(chosen, everything):
        try:
            async with connection.transaction():
                for sql in mutant.ddl:
                    await connection.execute(sql)
                raise _Undone
        except _Undone:
            mutants.append(mutant)
        except asyncpg.PostgresError as error:
            refused.append(Refused(mutant=mutant, message=str(error)))
    return mutants, refused


_CONSTRAINTS = """
    SELECT conname AS name, conrelid::regclass::text AS table, contype::text AS type,
        pg_get_constraintdef(oid) AS definition,
        confrelid::regclass::text AS other
    FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'u')
    ORDER BY 2, 1"""
_CONSTRAINT_KINDS = {"c": "CHECK", "f": "FOREIGN KEY", "u": "UNIQUE"}


def _of_constraints(rows: Iterable[asyncpg.Record]) -> Iterator[Mutant]:
    for row in rows:
        name, table, definition = row["name"], row["table"], row["definition"]
        drop_it = f"ALTER TABLE {table} DROP CONSTRAINT {name}"
        whole = Mutant(
            place=f"constraint {name} of {table}",
            kind=_CONSTRAINT_KINDS[row["type"]],
            dropped=definition,
            before=definition,
            after="",
            ddl=(drop_it,),
            objects=(table, row["other"]) if row["type"] == "f" else (table,),
        )
        yield whole
        for drop in drops(definition) if row["type"] == "c" else ():
            after = drop.applied_to(definition)
            add = f"ALTER TABLE {table} ADD CONSTRAINT {name} {after}"
            yield replace(
                whole, kind="CHECK", dropped=drop.dropped, after=after, ddl=(drop_it, add)
            )


_TRIGGERS = """
    SELECT tgname AS name, tgrelid::regclass::text AS table, pg_get_triggerdef(oid) AS definition
    FROM pg_trigger WHERE NOT tgisinternal ORDER BY 2, 1"""
_TRIGGER = re.compile(
    r"(?P<head>.* (?:BEFORE|AFTER) )(?P<events>.*?)"
    r"(?P<tail> ON .* FOR EACH (?:ROW|STATEMENT) )(?P<rest>.*)",
    re.DOTALL,
)


def _of_triggers(rows: Iterable[asyncpg.Record]) -> Iterator[Mutant]:
    for row in rows:
        name, table, definition = row["name"], row["table"], row["definition"]
        drop_it = f"DROP TRIGGER {name} ON {table}"
        whole = Mutant(
            place=f"trigger {name} on {table}",
            kind="TRIGGER",
            dropped=definition,
            before=definition,
            after="",
            ddl=(drop_it,),
            objects=(table,),
        )
        yield whole
        for kind, dropped, after in _changed_triggers(definition):
            yield replace(
                whole, kind=f"TRIGGER {kind}", dropped=dropped, after=after, ddl=(drop_it, after)
            )


def _changed_triggers(definition: str) -> Iterator[tuple[str, str, str]]:
    """Without one of its events, without one of the columns of UPDATE OF, and with less of a
    condition."""
    parts = _TRIGGER.fullmatch(definition)
    if parts is None:
        raise ValueError(f"cannot read {definition}")
    head, events, tail, rest = parts["head"], parts["events"], parts["tail"], parts["rest"]
    for event, others in _one_less(events.split(" OR ")):
        yield "event", event, f"{head}{' OR '.join(others)}{tail}{rest}"
    before, of, columns = events.partition("UPDATE OF ")
    for column, others in _one_less(columns.split(", ")) if of else ():
        yield "column", column, f"{head}{before}{of}{', '.join(others)}{tail}{rest}"
    for drop in drops(rest):
        yield drop.kind, drop.dropped, f"{head}{events}{tail}{drop.applied_to(rest)}"


def _one_less(items: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    if len(items) > 1:
        for item in items:
            yield item, [other for other in items if other != item]


_FUNCTIONS = """
    SELECT p.proname AS name, pg_get_functiondef(p.oid) AS definition,
        ARRAY (SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgfoid = p.oid
            UNION SELECT conrelid::regclass::text FROM pg_constraint
            WHERE contype = 'c' AND pg_get_constraintdef(oid) ~ ('\\m' || p.proname || '\\M')
            ) AS tables
    FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
    ORDER BY 1"""
_BODY = re.compile(r"\$function\$|\bBEGIN ATOMIC\b|\bRETURN\b")


def _of_functions(rows: Iterable[asyncpg.Record]) -> Iterator[Mutant]:
    for row in rows:
        definition: str = row["definition"]
        body = _BODY.search(definition)
        if body is None:
            raise ValueError(f"cannot read {definition}")
        start = body.end() if body[0].startswith("$") else body.start()
        end = definition.find("$function$", start)
        head, text, tail = (
            (definition[:start], definition[start:], "")
            if end < 0
            else (definition[:start], definition[start:end], definition[end:])
        )
        for drop in drops(text):
            after = head + drop.applied_to(text) + tail
            yield Mutant(
                place=f"function {row['name']}",
                kind=f"FUNCTION {drop.kind}",
                dropped=drop.dropped,
                before=definition,
                after=after,
                ddl=(after,),
                objects=(row["name"], *row["tables"]),
            )


_INDEXES = """
    SELECT i.indexrelid::regclass::text AS name, i.indrelid::regclass::text AS table,
        pg_get_indexdef(i.indexrelid) AS definition
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace = 'public'::regnamespace AND i.indisunique
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)
    ORDER BY 2, 1"""


def _of_indexes(rows: Iterable[asyncpg.Record]) -> Iterator[Mutant]:
    for row in rows:
        name, table, definition = row["name"], row["table"], row["definition"]
        drop_it = f"DROP INDEX {name}"
        whole = Mutant(
            place=f"index {name} on {table}",
            kind="UNIQUE INDEX",
            dropped=definition,
            before=definition,
            after="",
            ddl=(drop_it,),
            objects=(table,),
        )
        yield whole
        columns, where, condition = definition.partition(" WHERE ")
        for drop in drops(where + condition):
            after = columns + drop.applied_to(where + condition)
            yield replace(
                whole,
                kind=f"UNIQUE INDEX {drop.kind}",
                dropped=drop.dropped,
                after=after,
                ddl=(drop_it, after),
            )
