"""The rules between settings: what is wrong with values that are valid on their own."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from adapters.postgres.urls import check_postgres_url
from adapters.queue.urls import check_redis_url
from adapters.urls import problem_of
from config import origins
from config.options import Environment
from config.settings import Settings, variable_of

_CONFIRM_SECONDS = 2
"""A submission may take one second longer than its setting, and is confirmed within one more."""
_FEWEST_CHARACTERS = 10
"""Different ones in a secret. A random one of 32 hexadecimal digits has fewer once in a million."""


def problems_of(settings: Settings) -> Iterator[str]:
    """A line for each problem, which begins with the variable's name."""
    yield from _url_problems(settings)
    yield from origins.problems(settings)
    yield from _contradictions(settings)
    if settings.environment is Environment.PRODUCTION:
        yield from _unsafe_in_production(settings)


def _url_problems(settings: Settings) -> Iterator[str]:
    for name in ("database_url", "redis_url", "openai_base_url", "replicate_base_url"):
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


def _unsafe_in_production(settings: Settings) -> Iterator[str]:
    if settings.fetch_allow_loopback:
        yield "WEARON_FETCH_ALLOW_LOOPBACK: requires WEARON_ENVIRONMENT=development"
    secrets = {name: getattr(settings, name) for name in ("jwt_secret", "signing_secret")}
    for name, secret in secrets.items():
        if secret is not None and len(set(secret)) < _FEWEST_CHARACTERS:
            yield f"{variable_of(name)}: is too easy to guess"
    if settings.jwt_secret is not None and settings.jwt_secret == settings.signing_secret:
        yield "WEARON_SIGNING_SECRET: must differ from WEARON_JWT_SECRET"
    for name in settings.in_memory:
        yield (
            f"{variable_of(name)}: `memory` is lost at exit,"
            " so it requires WEARON_ENVIRONMENT=development"
        )
