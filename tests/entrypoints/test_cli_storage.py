"""``wearon storage``: what operators set up at the picture storage."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from entrypoints.cli import main

S3 = {
    "WEARON_STORAGE": "s3",
    "WEARON_S3_BUCKET": "pictures",
    "WEARON_PUBLIC_URL": "https://api.example/wearon",
}


def wearon(*arguments: str, **env: str) -> Any:
    return CliRunner().invoke(main, arguments, env=S3 | env)


def origins(*arguments: str, **env: str) -> list[str]:
    """Those of the only rule."""
    result = wearon("storage", "cors", "--json", *arguments, **env)
    assert result.exit_code == 0, result.output
    (rule,) = json.loads(result.stdout)["CORSRules"]
    assert rule["AllowedMethods"] == ["GET", "HEAD", "PUT"]
    assert rule["AllowedHeaders"] == ["content-type"]
    allowed: list[str] = rule["AllowedOrigins"]
    return allowed


@pytest.fixture
def stores(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database with two stores."""

    async def run(*statements: str) -> None:
        database = Database(postgres.url(), limits=DatabaseLimits())
        try:
            for statement in ("DELETE FROM stores", *statements):
                await database.fetch(statement)
        finally:
            await database.close()

    pages = "https://a.example,https://app.example"
    add = "INSERT INTO stores (id, name, origins) VALUES"
    asyncio.run(run(f"{add} ('a', 'a', '{{{pages}}}'), ('b', 'b', DEFAULT)"))
    yield postgres.url()
    asyncio.run(run())


def test_rule_has_the_origins_of_settings_and_stores(stores: str) -> None:
    """Each once, and that of the API itself."""
    found = origins(DATABASE_URL=stores, WEARON_ORIGINS="https://App.example/, http://b.example:80")

    assert found == [
        "http://b.example", "https://a.example", "https://api.example", "https://app.example"
    ]  # fmt: skip


def test_any_origin_needs_no_database() -> None:
    """Asked for, or because users' tokens may be used from all pages."""
    assert origins("--any-origin") == ["*"]
    assert origins(WEARON_ENVIRONMENT="development") == ["*"]


def test_way_to_apply_the_rule_is_shown() -> None:
    """With bucket and endpoint of the settings."""
    result = wearon(
        "storage", "cors", "--any-origin", WEARON_S3_ENDPOINT="https://r2.example", COLUMNS="200"
    )

    assert result.stdout.splitlines() == [
        "Web pages that may use the bucket's links:",
        "  *",
        "",
        "To apply this:",
        "  wearon storage cors --json --any-origin > cors.json",
        "  aws s3api put-bucket-cors --bucket pictures --cors-configuration file://cors.json"
        " --endpoint-url https://r2.example",
    ]


def test_other_storages_have_no_bucket() -> None:
    """The API itself serves their links, to all pages."""
    result = wearon("storage", "cors", WEARON_STORAGE="local")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: WEARON_STORAGE: only `s3` has a bucket")
