"""The rules between settings: what is wrong with values that are valid on their own."""

from collections.abc import Iterator
from decimal import Decimal
from urllib.parse import urlsplit

from adapters.postgres.urls import check_postgres_url
from adapters.queue.urls import check_redis_url
from adapters.urls import problem_of
from config import origins
from config.options import Environment, Generator
from config.settings import Settings, variable_of
from config.weak_secrets import is_public_key, is_weak

_CONFIRM_SECONDS = 2
"""A submission may take one second longer than its setting, and is confirmed within one more."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


_SECRETS = (
    "jwt_secret",
    "jwt_previous_secret",
    "signing_secret",
    "signing_previous_secret",
    "console_secret",
)


def problems_of(settings: Settings) -> Iterator[str]:
    """A line for each problem, which begins with the variable's name."""
    yield from _url_problems(settings)
    yield from origins.problems(settings)
    yield from _contradictions(settings)
    yield from _jwt_problems(settings)
    yield from _plan_problems(settings)
    yield from _budget_problems(settings)
    yield from _console_problems(settings)
    if settings.environment is Environment.PRODUCTION:
        yield from _unsafe_in_production(settings)


def _plan_problems(settings: Settings) -> Iterator[str]:
    for name in ("rate_per_minute", "rate_per_hour"):
        entries = (getattr(settings, name) or "").split(",")
        plans = [entry.partition("=")[0] for entry in entries]
        if len(set(plans)) < len(plans):
            yield f"{variable_of(name)}: names a plan more than once"


def _budget_problems(settings: Settings) -> Iterator[str]:
    """A budget that could never be spent would not protect."""
    prices = {
        Generator.OPENAI: ("openai_input_usd_per_million", "openai_output_usd_per_million"),
        Generator.REPLICATE: ("replicate_usd_per_picture",),
    }
    if settings.provider_budget_usd is None or settings.generator not in prices:
        return
    names = prices[settings.generator]
    if not any(Decimal(getattr(settings, name) or 0) for name in names):
        variables = " or ".join(variable_of(name) for name in names)
        yield f"{variable_of('provider_budget_usd')}: requires a price in {variables}"


def _console_problems(settings: Settings) -> Iterator[str]:
    if settings.console_user_header and settings.console_host not in _LOOPBACK:
        yield (
            "WEARON_CONSOLE_USER_HEADER: requires WEARON_CONSOLE_HOST=127.0.0.1, or another machine"
            " could name any operator"
        )


def _url_problems(settings: Settings) -> Iterator[str]:
    for name in (
        "database_url",
        "redis_url",
        "jwt_jwks_url",
        "openai_base_url",
        "replicate_base_url",
    ):
        if not _has_valid_port(getattr(settings, name)):
            yield f"{variable_of(name)}: the port must be a number from 1 to 65535"
    for name, parse in (("database_url", check_postgres_url), ("redis_url", check_redis_url)):
        if problem := problem_of(parse, getattr(settings, name)):
            yield f"{variable_of(name)}: {problem}"


def _has_valid_port(url: str | None) -> bool:
    try:
        return urlsplit(url or "").port != 0
    except ValueError:
        return False


def _contradictions(settings: Settings) -> Iterator[str]:
    if settings.requeue_after_seconds <= settings.submit_seconds + _CONFIRM_SECONDS:
        yield (
            f"WEARON_REQUEUE_AFTER_SECONDS: must exceed WEARON_SUBMIT_SECONDS by more than"
            f" {_CONFIRM_SECONDS} s, or tasks that are still being queued would count as lost"
        )
    if (
        settings.upload_lifetime_seconds
        <= settings.picture_url_seconds + settings.queue_ttl_seconds
    ):
        yield (
            "WEARON_UPLOAD_LIFETIME_SECONDS: must exceed WEARON_PICTURE_URL_SECONDS +"
            " WEARON_QUEUE_TTL_SECONDS, or queued sessions could lose their pictures"
        )
    longest = settings.attempt_seconds + settings.storage_patience_seconds + settings.lease_seconds
    if settings.picture_lifetime_seconds <= longest:
        yield (
            "WEARON_PICTURE_LIFETIME_SECONDS: must exceed WEARON_ATTEMPT_SECONDS +"
            " WEARON_STORAGE_PATIENCE_SECONDS + WEARON_LEASE_SECONDS, or a late attempt could store"
            " a picture after the deletion"
        )


def _jwt_problems(settings: Settings) -> Iterator[str]:
    url = urlsplit(settings.jwt_jwks_url or "")
    if url.scheme == "http" and url.hostname not in _LOOPBACK:
        yield "WEARON_JWT_JWKS_URL: must begin with https://, except for this machine"
    if settings.jwt_jwks_keep_seconds < settings.jwt_jwks_refresh_seconds:
        yield (
            "WEARON_JWT_JWKS_KEEP_SECONDS: must be at least WEARON_JWT_JWKS_REFRESH_SECONDS, or the"
            " keys would expire before they are fetched again"
        )
    for name in ("jwt_secret", "jwt_previous_secret"):
        if is_public_key(getattr(settings, name) or ""):
            yield f"{variable_of(name)}: is a key pair's; set WEARON_JWT_JWKS_URL for those"
    for name in ("jwt", "signing"):
        if getattr(settings, f"{name}_previous_secret") and not getattr(settings, f"{name}_secret"):
            previous, current = f"{name}_previous_secret", f"{name}_secret"
            yield f"{variable_of(previous)}: requires {variable_of(current)}"


def _unsafe_secrets(settings: Settings) -> Iterator[str]:
    first: dict[str, str] = {}
    for name in _SECRETS:
        if (secret := getattr(settings, name)) is None:
            continue
        if is_weak(secret):
            yield f"{variable_of(name)}: is too easy to guess"
        if (other := first.setdefault(secret, name)) != name:
            yield f"{variable_of(name)}: must differ from {variable_of(other)}"


def _unsafe_in_production(settings: Settings) -> Iterator[str]:
    if settings.fetch_allow_loopback:
        yield "WEARON_FETCH_ALLOW_LOOPBACK: requires WEARON_ENVIRONMENT=development"
    if urlsplit(settings.jwt_jwks_url or "").scheme == "http":
        yield "WEARON_JWT_JWKS_URL: must begin with https:// in production"
    yield from _unsafe_secrets(settings)
    for name in settings.in_memory:
        yield (
            f"{variable_of(name)}: `memory` is lost at exit,"
            " so it requires WEARON_ENVIRONMENT=development"
        )
