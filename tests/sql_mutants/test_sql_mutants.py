"""A sample of the mutants of the SQL, on PostgreSQL."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from tests.contracts.backends import PostgresBackend
from tests.sql_mutants.boundary import intercepted, sent_by_product
from tests.sql_mutants.state import REPOSITORY

SECONDS = 120.0


def run(tmp_path: Path, *arguments: str) -> tuple[int, list[int], str]:
    """The exit code; how many mutants, how many were caught, equivalent, survived; the output."""
    options = ["--workers=1", f"--state={tmp_path / 'state.json'}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.sql_mutants", *options, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    total = re.search(r"^all +(\d+) +(\d+) +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    numbers = [int(number) for number in total.groups()] if total else []
    return done.returncode, numbers, done.stdout + done.stderr


def test_a_sample_is_caught(tmp_path: Path) -> None:
    """Guards of a statement, of a CHECK, of a trigger and of a function."""
    suites = ("tests/contracts/test_provider_job.py", "tests/adapters/test_sql_guards.py")
    pattern = "|".join(
        (
            "SET provider_job = ",
            "constraint session_matches_kind",
            "trigger session_begins_queued .* without new.(confirmed|refunded)",
            "function require_refund: .* IF without (NOT )?EXISTS",
        )
    )

    exit_code, numbers, output = run(tmp_path, *suites, f"--only={pattern}", "--sample=7")

    assert (exit_code, numbers[1:]) == (0, [numbers[0], 0, 0]), output
    assert numbers[0] >= 5


def test_a_suite_that_never_goes_red_is_reported(tmp_path: Path) -> None:
    """Here the suite records a job and asserts nothing."""
    exit_code, numbers, output = run(
        tmp_path, "tests/sql_mutants/blind.py", "--only=SET provider_job = "
    )

    assert (exit_code, numbers) == (1, [3, 0, 0, 3]), output
    assert "+    WHERE id = $1 AND status = 'processing' AND (attempt = $2 OR true)" in output


@pytest.mark.anyio
async def test_statements_of_the_product_and_of_tests_are_told_apart(
    postgres: EmbeddedPostgres,
) -> None:
    """Through whatever classes they are sent."""
    sent: dict[str, bool] = {}

    def intercept(sql: str, arguments: tuple[object, ...]) -> tuple[str, tuple[object, ...]]:
        sent[sql] = sent_by_product()
        return sql, arguments

    database = Database(postgres.url(), limits=DatabaseLimits())
    backend = PostgresBackend(database)
    with intercepted(intercept):
        await backend.empty()
        await backend.queued()
        async with database.transaction() as connection:
            await connection.fetchval("SELECT 1")
    await database.close()

    of_tests = {sql for sql, by_product in sent.items() if not by_product}
    assert "SELECT 1" in of_tests
    assert [sql for sql in of_tests if sql.strip().startswith("TRUNCATE")]
    assert [sql for sql in sent.keys() - of_tests if "INSERT INTO generation_sessions" in sql]
    assert not [sql for sql in of_tests if "INSERT" in sql]
