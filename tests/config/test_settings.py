"""Settings: what is not right is said, by the name of its variable and without its value."""

from datetime import timedelta
from pathlib import Path

import pytest
from rich.pretty import pretty_repr

from config.reference import env_example, markdown_table, variables
from config.settings import (
    SETTINGS,
    Environment,
    Queue,
    Settings,
    SettingsError,
    Store,
    load_settings,
    variable_of,
)

SECRET = "correct-horse-battery-staple-0123456789"
DEVELOPMENT = {"WEARON_ENVIRONMENT": "development"}


def problems_of(environ: dict[str, str]) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(SettingsError) as refusal:
        load_settings(environ)
    return str(refusal.value).splitlines()


def test_an_empty_environment_gives_the_defaults() -> None:
    """Nothing has to be set for the settings to load, and what they default to is production."""
    settings = load_settings({})

    assert settings == Settings()
    assert settings.environment is Environment.PRODUCTION
    assert (settings.store, settings.queue) == (Store.POSTGRES, Queue.REDIS)
    assert settings.pictures_dir == Path(".wearon/pictures")


@pytest.mark.parametrize("value", ["", "   "])
def test_an_empty_variable_counts_as_not_set(value: str) -> None:
    """`NAME=` in an environment file leaves every setting at its default."""
    environ = {variable.name: value for variable in variables()}

    assert load_settings(environ) == Settings()


def test_values_are_read_as_what_they_are() -> None:
    """Text becomes numbers, booleans, paths and options; space around it is not part of it."""
    settings = load_settings(
        DEVELOPMENT
        | {
            "DATABASE_URL": "postgres://db/wearon",
            "REDIS_URL": "rediss://cache:6380/1",
            "WEARON_PORT": " 8080 ",
            "WEARON_LEASE_SECONDS": "1.5",
            "WEARON_FETCH_ALLOW_LOOPBACK": "true",
            "WEARON_DATA_DIR": "/var/lib/pictures",
            "WEARON_QUEUE": "memory",
        }
    )

    assert settings.require("database_url") == "postgres://db/wearon"
    assert settings.require("redis_url") == "rediss://cache:6380/1"
    assert settings.port == 8080
    assert settings.duration("lease_seconds").total_seconds() == 1.5
    assert settings.fetch_allow_loopback is True
    assert settings.data_dir == Path("/var/lib/pictures")
    assert settings.queue is Queue.MEMORY


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("WEARON_ENVIRONMENT", "prod", "one of `development`, `production`"),
        ("WEARON_STORE", "mysql", "one of `postgres`, `memory`"),
        ("WEARON_QUEUE", "Redis", "one of `redis`, `memory`"),
        ("WEARON_STORAGE", "gcs", "one of `local`, `s3`, `memory`"),
        ("WEARON_S3_ENDPOINT", "minio:9000", "like `https://project.supabase.co/storage/v1/s3`"),
        ("WEARON_GENERATOR", "dall-e", "one of `local`, `openai`, `replicate`"),
        ("OPENAI_API_KEY", "two words", "like `sk-...`"),
        ("WEARON_OPENAI_BASE_URL", "api.openai.com", "like `https://gateway.example/v1`"),
        ("WEARON_OPENAI_BASE_URL", "https://", "like `https://gateway.example/v1`"),
        ("WEARON_OPENAI_BASE_URL", "https://key@host", "like `https://gateway.example/v1`"),
        ("WEARON_OPENAI_BASE_URL", "https://host/v1?a=b", "like `https://gateway.example/v1`"),
        ("WEARON_OPENAI_MODEL", "a model", "like `gpt-image-1.5`"),
        ("WEARON_OPENAI_QUALITY", "best", "one of `low`, `medium`, `high`, `auto`"),
        ("WEARON_OPENAI_OUTPUT_FORMAT", "gif", "one of `jpeg`, `png`, `webp`"),
        ("WEARON_OPENAI_INPUT_USD_PER_MILLION", "-1", "like `8`"),
        ("WEARON_OPENAI_INPUT_USD_PER_MILLION", "NaN", "like `8`"),
        ("WEARON_OPENAI_OUTPUT_USD_PER_MILLION", "1e3", "like `32`"),
        ("WEARON_OPENAI_OUTPUT_USD_PER_MILLION", "10000", "like `32`"),
        ("REPLICATE_API_TOKEN", "two words", "like `r8_...`"),
        ("WEARON_REPLICATE_BASE_URL", "replicate.com", "like `https://gateway.example/v1`"),
        ("WEARON_REPLICATE_BASE_URL", "https://key@host", "like `https://gateway.example/v1`"),
        ("WEARON_REPLICATE_MODEL", "nano-banana", "like `google/nano-banana`"),
        ("WEARON_REPLICATE_MODEL", "google/nano-banana:1", "like `google/nano-banana`"),
        ("WEARON_REPLICATE_MODEL", "a/../b", "like `google/nano-banana`"),
        ("WEARON_REPLICATE_IMAGE_FIELD", "image input", "like `image_input`"),
        ("WEARON_REPLICATE_TOTAL_SECONDS", "0", "a number above 0 to 86400"),
        ("WEARON_LOG_LEVEL", "loud", "one of `debug`, `info`, `warning`, `error`"),
        ("WEARON_LOG_FORMAT", "xml", "one of `json`, `console`"),
        ("DATABASE_URL", "mysql://db/x", "like `postgresql://user:password@host:5432/wearon`"),
        ("DATABASE_URL", "postgresql://", "like `postgresql://user:password@host:5432/wearon`"),
        ("REDIS_URL", "http://cache", "like `redis://:password@host:6379/0`"),
        ("WEARON_PUBLIC_URL", "ftp://wearon.example", "like `https://wearon.example`"),
        ("WEARON_PUBLIC_URL", "https://wearon.example/", "like `https://wearon.example`"),
        ("WEARON_PUBLIC_URL", "https://wearon.example?a=1", "like `https://wearon.example`"),
        ("WEARON_JWT_SECRET", "s" * 31, "32 characters or more"),
        ("WEARON_SIGNING_SECRET", "s" * 31, "32 characters or more"),
        ("WEARON_FETCH_ALLOW_LOOPBACK", "yes", "`true` or `false`"),
        ("WEARON_DATABASE_TRANSACTION_POOLER", "on", "`true` or `false`"),
        ("WEARON_DRAIN_SECONDS", "4.9", "a number from 5 to 86400"),
        ("WEARON_PUSH_AGAIN_SECONDS", "4.9", "a number from 5 to 86400"),
        ("WEARON_PICTURE_DAYS", "0", "a whole number from 1 to 36500"),
        ("WEARON_PICTURE_DAYS", "1.5", "a whole number from 1 to 36500"),
        ("WEARON_LOCAL_GENERATOR_SECONDS", "-1", "a number from 0 to 600"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(variable: str, value: str, rule: str) -> None:
    """The message names the variable and says what would be right."""
    assert problems_of({variable: value}) == [f"{variable}: must be {rule}"]


@pytest.mark.parametrize("value", ["many", "-1", "1000000000", "nan", "inf", "1e99", "null"])
def test_every_number_is_bounded(value: str) -> None:
    """What is no number, and what lies outside the bounds, is refused for every number."""
    numbers = [variable.name for variable in variables() if "number" in variable.allowed]

    problems = problems_of(dict.fromkeys(numbers, value))

    assert [problem.partition(":")[0] for problem in problems] == numbers
    assert len(numbers) > 15


def test_an_unknown_variable_is_refused() -> None:
    """A misspelt setting does not pass in silence; the nearest name is proposed."""
    problems = problems_of(
        {
            "WEARON_LEASE_SECOND": "5",
            "WEARON_DATABASE_URL": "postgresql://db/wearon",
            "WEARON_LEASE": "5",
            "WEARON_QQQQ": "1",
            "OTHER_PROGRAMS": "are none of our business",
        }
    )

    assert problems == [
        "WEARON_DATABASE_URL: no such setting; did you mean DATABASE_URL?"
        " (`wearon settings` lists all)",
        "WEARON_LEASE: no such setting; did you mean WEARON_LEASE_SECONDS?"
        " (`wearon settings` lists all)",
        "WEARON_LEASE_SECOND: no such setting; did you mean WEARON_LEASE_SECONDS?"
        " (`wearon settings` lists all)",
        "WEARON_QQQQ: no such setting (`wearon settings` lists all)",
    ]


def test_all_problems_are_reported_at_once() -> None:
    """Nobody has to start the program once for each mistake."""
    problems = problems_of({"WEARON_PORT": "x", "REDIS_URL": "cache:6379", "WEARON_NO": "1"})

    assert [problem.partition(":")[0] for problem in problems] == [
        "REDIS_URL",
        "WEARON_PORT",
        "WEARON_NO",
    ]


@pytest.mark.parametrize("port", ["http", "99999", "0"])
def test_a_url_s_port_has_to_be_one(port: str) -> None:
    """A port that no client could use is refused here, not by a traceback of the client's."""
    problems = problems_of(
        {
            "DATABASE_URL": f"postgresql://db:{port}/wearon",
            "REDIS_URL": f"redis://cache:{port}",
            "WEARON_OPENAI_BASE_URL": f"http://gateway:{port}/v1",
            "WEARON_REPLICATE_BASE_URL": f"http://gateway:{port}",
        }
    )

    assert problems == [
        "DATABASE_URL: its port must be a number up to 65535",
        "REDIS_URL: its port must be a number up to 65535",
        "WEARON_OPENAI_BASE_URL: its port must be a number up to 65535",
        "WEARON_REPLICATE_BASE_URL: its port must be a number up to 65535",
    ]


def test_an_upload_outlives_what_may_use_it() -> None:
    """Its link, and then a session that waits as long as one may."""
    enough = {"WEARON_PICTURE_URL_SECONDS": "43200", "WEARON_QUEUED_SECONDS": "43200"}

    (problem,) = problems_of(enough | {"WEARON_UPLOAD_DAYS": "1", "WEARON_QUEUED_SECONDS": "43201"})

    assert problem.startswith("WEARON_UPLOAD_DAYS: ")
    assert load_settings(enough | {"WEARON_UPLOAD_DAYS": "1"}).upload_days == 1


def test_what_endangers_production_is_for_development_only() -> None:
    """Inputs from the own machine, and memory that is gone at exit, need WEARON_ENVIRONMENT to
    say `development`; it does not by default."""
    dangerous = {
        "WEARON_FETCH_ALLOW_LOOPBACK": "true",
        "WEARON_STORE": "memory",
        "WEARON_QUEUE": "memory",
        "WEARON_STORAGE": "memory",
    }

    problems = problems_of(dangerous)

    assert [problem.partition(":")[0] for problem in problems] == list(dangerous)
    assert all("only with WEARON_ENVIRONMENT=development" in problem for problem in problems)
    assert load_settings(dangerous | DEVELOPMENT).store is Store.MEMORY


@pytest.mark.parametrize(("submit", "push_again"), [("2", "5"), ("3", "5.1"), ("12.9", "15")])
def test_a_task_is_not_lost_while_it_is_submitted(submit: str, push_again: str) -> None:
    """Recovery waits longer than a submission and its confirmation may take."""
    times = {"WEARON_SUBMIT_SECONDS": submit, "WEARON_PUSH_AGAIN_SECONDS": push_again}

    assert load_settings(times).duration("push_again_seconds") > timedelta(seconds=float(submit))


@pytest.mark.parametrize(("submit", "push_again"), [("3", "5"), ("13", "15"), ("60", "15")])
def test_a_task_that_would_be_lost_while_it_is_submitted_is_refused(
    submit: str, push_again: str
) -> None:
    """In development too: a request in good time would be answered 503 or charged for nothing."""
    times = {"WEARON_SUBMIT_SECONDS": submit, "WEARON_PUSH_AGAIN_SECONDS": push_again}

    for environ in (times, times | DEVELOPMENT):
        assert problems_of(environ) == [
            "WEARON_PUSH_AGAIN_SECONDS: must be longer than WEARON_SUBMIT_SECONDS and 2 seconds,"
            " or tasks on their way would count as lost"
        ]


def test_settings_made_by_hand_are_checked_too() -> None:
    """The rules hold for whoever makes Settings without an environment."""
    with pytest.raises(ValueError, match="WEARON_STORE: `memory` is gone at exit"):
        Settings(store=Store.MEMORY)


@pytest.mark.parametrize(
    "environ",
    [
        {"WEARON_JWT_SECRET": "hunter2"},
        {"WEARON_SIGNING_SECRET": "hunter2"},
        {"DATABASE_URL": "mysql://user:hunter2@db/wearon"},
        {"DATABASE_URL": "postgresql://user:hunter2@db:http/wearon"},
        {"REDIS_URL": "https://:hunter2@cache"},
        {"REDIS_URL": "redis://:hunter2@cache:http"},
        {"WEARON_JWT_SECRTE": "hunter2"},
        {"OPENAI_API_KEY": "my hunter2"},
    ],
)
def test_a_refusal_never_says_what_the_variable_holds(environ: dict[str, str]) -> None:
    """A secret that is too short, or in the wrong variable, does not end in a log; neither does
    one that is chained to the error."""
    with pytest.raises(SettingsError) as refusal:
        load_settings(environ)

    causes = (refusal.value, refusal.value.__cause__, refusal.value.__context__)
    assert not any("hunter2" in f"{cause} {cause!r}" for cause in causes)


def test_secrets_are_not_shown() -> None:
    """Settings may be printed or logged: their secrets, and URLs that hold passwords, are not."""
    settings = load_settings(
        {
            "WEARON_JWT_SECRET": SECRET,
            "WEARON_SIGNING_SECRET": SECRET,
            "DATABASE_URL": f"postgresql://user:{SECRET}@db/wearon",
            "REDIS_URL": f"redis://:{SECRET}@cache",
            "AWS_ACCESS_KEY_ID": SECRET,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "OPENAI_API_KEY": SECRET,
            "REPLICATE_API_TOKEN": SECRET,
        }
    )

    shown = f"{settings} {settings!r} {pretty_repr(settings)}"

    assert SECRET not in shown
    assert shown.count("***") == 8 * 3
    assert "port=8000" in shown


def test_what_must_be_set_is_asked_for_by_name() -> None:
    """Who needs a setting that has no default gets an error that names the variable."""
    with pytest.raises(SettingsError, match=r"^WEARON_JWT_SECRET: must be set"):
        Settings().require("jwt_secret")


def test_a_generator_says_what_it_needs() -> None:
    """The settings load without a key, for only the worker uses it: who makes no picture holds no
    key. The key of a generator that was not chosen is nobody's need."""
    local = load_settings({})
    openai = load_settings({"WEARON_GENERATOR": "openai"})
    replicate = load_settings({"WEARON_GENERATOR": "replicate"})

    assert local.for_generator == ()
    with pytest.raises(SettingsError, match=r"^OPENAI_API_KEY: must be set"):
        openai.require(*openai.for_generator)
    with pytest.raises(SettingsError, match=r"^REPLICATE_API_TOKEN: must be set"):
        replicate.require(*replicate.for_generator)


@pytest.mark.parametrize(
    ("environ", "outlasts"),
    [
        ({}, True),
        ({"WEARON_GENERATOR": "openai"}, False),
        ({"WEARON_GENERATOR": "openai", "WEARON_DRAIN_SECONDS": "180"}, True),
        ({"WEARON_GENERATOR": "openai", "WEARON_ATTEMPT_SECONDS": "26"}, False),
        ({"WEARON_GENERATOR": "openai", "WEARON_ATTEMPT_SECONDS": "25"}, True),
    ],
)
def test_a_grace_time_may_be_too_short(environ: dict[str, str], *, outlasts: bool) -> None:
    """For an attempt that costs something; that is allowed, and worth a line in the log."""
    assert load_settings(environ).outlasts_attempts is outlasts


def test_a_process_among_others_needs_what_they_share() -> None:
    """All that is missing is named at once, and one's own memory is refused."""
    settings = load_settings(DEVELOPMENT | {"WEARON_QUEUE": "memory"})

    with pytest.raises(SettingsError) as refusal:
        settings.require_shared("jwt_secret")

    lines = str(refusal.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "WEARON_QUEUE",
        "DATABASE_URL",
        "REDIS_URL",
        "WEARON_JWT_SECRET",
    ]


def test_a_process_among_others_is_content_with_what_it_needs() -> None:
    """Secrets that it does not ask for need not be set."""
    settings = load_settings({"DATABASE_URL": "postgresql://db/x", "REDIS_URL": "redis://cache"})

    settings.require_shared()


def test_the_example_file_is_what_the_settings_say() -> None:
    """.env.example is written by `wearon settings --env`, so that it cannot go stale."""
    written = (Path(__file__).parents[2] / ".env.example").read_text("utf-8")

    assert written == env_example()


def test_the_example_file_changes_nothing() -> None:
    """Every variable is in it, commented out, with its default: uncommented, it loads to the
    defaults."""
    lines = [line.removeprefix("# ") for line in env_example().splitlines() if "=" in line]
    environ = dict(line.split("=", 1) for line in lines if line.split("=")[0].isupper())

    assert list(environ) == [variable_of(field.name) for field in SETTINGS]
    assert load_settings(environ) == Settings()


def test_the_table_describes_every_variable() -> None:
    """The README's table has a row for each variable, with its default and its description."""
    rows = markdown_table().splitlines()[2:]

    assert len(rows) == len(SETTINGS)
    for row, variable in zip(rows, variables(), strict=True):
        assert row.startswith(f"| `{variable.name}` |")
        assert row.endswith(f"| {variable.description} |")
        assert variable.default in row
        assert row.count("|") == 5


def test_the_readme_has_the_table() -> None:
    """The README's settings are what the code says."""
    assert markdown_table() in (Path(__file__).parents[2] / "README.md").read_text("utf-8")
