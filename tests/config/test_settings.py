"""Settings: unusable values are refused by the name of their variable, never by their value."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.pretty import pretty_repr

from adapters.coalescing import BatchLimits
from adapters.images.limits import FetchLimits, JobLimits, PoolLimits, ProviderLimits
from adapters.postgres.limits import DatabaseLimits
from config import policies
from config.loading import load_settings
from config.options import Database, Environment, Queue
from config.reference import env_example, markdown_page, variables
from config.settings import SETTINGS, Settings, SettingsError, variable_of
from domain.generation import WorkPolicy
from domain.recovery import RecoveryPolicy
from domain.submission import SubmissionPolicy
from domain.uploads import UploadPolicy
from entrypoints.cli import main

REPOSITORY = Path(__file__).parents[2]
SECRET = "correct-horse-battery-staple-0123456789"
DEVELOPMENT = {"WEARON_ENVIRONMENT": "development"}


def problems_of(environ: dict[str, str]) -> list[str]:
    """The lines of the error message."""
    with pytest.raises(SettingsError) as error:
        load_settings(environ)
    return str(error.value).splitlines()


def test_an_empty_environment_gives_the_defaults() -> None:
    """The settings load without any variable, and default to production."""
    settings = load_settings({})

    assert settings == Settings()
    assert settings.environment is Environment.PRODUCTION
    assert (settings.database, settings.queue) == (Database.POSTGRES, Queue.REDIS)
    assert settings.pictures_dir == Path(".wearon/pictures")


@pytest.mark.parametrize("value", ["", "   "])
def test_an_empty_variable_counts_as_not_set(value: str) -> None:
    """`NAME=` in an environment file leaves every setting at its default."""
    environ = {variable.name: value for variable in variables()}

    assert load_settings(environ) == Settings()


def test_values_are_converted_to_their_types() -> None:
    """Text becomes numbers, booleans, paths and enumerations; surrounding space is ignored."""
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
    assert settings.lease_seconds == 1.5
    assert settings.fetch_allow_loopback is True
    assert settings.data_dir == Path("/var/lib/pictures")
    assert settings.queue is Queue.MEMORY


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("WEARON_ENVIRONMENT", "prod", "one of `development`, `production`"),
        ("WEARON_DATABASE", "mysql", "one of `postgres`, `memory`"),
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
        ("WEARON_PROVIDER_BUDGET_USD", "0", "like `50`"),
        ("WEARON_PROVIDER_BUDGET_USD", "0.00", "like `50`"),
        ("WEARON_PROVIDER_BUDGET_USD", "$50", "like `50`"),
        ("WEARON_REPLICATE_USD_PER_PICTURE", "-1", "like `0.039`"),
        ("WEARON_LOG_LEVEL", "loud", "one of `debug`, `info`, `warning`, `error`"),
        ("WEARON_LOG_FORMAT", "xml", "one of `json`, `console`"),
        ("DATABASE_URL", "mysql://db/x", "like `postgresql://user:password@host:5432/wearon`"),
        ("DATABASE_URL", "postgresql://", "like `postgresql://user:password@host:5432/wearon`"),
        ("REDIS_URL", "http://cache", "like `redis://:password@host:6379/0`"),
        ("WEARON_PUBLIC_URL", "ftp://wearon.example", "like `https://wearon.example`"),
        ("WEARON_PUBLIC_URL", "https://wearon.example/", "like `https://wearon.example`"),
        ("WEARON_PUBLIC_URL", "https://wearon.example?a=1", "like `https://wearon.example`"),
        ("WEARON_JWT_SECRET", "s" * 31, "at least 32 characters"),
        ("WEARON_SIGNING_SECRET", "s" * 31, "at least 32 characters"),
        ("WEARON_FETCH_ALLOW_LOOPBACK", "yes", "`true` or `false`"),
        ("WEARON_DATABASE_TRANSACTION_POOLER", "on", "`true` or `false`"),
        ("WEARON_DRAIN_SECONDS", "4.9", "a number from 5 to 86400"),
        ("WEARON_REQUEUE_AFTER_SECONDS", "4.9", "a number from 5 to 86400"),
        ("WEARON_PICTURE_LIFETIME_SECONDS", "59.9", "a number from 60 to 3153600000"),
        ("WEARON_UPLOAD_LIFETIME_SECONDS", "59.9", "a number from 60 to 315360000"),
        ("WEARON_MAX_UPLOADS", "1.5", "an integer from 1 to 10000"),
        ("WEARON_LOCAL_GENERATOR_SECONDS", "-1", "a number from 0 to 600"),
    ],
)
def test_unusable_value_is_refused(variable: str, value: str, rule: str) -> None:
    """The message names the variable and its allowed values."""
    assert problems_of({variable: value}) == [f"{variable}: must be {rule}"]


@pytest.mark.parametrize("value", ["many", "-1", "10000000000", "nan", "inf", "1e99", "null"])
def test_every_number_has_bounds(value: str) -> None:
    """Every numeric setting refuses text and numbers outside its bounds."""
    numbers = [
        variable.name for variable in variables() if re.search("number|integer", variable.allowed)
    ]

    problems = problems_of(dict.fromkeys(numbers, value))

    assert [problem.partition(":")[0] for problem in problems] == numbers
    assert len(numbers) > 15


def test_unknown_variable_is_refused() -> None:
    """A misspelt setting is not ignored; the message proposes the nearest name."""
    problems = problems_of(
        {
            "WEARON_LEASE_SECOND": "5",
            "WEARON_DATABASE_URL": "postgresql://db/wearon",
            "WEARON_LEASE": "5",
            "WEARON_QQQQ": "1",
            "ANOTHER_PROGRAM": "1",
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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WEARON_STORE", "WEARON_DATABASE"),
        ("WEARON_CALLER_SECONDS", "WEARON_AUTH_CACHE_SECONDS"),
        ("WEARON_FOREIGN_SECONDS", "WEARON_EXTERNAL_WORKER_TIMEOUT_SECONDS"),
        ("WEARON_QUEUED_SECONDS", "WEARON_QUEUE_TTL_SECONDS"),
        ("WEARON_PUSH_AGAIN_SECONDS", "WEARON_REQUEUE_AFTER_SECONDS"),
        ("WEARON_PICTURE_SECONDS", "WEARON_PICTURE_DECODE_SECONDS"),
        ("WEARON_PICTURE_DAYS", "WEARON_PICTURE_LIFETIME_SECONDS, in seconds instead of days"),
        ("WEARON_UPLOAD_DAYS", "WEARON_UPLOAD_LIFETIME_SECONDS, in seconds instead of days"),
    ],
)
def test_old_name_of_a_setting_is_refused(old: str, new: str) -> None:
    """The message gives the new name, which exists, and the new unit if it changed."""
    assert problems_of({old: "7"}) == [f"{old}: renamed to {new}"]
    assert new.partition(",")[0] in {variable.name for variable in variables()}


def test_all_problems_are_reported_at_once() -> None:
    """One start of the program is enough to find all mistakes."""
    problems = problems_of({"WEARON_PORT": "x", "REDIS_URL": "cache:6379", "WEARON_NO": "1"})

    assert [problem.partition(":")[0] for problem in problems] == [
        "REDIS_URL",
        "WEARON_PORT",
        "WEARON_NO",
    ]


@pytest.mark.parametrize("port", ["http", "99999", "0"])
def test_invalid_port_in_a_url_is_refused(port: str) -> None:
    """The settings refuse a port that would otherwise end in a client's traceback."""
    problems = problems_of(
        {
            "DATABASE_URL": f"postgresql://db:{port}/wearon",
            "REDIS_URL": f"redis://cache:{port}",
            "WEARON_OPENAI_BASE_URL": f"http://gateway:{port}/v1",
            "WEARON_REPLICATE_BASE_URL": f"http://gateway:{port}",
        }
    )

    assert problems == [
        "DATABASE_URL: the port must be a number from 1 to 65535",
        "REDIS_URL: the port must be a number from 1 to 65535",
        "WEARON_OPENAI_BASE_URL: the port must be a number from 1 to 65535",
        "WEARON_REPLICATE_BASE_URL: the port must be a number from 1 to 65535",
    ]


def test_unknown_parameter_of_a_url_is_refused() -> None:
    """A sentence for each URL, before anything connects, without any value."""
    problems = problems_of(
        {
            "DATABASE_URL": "postgresql://me:hunter2@db/wearon?ssl_mode=require",
            "REDIS_URL": "redis://:hunter2@cache?decode_response=True",
        }
    )

    assert problems == [
        "DATABASE_URL: the parameter `ssl_mode` is not known; did you mean `sslmode`?",
        "REDIS_URL: the parameter `decode_response` is not known; did you mean `decode_responses`?",
    ]


@pytest.mark.parametrize(
    ("environ", "least"),
    [
        (
            {"WEARON_PICTURE_URL_SECONDS": "43200", "WEARON_QUEUE_TTL_SECONDS": "43200"},
            {"WEARON_UPLOAD_LIFETIME_SECONDS": 86_400},
        ),
        (
            {
                "WEARON_ATTEMPT_SECONDS": "100",
                "WEARON_STORAGE_PATIENCE_SECONDS": "30",
                "WEARON_LEASE_SECONDS": "20",
            },
            {"WEARON_PICTURE_LIFETIME_SECONDS": 150},
        ),
        ({"WEARON_SUBMIT_SECONDS": "13"}, {"WEARON_REQUEUE_AFTER_SECONDS": 15}),
    ],
)
def test_contradicting_times_are_refused(environ: dict[str, str], least: dict[str, int]) -> None:
    """An upload outlives its link and the longest wait in the queue. A picture outlives an attempt
    that lost its lease. A task counts as lost only after a submission and its confirmation. This
    holds in development as well."""
    ((variable, seconds),) = least.items()

    for more in ({}, DEVELOPMENT):
        (problem,) = problems_of(environ | more | {variable: str(seconds)})
        load_settings(environ | more | {variable: str(seconds + 1)})

        assert problem.startswith(f"{variable}: must exceed ")


def test_pictures_and_uploads_may_be_deleted_after_six_hours() -> None:
    """Both lifetimes may be shorter than a day, if links are valid for less."""
    six_hours = timedelta(hours=6)
    settings = load_settings(
        {
            "WEARON_PICTURE_LIFETIME_SECONDS": "21600",
            "WEARON_UPLOAD_LIFETIME_SECONDS": "21600",
            "WEARON_PICTURE_URL_SECONDS": "10800",
        }
    )

    recovery = policies.recovery(settings)

    assert (recovery.picture_lifetime, recovery.upload_lifetime) == (six_hours, six_hours)


def test_each_default_has_one_definition() -> None:
    """Settings take the defaults of policies and limits, and give them back unchanged."""
    settings = Settings(database_url="postgresql://db/x", openai_api_key="sk-1")

    assert policies.submission(settings) == SubmissionPolicy()
    assert policies.work(settings) == WorkPolicy()
    assert policies.recovery(settings) == RecoveryPolicy()
    assert policies.uploads(settings) == UploadPolicy()
    assert policies.batches(settings) == BatchLimits()
    assert policies.picture_pool(settings) == PoolLimits()
    assert policies.replicate_jobs(settings) == JobLimits()
    assert policies.downloads(settings)["limits"] == FetchLimits()
    assert policies.database(settings)["limits"] == DatabaseLimits()
    assert policies.openai(settings)["limits"] == ProviderLimits()


def test_operator_in_a_header_requires_a_local_listener() -> None:
    """Another machine could name any operator in it."""
    header = {"WEARON_CONSOLE_USER_HEADER": "X-Forwarded-User"}

    (problem,) = problems_of(header | {"WEARON_CONSOLE_HOST": "10.0.0.7"})

    assert problem.startswith("WEARON_CONSOLE_USER_HEADER: requires WEARON_CONSOLE_HOST=127.0.0.1")
    assert load_settings(header).console_user_header == "X-Forwarded-User"


def test_production_refuses_unsafe_settings() -> None:
    """Input pictures from this machine, and data that is lost at exit, require
    ``WEARON_ENVIRONMENT=development``, which is not the default."""
    unsafe = {
        "WEARON_FETCH_ALLOW_LOOPBACK": "true",
        "WEARON_DATABASE": "memory",
        "WEARON_QUEUE": "memory",
        "WEARON_STORAGE": "memory",
    }

    problems = problems_of(unsafe)

    assert [problem.partition(":")[0] for problem in problems] == list(unsafe)
    assert all("requires WEARON_ENVIRONMENT=development" in problem for problem in problems)
    assert load_settings(unsafe | DEVELOPMENT).database is Database.MEMORY


@pytest.mark.parametrize(
    ("secrets", "problem"),
    [
        ({"WEARON_JWT_SECRET": "s" * 64}, "WEARON_JWT_SECRET: is too easy to guess"),
        ({"WEARON_SIGNING_SECRET": "changeme" * 4}, "WEARON_SIGNING_SECRET: is too easy to guess"),
        (
            {"WEARON_JWT_SECRET": SECRET, "WEARON_SIGNING_SECRET": SECRET},
            "WEARON_SIGNING_SECRET: must differ from WEARON_JWT_SECRET",
        ),
        (
            {"WEARON_JWT_SECRET": SECRET, "WEARON_CONSOLE_SECRET": SECRET},
            "WEARON_CONSOLE_SECRET: must differ from WEARON_JWT_SECRET",
        ),
    ],
)
def test_production_refuses_weak_secrets(secrets: dict[str, str], problem: str) -> None:
    """Whoever guesses one signs tokens of any user. One secret for both would let a link's owner
    try it out."""
    assert problems_of(secrets) == [problem]
    assert load_settings(secrets | DEVELOPMENT).environment == "development"


def test_settings_without_an_environment_are_checked_too() -> None:
    """The rules hold for ``Settings`` that are made in code."""
    with pytest.raises(ValueError, match="WEARON_DATABASE: `memory` is lost at exit"):
        Settings(database=Database.MEMORY)


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
def test_error_message_never_contains_a_value(environ: dict[str, str]) -> None:
    """A secret that is too short, or in the wrong variable, is not logged; nor is it in an error
    that is chained to the message."""
    with pytest.raises(SettingsError) as error:
        load_settings(environ)

    causes = (error.value, error.value.__cause__, error.value.__context__)
    assert not any("hunter2" in f"{cause} {cause!r}" for cause in causes)


def test_secrets_are_not_shown() -> None:
    """Printed or logged settings hide secrets, and URLs that may contain passwords."""
    settings = load_settings(
        {
            "WEARON_JWT_SECRET": SECRET,
            "WEARON_JWT_PREVIOUS_SECRET": SECRET[1:] + "p",
            "WEARON_SIGNING_SECRET": SECRET[::-1],
            "WEARON_SIGNING_PREVIOUS_SECRET": SECRET[:0:-1] + "p",
            "WEARON_CONSOLE_SECRET": SECRET[1:] + "c",
            "DATABASE_URL": f"postgresql://user:{SECRET}@db/wearon",
            "REDIS_URL": f"redis://:{SECRET}@cache",
            "AWS_ACCESS_KEY_ID": SECRET,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "OPENAI_API_KEY": SECRET,
            "REPLICATE_API_TOKEN": SECRET,
        }
    )

    shown = f"{settings} {settings!r} {pretty_repr(settings)}"

    assert SECRET[1:] not in shown
    assert SECRET[:0:-1] not in shown
    assert shown.count("***") == 11 * 3
    assert "port=8000" in shown


def test_missing_setting_is_named() -> None:
    """Requiring an optional setting that is not set raises an error with the variable's name."""
    with pytest.raises(SettingsError, match=r"^WEARON_JWT_SECRET: must be set"):
        Settings().require("jwt_secret")


def test_generator_names_the_key_it_requires() -> None:
    """The settings load without a key, because only workers use it. A generator that was not chosen
    requires no key. In production a worker draws its own pictures only if it is told to."""
    local = load_settings({"WEARON_GENERATOR": "local"})
    unset, development = load_settings({}), load_settings(DEVELOPMENT)
    openai = load_settings({"WEARON_GENERATOR": "openai"})
    replicate = load_settings({"WEARON_GENERATOR": "replicate"})

    assert local.for_generator == development.for_generator == ()
    assert unset.for_generator == ("generator",)
    assert [it.generator_is_paid for it in (local, openai, replicate)] == [False, True, True]
    with pytest.raises(SettingsError, match=r"^OPENAI_API_KEY: must be set"):
        openai.require(*openai.for_generator)
    with pytest.raises(SettingsError, match=r"^REPLICATE_API_TOKEN: must be set"):
        replicate.require(*replicate.for_generator)


BUDGET = {"WEARON_PROVIDER_BUDGET_USD": "50"}
OPENAI_PRICE = "WEARON_OPENAI_{}_USD_PER_MILLION"
FREE = {OPENAI_PRICE.format(kind): "0.0" for kind in ("INPUT", "OUTPUT")}
REPLICATE = {"WEARON_GENERATOR": "replicate"}


@pytest.mark.parametrize(
    ("environ", "prices"),
    [
        (
            {"WEARON_GENERATOR": "openai", **FREE},
            "WEARON_OPENAI_INPUT_USD_PER_MILLION or WEARON_OPENAI_OUTPUT_USD_PER_MILLION",
        ),
        (REPLICATE, "WEARON_REPLICATE_USD_PER_PICTURE"),
        (REPLICATE | {"WEARON_REPLICATE_USD_PER_PICTURE": "0"}, "WEARON_REPLICATE_USD_PER_PICTURE"),
    ],
)
def test_budget_requires_a_price(environ: dict[str, str], prices: str) -> None:
    """Without one it would never be spent."""
    problem = f"WEARON_PROVIDER_BUDGET_USD: requires a price in {prices}"

    assert problems_of(environ | BUDGET) == [problem]
    assert load_settings(environ).provider_budget_usd is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WEARON_GENERATOR": "local", **FREE},
        {"WEARON_GENERATOR": "openai"},
        {"WEARON_GENERATOR": "openai", OPENAI_PRICE.format("INPUT"): "0"},
        REPLICATE | {"WEARON_REPLICATE_USD_PER_PICTURE": "0.039"},
    ],
)
def test_budget_with_a_price(environ: dict[str, str]) -> None:
    """One is enough; a process without a provider needs none."""
    assert load_settings(environ | BUDGET).provider_budget_usd == "50"


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
def test_drain_may_be_shorter_than_a_paid_attempt(
    environ: dict[str, str], *, outlasts: bool
) -> None:
    """This is allowed, and worth a line in the log."""
    assert load_settings(environ).drain_outlasts_attempt is outlasts


def test_process_requires_what_it_shares_with_others() -> None:
    """The message names all missing settings at once, and refuses data in memory."""
    settings = load_settings(DEVELOPMENT | {"WEARON_QUEUE": "memory"})

    with pytest.raises(SettingsError) as error:
        settings.require_shared("jwt_secret")

    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "WEARON_QUEUE",
        "DATABASE_URL",
        "REDIS_URL",
        "WEARON_JWT_SECRET",
    ]


def test_process_requires_no_secret_that_it_does_not_use() -> None:
    """The database and the queue are enough for a process that requires nothing else."""
    settings = load_settings({"DATABASE_URL": "postgresql://db/x", "REDIS_URL": "redis://cache"})

    settings.require_shared()


@pytest.mark.parametrize(
    ("option", "file", "text"),
    [
        ("--env", ".env.example", env_example()),
        ("--markdown", "docs/settings.md", markdown_page()),
    ],
)
def test_settings_command_writes_the_reference(option: str, file: str, text: str) -> None:
    """``wearon settings`` prints the files in the repository, so that they cannot become stale."""
    printed = CliRunner().invoke(main, ["settings", option])

    assert printed.output == text
    assert (REPOSITORY / file).read_text("utf-8") == text


def test_example_file_holds_the_defaults() -> None:
    """It has every variable, commented out, with its default: uncommented, it changes nothing."""
    lines = [line.removeprefix("# ") for line in env_example().splitlines() if "=" in line]
    environ = dict(line.split("=", 1) for line in lines if line.split("=")[0].isupper())

    assert list(environ) == [variable_of(field.name) for field in SETTINGS]
    assert load_settings(environ) == Settings()


def test_settings_page_describes_every_variable() -> None:
    """The table has one row per variable, with its default and its description."""
    rows = [line for line in markdown_page().splitlines() if line.startswith("| `")]

    assert len(rows) == len(SETTINGS)
    for row, variable in zip(rows, variables(), strict=True):
        assert row.startswith(f"| `{variable.name}` |")
        assert row.endswith(f"| {variable.description} |")
        assert variable.default in row
        assert row.count("|") == 5


def test_plan_has_one_rate() -> None:
    """Or the last one would count, unnoticed."""
    with pytest.raises(SettingsError, match="WEARON_RATE_PER_HOUR: names a plan more than once"):
        load_settings({"WEARON_RATE_PER_HOUR": "default=60,scale=9,default=600"})
