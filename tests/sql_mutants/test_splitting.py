"""Mutants drop each part of each condition of the SQL, and nothing else."""

import pytest

from tests.sql_mutants.splitting import drops
from tests.sql_mutants.tokens import Group, parse


def dropped(sql: str) -> list[tuple[str, str]]:
    return [(drop.kind, drop.dropped) for drop in drops(sql)]


def mutants(sql: str) -> list[str]:
    return [drop.applied_to(sql) for drop in drops(sql)]


def test_conjuncts_are_dropped_one_at_a_time() -> None:
    """The others stay, and so does each parameter."""
    assert mutants("SELECT a FROM t WHERE a = $1 AND b < $2 ORDER BY a LIMIT 1") == [
        "SELECT a FROM t WHERE (a = $1 OR true) AND b < $2 ORDER BY a LIMIT 1",
        "SELECT a FROM t WHERE a = $1 AND (b < $2 OR true) ORDER BY a LIMIT 1",
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM t WHERE a",
        "SELECT FROM t JOIN u ON a",
        "SELECT FROM t GROUP BY b HAVING a",
        "SELECT count(*) FILTER (WHERE a) FROM t",
        "SELECT FROM t WHERE a FOR UPDATE SKIP LOCKED",
        "UPDATE t SET b = 1 WHERE a RETURNING b",
        "INSERT INTO t SELECT FROM u WHERE a RETURNING b",
    ],
)
def test_a_lone_condition_is_dropped(sql: str) -> None:
    """In each clause that has one."""
    assert mutants(sql) == [
        sql.replace(" a)", " (a OR true))")
        if " a)" in sql
        else sql.replace("WHERE a", "WHERE (a OR true)")
        .replace("ON a", "ON (a OR true)")
        .replace("HAVING a", "HAVING (a OR true)")
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a, b FROM t ORDER BY a LIMIT 1",
        "SELECT FROM t LEFT JOIN u ON true",
        "SELECT DISTINCT ON (a) a FROM t",
        "SELECT CASE a WHEN 1 THEN 2 ELSE 3 END FROM t",
        "SELECT row_number() OVER (PARTITION BY a, b IS NULL ORDER BY c) FROM t",
        "INSERT INTO t (a) VALUES ($1)",
        "UPDATE t SET a = b, c = d",
        "SELECT ' WHERE a AND b ' -- WHERE a AND b",
        'SELECT t."where" /* AND b */ FROM t',
        "SELECT t.where, t.and FROM t",
    ],
)
def test_lists_values_and_comments_are_no_conditions(sql: str) -> None:
    """Nor are quoted texts, names, or the value of a simple CASE."""
    assert mutants(sql) == []


def test_alternatives_are_dropped_apart() -> None:
    """And the whole condition, if it has only alternatives."""
    assert mutants("SELECT FROM t WHERE a OR b") == [
        "SELECT FROM t WHERE (a AND false) OR b",
        "SELECT FROM t WHERE ((a OR b) OR true)",
        "SELECT FROM t WHERE a OR (b AND false)",
    ]


def test_nested_conditions_are_dropped() -> None:
    """At each depth, in parentheses, subqueries and functions."""
    sql = "SELECT FROM t WHERE a AND (b OR (c AND NOT d)) AND EXISTS (SELECT FROM u WHERE e)"

    assert [text for _, text in dropped(sql)] == [
        "a",
        "(b OR (c AND NOT d))",
        "b",
        "(c AND NOT d)",
        "c",
        "NOT d",
        "EXISTS (SELECT FROM u WHERE e)",
        "e",
    ]


def test_a_chain_in_parentheses_is_one_chain() -> None:
    """PostgreSQL prints ``a OR b OR c`` this way: the inner pair is no part of its own."""
    assert dropped("CHECK (((a OR b) OR c))") == [("CHECK", "a"), ("CHECK", "b"), ("CHECK", "c")]
    assert dropped("CHECK (((a AND b) AND c))") == [("CHECK", "a"), ("CHECK", "b"), ("CHECK", "c")]


def test_the_and_of_between_is_no_conjunction() -> None:
    """Neither does it hide the next one."""
    assert [text for _, text in dropped("SELECT FROM t WHERE a BETWEEN 1 AND 2 AND b")] == [
        "a BETWEEN 1 AND 2",
        "b",
    ]


def test_the_conditions_of_case_are_dropped() -> None:
    """Without its condition a branch is never taken."""
    sql = "SELECT CASE WHEN a AND b THEN 1 WHEN c THEN 2 END FROM t"

    assert mutants(sql) == [
        "SELECT CASE WHEN (a OR true) AND b THEN 1 WHEN c THEN 2 END FROM t",
        "SELECT CASE WHEN (a AND b AND false) THEN 1 WHEN c THEN 2 END FROM t",
        "SELECT CASE WHEN a AND (b OR true) THEN 1 WHEN c THEN 2 END FROM t",
        "SELECT CASE WHEN a AND b THEN 1 WHEN (c AND false) THEN 2 END FROM t",
    ]


def test_a_branch_with_alternatives_is_dropped_as_a_whole() -> None:
    """``false`` belongs to all of them."""
    assert "SELECT CASE WHEN ((a OR b) AND false) THEN 1 END" in mutants(
        "SELECT CASE WHEN a OR b THEN 1 END"
    )


def test_case_is_one_operand() -> None:
    """The conditions in it are dropped by themselves."""
    assert dropped("SELECT FROM t WHERE a AND CASE b WHEN 1 THEN c OR d ELSE e END") == [
        ("WHERE", "a"),
        ("WHERE", "CASE b WHEN 1 THEN c OR d ELSE e END"),
        ("CASE of a value", "c"),
        ("CASE of a value", "d"),
    ]


@pytest.mark.parametrize("operator", ["=", "<>", "<", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"])
def test_pairs_of_compared_rows_are_dropped(operator: str) -> None:
    """One at a time."""
    sql = f"SELECT FROM t WHERE x AND (a, b, c) {operator} (d, e, f(g, h))"

    assert set(mutants(sql)) >= {
        f"SELECT FROM t WHERE x AND ((b, c) {operator} (e, f(g, h)))",
        f"SELECT FROM t WHERE x AND ((a, c) {operator} (d, f(g, h)))",
        f"SELECT FROM t WHERE x AND ((a, b) {operator} (d, e))",
    }


def test_a_compared_row_keeps_its_parameters() -> None:
    """A driver counts them. Of two pairs a comparison is left, with or without ROW."""
    assert mutants("SELECT FROM t WHERE ROW(a, b) < ROW($1, $2)") == [
        "SELECT FROM t WHERE (ROW(a, b) < ROW($1, $2) OR true)",
        "SELECT FROM t WHERE (b < $2 AND (a = $1 OR true))",
        "SELECT FROM t WHERE (a < $1 AND (b = $2 OR true))",
    ]


def test_columns_of_using_are_dropped() -> None:
    """One at a time, with the table that qualifies the name from then on."""
    sql = "SELECT FROM (SELECT) AS t LEFT JOIN u USING (a, b) JOIN v USING (c)"

    assert [(drop.dropped, drop.text, drop.table) for drop in drops(sql)] == [
        ("a", "USING (b)", "t"),
        ("b", "USING (a)", "t"),
        ("c", "ON true", "u"),
    ]


def test_targets_of_on_conflict_are_dropped() -> None:
    """The target, the whole clause, and the condition of the index."""
    sql = "INSERT INTO t (a) VALUES ($1) ON CONFLICT (a) WHERE b DO NOTHING RETURNING a"

    assert {drop.kind for drop in drops(sql)} == {"ON CONFLICT"}
    assert sorted(" ".join(text.split()) for text in mutants(sql)) == [
        "INSERT INTO t (a) VALUES ($1) ON CONFLICT (a) WHERE (b OR true) DO NOTHING RETURNING a",
        "INSERT INTO t (a) VALUES ($1) ON CONFLICT DO NOTHING RETURNING a",
        "INSERT INTO t (a) VALUES ($1) RETURNING a",
    ]


def test_condition_of_an_update_on_conflict_is_dropped() -> None:
    """It is one of the update, not of the target."""
    sql = "INSERT INTO t VALUES ($1) ON CONFLICT (a) DO UPDATE SET b = 1 WHERE c RETURNING a"

    assert dropped(sql)[-1] == ("WHERE", "c")


def test_guards_of_a_trigger_are_dropped() -> None:
    """The conditions of IF, as a whole and in part, and what is assigned to the new row."""
    body = """
    DECLARE taken boolean := OLD.a AND NEW.a;
    BEGIN
        IF taken OR NEW.b > 1 THEN
            RAISE EXCEPTION 'no %', NEW.b USING ERRCODE = 'restrict_violation';
        ELSIF NOT taken THEN
            NEW.c := coalesce(NEW.c, now());
        END IF;
        RETURN NEW;
    END"""

    assert dropped(body) == [
        ("ASSIGNMENT", "OLD.a"),
        ("ASSIGNMENT", "NEW.a"),
        ("IF", "taken"),
        ("IF", "taken OR NEW.b > 1"),
        ("IF", "NEW.b > 1"),
        ("IF", "NOT taken"),
        ("ASSIGNMENT", "NEW.c := coalesce(NEW.c, now())"),
    ]
    assert mutants(body)[-1] == body.replace("NEW.c := coalesce(NEW.c, now());", "NULL;")


def test_the_condition_of_a_trigger_is_dropped() -> None:
    """As a whole, so that the trigger always fires, and in part."""
    assert dropped("WHEN ((old.a <> 1)) EXECUTE FUNCTION refuse('a AND b')") == [
        ("WHEN", "((old.a <> 1))")
    ]
    assert [text for _, text in dropped("WHEN (((old.a) AND (new.b)))")] == [
        "(((old.a) AND (new.b)))",
        "(old.a)",
        "(new.b)",
    ]


def test_groups_are_nested() -> None:
    """Parentheses, brackets and CASE, but none in a text or a comment."""
    (group, *_) = parse("(a[1] || CASE WHEN ')' THEN $$ ( $$ END /* ( */) -- )")

    assert isinstance(group, Group)
    assert [inner.opening for inner in group.nodes if isinstance(inner, Group)] == ["[", "case"]


@pytest.mark.parametrize("sql", ["SELECT (a", "SELECT a)", "SELECT CASE a", "SELECT (a]"])
def test_an_unreadable_text_is_an_error(sql: str) -> None:
    """It is not taken for a text without guards."""
    with pytest.raises(ValueError, match=r"has no|nothing is open"):
        parse(sql)
