"""``wearon doctor``: each check on real servers, well and broken."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis import Redis

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.queue.checkup import findings
from adapters.storage.local import LocalPictureStorage
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from config.doctor import machine, round_trip
from config.options import Storage
from config.settings import Settings
from domain.doctor import Level
from domain.picture_ports import Picture
from domain.sessions import StoredPicture
from tests.support.cli import new_shop, wearon
from tests.support.clock import START

SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the environment in which the tests run."""
    for name in ("OPENAI_API_KEY", "REPLICATE_API_TOKEN", "DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def env(postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path: Path) -> dict[str, str]:
    """All that an API and a worker need."""
    return new_shop(postgres.url()).env | {
        "REDIS_URL": valkey.url,
        "WEARON_JWT_SECRET": f"jwt-{SECRET}",
        "WEARON_SIGNING_SECRET": f"signing-{SECRET}",
        "WEARON_DATA_DIR": str(tmp_path),
        "WEARON_GENERATOR": "local",
        "WEARON_HTTP_MAX_CONNECTIONS": "100",
    }


def examined(env: Mapping[str, str]) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the findings by subject."""
    result = wearon("doctor", "--json", env=dict(env))
    document = json.loads(result.stdout)
    assert document["ok"] == (result.exit_code == 0)
    assert "hunter2" not in result.output
    return result.exit_code, {each["subject"]: each for each in document["findings"]}


@contextmanager
def answering(replies: Mapping[str, tuple[int, bytes]]) -> Iterator[tuple[str, list[Any]]]:
    """A server with one reply for each path; the URL, and the requests that it got."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, self.headers["Authorization"]))
            status, body = replies.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", requests
        finally:
            server.shutdown()
            thread.join()


def test_healthy_service(env: dict[str, str]) -> None:
    """Every part is named; the tests' role is a superuser, which is worth a warning."""
    code, found = examined(env)

    assert code == 0
    levels = {subject: finding["level"] for subject, finding in found.items()}
    assert levels.pop("role") == "warning"
    assert levels.pop("disk") in {"ok", "warning"}
    assert levels.keys() >= {
        "settings", "database", "database clock", "migrations", "privileges", "redis",
        "redis clock", "redis memory", "redis writes", "redis persistence", "storage", "open files",
    }  # fmt: skip
    assert set(levels.values()) == {"ok"}


def test_findings_are_lines(env: dict[str, str]) -> None:
    """For people: the level, the part, a sentence; below that what to do."""
    result = wearon("doctor", env=env)

    assert result.exit_code == 0
    assert "ok       storage            A picture was written, read and deleted.\n" in result.stdout
    assert "docs/database.md" in result.stdout
    assert "hunter2" not in result.output


def test_check_that_fails_stops_no_other(env: dict[str, str], tmp_path: Path) -> None:
    """Neither server is there, and the folder is none: three failures, and the rest is checked."""
    (tmp_path / "pictures").write_text("in the way")

    code, found = examined(
        env
        | {
            "DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x",
            "REDIS_URL": "redis://:hunter2@127.0.0.1:1/0",
        }
    )

    assert code == 1
    failures = {name for name, each in found.items() if each["level"] == "failed"}
    assert failures >= {"database", "migrations", "redis", "storage"}
    assert found["database"]["sentence"] == "The database does not answer: connection refused."
    assert found["redis"]["sentence"] == "Redis does not answer: connection refused."
    assert found["settings"]["level"] == "ok"


def test_missing_settings_are_findings(env: dict[str, str]) -> None:
    """Each by its name; what is set is checked all the same."""
    code, found = examined({"DATABASE_URL": env["DATABASE_URL"], "WEARON_DATA_DIR": "/nowhere"})

    result = wearon("doctor", env={"DATABASE_URL": env["DATABASE_URL"]})
    assert code == result.exit_code == 1
    assert found["migrations"]["level"] == "ok"
    for name in ("REDIS_URL", "WEARON_JWT_SECRET", "WEARON_SIGNING_SECRET", "WEARON_GENERATOR"):
        assert f"{name}: must be set" in result.stdout


def test_wrong_setting_is_a_finding() -> None:
    """Nothing else can be checked then."""
    code, found = examined({"WEARON_PORT": "hunter2"})

    assert code == 1
    assert found.keys() == {"settings"}
    assert found["settings"]["sentence"].startswith("WEARON_PORT: must be an integer")


def test_empty_database_needs_migrations(env: dict[str, str], postgres: EmbeddedPostgres) -> None:
    """A schema without our tables."""
    database = Database(postgres.url(), limits=DatabaseLimits())

    async def prepare() -> None:
        await database.fetch("CREATE SCHEMA IF NOT EXISTS empty")
        await database.close()

    asyncio.run(prepare())

    code, found = examined(env | {"DATABASE_URL": f"{postgres.url()}&search_path=empty"})

    assert code == 1
    assert found["migrations"]["sentence"] == "The database is empty: run `wearon migrate`."
    assert found["database"]["level"] == "ok"


def test_role_without_privileges(env: dict[str, str], postgres: EmbeddedPostgres) -> None:
    """How many are missing, and the first of them."""
    sql = "DO $$ BEGIN CREATE ROLE poor; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    database = Database(postgres.url(), limits=DatabaseLimits())

    async def prepare() -> None:
        await database.fetch(sql)
        await database.fetch("GRANT poor TO CURRENT_USER")
        await database.close()

    asyncio.run(prepare())

    code, found = examined(env | {"DATABASE_URL": f"{postgres.url()}&options=-c%20role%3Dpoor"})

    assert code == 1
    assert found["role"]["sentence"] == "poor is no superuser."
    assert "privilege(s), first INSERT on api_keys." in found["privileges"]["sentence"]


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [
        (200, "ok", "accepts the key and knows the model gpt-image-1.5."),
        (401, "failed", "answers 401"),
        (404, "warning", "answers 404"),
        (429, "warning", "answers 429"),
        (500, "failed", "answers 500"),
        (302, "failed", "answers 302"),
    ],
)
def test_openai_is_asked_for_its_model(
    status: int, level: str, words: str, env: dict[str, str]
) -> None:
    """With the key, by a call that costs nothing."""
    with answering({"/v1/models/gpt-image-1.5": (status, b"{}")}) as (url, requests):
        _, found = examined(
            env
            | {
                "WEARON_ENVIRONMENT": "development",
                "WEARON_GENERATOR": "openai",
                "OPENAI_API_KEY": f"sk-{SECRET}",
                "WEARON_OPENAI_BASE_URL": url,
            }
        )

    assert requests == [("/v1/models/gpt-image-1.5", f"Bearer sk-{SECRET}")]
    assert found["provider"]["level"] == level
    assert words in found["provider"]["sentence"]


def test_replicate_is_asked_for_its_model(env: dict[str, str]) -> None:
    """Without the version."""
    with answering({"/v1/models/google/nano-banana": (200, b"{}")}) as (url, requests):
        _, found = examined(
            env
            | {
                "WEARON_ENVIRONMENT": "development",
                "WEARON_GENERATOR": "replicate",
                "REPLICATE_API_TOKEN": f"r8-{SECRET}",
                "WEARON_REPLICATE_BASE_URL": url,
                "WEARON_REPLICATE_MODEL": f"google/nano-banana:{'0' * 64}",
            }
        )

    assert requests == [("/v1/models/google/nano-banana", f"Bearer r8-{SECRET}")]
    assert found["provider"]["level"] == "ok"


def test_provider_that_is_not_there(env: dict[str, str]) -> None:
    """The cause instead of the sentence for customers."""
    code, found = examined(
        env
        | {
            "WEARON_ENVIRONMENT": "development",
            "WEARON_GENERATOR": "openai",
            "OPENAI_API_KEY": f"sk-{SECRET}",
            "WEARON_OPENAI_BASE_URL": "http://127.0.0.1:1",
        }
    )

    assert code == 1
    assert found["provider"]["sentence"].startswith("No answer: provider connect")


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((200, b'{"keys": []}'), "The key set has no usable key."),
        ((200, b"<html>"), "not a key set: "),
        ((503, b""), "status 503."),
    ],
)
def test_user_keys_that_are_not_usable(
    reply: tuple[int, bytes], sentence: str, env: dict[str, str]
) -> None:
    """The identity provider answers, but not with keys."""
    with answering({"/jwks": reply}) as (url, _):
        code, found = examined(
            env | {"WEARON_ENVIRONMENT": "development", "WEARON_JWT_JWKS_URL": f"{url}/jwks"}
        )

    assert code == 1
    assert found["user keys"]["sentence"].startswith(sentence)


@pytest.mark.parametrize(
    ("info", "subject", "level"),
    [
        ({}, "redis memory", Level.OK),
        ({"maxmemory_policy": "allkeys-lru"}, "redis memory", Level.WARNING),
        ({"maxmemory": 100, "used_memory": 89}, "redis memory", Level.OK),
        ({"maxmemory": 100, "used_memory": 90}, "redis memory", Level.WARNING),
        ({"role": "slave"}, "redis role", Level.FAILED),
        ({"rdb_last_bgsave_status": "err"}, "redis persistence", Level.WARNING),
        ({"rdb_last_bgsave_status": "ok", "aof_enabled": 1}, "redis persistence", Level.OK),
    ],
)
def test_what_redis_tells_of_itself(info: dict[str, Any], subject: str, level: Level) -> None:
    """By INFO; a server that tells less is not suspected."""
    levels = {finding.subject: finding.level for finding in findings(info)}

    assert levels[subject] is level


def test_policy_of_a_real_server(env: dict[str, str], valkey: EmbeddedValkey) -> None:
    """A finding as long as it may drop the list."""
    configure(valkey, "allkeys-lru")
    try:
        _, found = examined(env)
    finally:
        configure(valkey, "noeviction")

    assert found["redis memory"]["level"] == "warning"
    assert "allkeys-lru" in found["redis memory"]["sentence"]


def configure(valkey: EmbeddedValkey, policy: str) -> None:
    with Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory-policy", policy)


def signer() -> UrlSigner:
    return UrlSigner(
        base_url="http://127.0.0.1", secret=b"s" * 32, lifetime=timedelta(hours=1),
        clock=lambda: START,
    )  # fmt: skip


def test_storage_is_left_as_it_was(tmp_path: Path) -> None:
    """The picture that was written is deleted again."""
    storage = LocalPictureStorage(tmp_path, signer=signer())

    (found,) = asyncio.run(round_trip(storage))

    assert found.level is Level.OK
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class ForgetfulStorage(InMemoryPictureStorage):
    """Keeps other bytes than it is given."""

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        return await super().save(
            prefix, Picture(data=picture.data[:-1], media_type=picture.media_type)
        )


def test_storage_that_changes_bytes_fails() -> None:
    """A proxy in between may."""
    (found,) = asyncio.run(round_trip(ForgetfulStorage(signer=signer())))

    assert (found.level, found.sentence) == (
        Level.FAILED, "The bytes that were read are others.",
    )  # fmt: skip


def test_limits_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few descriptors and a full disk are worth a warning; a bucket has no disk here."""
    here = Settings(http_max_connections=1_000, data_dir=tmp_path)
    monkeypatch.setattr("config.doctor.resource.getrlimit", lambda _: (100, 1_024))
    monkeypatch.setattr("config.doctor._LEAST_FREE_BYTES", 10**18)

    local = {each.subject: each.level for each in machine(here)}
    bucket = {each.subject for each in machine(replace(here, storage=Storage.S3))}

    assert local == {"open files": Level.WARNING, "disk": Level.WARNING}
    assert bucket == {"open files"}
