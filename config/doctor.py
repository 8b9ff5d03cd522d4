"""The checks of ``wearon doctor``: which there are depends on the settings."""

import os
import resource
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from adapters.auth.jwks import InvalidKeySet, parse_key_set
from adapters.auth.jwks_client import FetchFailed, JwksClient
from adapters.postgres.checkup import DatabaseCheckup
from adapters.queue.checkup import RedisCheckup
from config import options, policies
from config.loading import load_settings
from config.services import Storage
from config.settings import Settings, SettingsError
from domain.doctor import Check, Finding, examine, failed, ok, warning
from domain.picture_ports import Picture

if TYPE_CHECKING:
    from config.container import Container

Checks = dict[str, tuple[Check, str]]
"""Each by its subject, with what to do if it cannot be done."""

_SPARE_DESCRIPTORS = 200
"""For servers, storage, logs and the provider, beside clients and pools."""
_LEAST_FREE_BYTES = 1_000_000_000
_BYTES = b"written by wearon doctor"


def settings_findings(environ: Mapping[str, str]) -> tuple[Settings | None, list[Finding]]:
    """The settings if they can be read, and a finding for each that is missing or wrong."""
    try:
        settings = load_settings(environ)
    except SettingsError as error:
        return None, _problems(error)
    try:
        settings.require_shared(*settings.for_users, *settings.for_storage, *settings.for_generator)
    except SettingsError as error:
        return settings, _problems(error)
    return settings, [ok("settings", "All that an API and a worker need is set.")]


def _problems(error: SettingsError) -> list[Finding]:
    return [
        failed("settings", line.partition(" (or try ")[0], "See docs/settings.md.")
        for line in str(error).splitlines()
    ]


async def diagnose(container: "Container") -> list[Finding]:
    """All checks for which there are settings."""
    settings = container.settings()
    checks = {
        **_database_checks(container, settings),
        **_redis_checks(container, settings),
        **_storage_checks(container, settings),
        **_provider_checks(settings),
        **_key_set_checks(settings),
    }
    return [*await examine(checks), *machine(settings)]


def _database_checks(container: "Container", settings: Settings) -> Checks:
    schema = container.repositories().schema if settings.database_url else None
    if schema is None:
        return {}
    checkup = DatabaseCheckup(container.database(), schema, clock=container.clock())
    return {
        "database": (checkup.server, "Check DATABASE_URL, the server and its pg_hba.conf."),
        "migrations": (checkup.migrations, "Run `wearon migrate` as the tables' owner."),
        "privileges": (checkup.privileges, "See docs/database.md."),
    }


def _redis_checks(container: "Container", settings: Settings) -> Checks:
    if settings.redis_url is None or settings.queue is not options.Queue.REDIS:
        return {}
    checkup = RedisCheckup(
        policies.redis(settings)["client"],
        probe=container.queue(),
        timeout_seconds=settings.redis_seconds,
        clock=container.clock(),
    )
    container.opened().push_async_callback(checkup.close)
    return {
        "redis": (checkup.server, "Check REDIS_URL and the server."),
        "redis writes": (
            checkup.writes, "Look at maxmemory, the disk of its snapshots, and its role.",
        ),
    }  # fmt: skip


def _storage_checks(container: "Container", settings: Settings) -> Checks:
    if any(getattr(settings, name) is None for name in settings.for_storage):
        return {}
    advice = "Check the folder's rights and space, or the bucket, its keys and endpoint."
    return {"storage": (lambda: round_trip(container.storage()), advice)}


async def round_trip(storage: Storage) -> list[Finding]:
    """Write a picture, read the same bytes back, delete the picture."""
    prefix = f"checks/{uuid4()}"
    stored = await storage.save(prefix, Picture(data=_BYTES, media_type="image/png"))
    try:
        read = await storage.read_upload(stored.object_key, max_bytes=len(_BYTES))
    finally:
        await storage.delete(prefix)
    if read != _BYTES:
        return [
            failed("storage", "The bytes that were read are others.", "Do not use this storage.")
        ]
    return [ok("storage", "A picture was written, read and deleted.")]


def _provider_checks(settings: Settings) -> Checks:
    match settings.generator, settings.openai_api_key, settings.replicate_api_token:
        case options.Generator.OPENAI, str(), _:
            check = _check_openai
        case options.Generator.REPLICATE, _, str():
            check = _check_replicate
        case _:
            return {}
    advice = "Check the base URL, the network and the provider's status page."
    return {"provider": (partial(check, settings), advice)}


async def _check_openai(settings: Settings) -> Sequence[Finding]:
    from adapters.images.checkup import check_model, openai_model_url

    model = settings.openai_model
    return await check_model(
        openai_model_url(settings.openai_base_url, model),
        key=settings.require("openai_api_key"),
        variable="OPENAI_API_KEY",
        model=model,
    )


async def _check_replicate(settings: Settings) -> Sequence[Finding]:
    from adapters.images.checkup import check_model, replicate_model_url

    model = settings.replicate_model
    return await check_model(
        replicate_model_url(settings.replicate_base_url, model),
        key=settings.require("replicate_api_token"),
        variable="REPLICATE_API_TOKEN",
        model=model,
    )


def _key_set_checks(settings: Settings) -> Checks:
    if settings.jwt_jwks_url is None:
        return {}
    return {
        "user keys": (
            partial(_key_set, settings), "Check WEARON_JWT_JWKS_URL and the identity provider.",
        )
    }  # fmt: skip


async def _key_set(settings: Settings) -> list[Finding]:
    allow_http = settings.environment is options.Environment.DEVELOPMENT
    try:
        fetched = await JwksClient(settings.jwt_jwks_url or "", allow_http=allow_http)()
        keys = parse_key_set(fetched.body, algorithms=tuple(settings.jwt_algorithms)).keys
    except (FetchFailed, InvalidKeySet) as error:
        return [failed("user keys", f"{error}.", "Check WEARON_JWT_JWKS_URL.")]
    if not keys:
        advice = "Check WEARON_JWT_ALGORITHMS and the identity provider's keys."
        return [failed("user keys", "The key set has no usable key.", advice)]
    return [ok("user keys", f"{len(keys)} usable key(s).")]


def machine(settings: Settings) -> list[Finding]:
    """This machine's limits: descriptors, and the space of the data folder."""
    found = [_descriptors(settings)]
    if settings.storage is options.Storage.LOCAL:
        found.append(_space(settings.pictures_dir))
    return found


def _descriptors(settings: Settings) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.http_max_connections + settings.database_connections + _SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return warning(
            "open files",
            f"A process may open {hard} files; {wanted} are needed for"
            f" {settings.http_max_connections} connections.",
            "Raise the hard limit (ulimit -Hn) or lower WEARON_HTTP_MAX_CONNECTIONS.",
        )
    return ok("open files", f"{wanted} are needed and possible.")


def _space(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return failed("disk", f"{os.strerror(error.errno or 0)}.", "Check WEARON_DATA_DIR.")
    sentence = f"{free / 1e9:.1f} GB free for pictures."
    if free < _LEAST_FREE_BYTES:
        return warning("disk", sentence, "Make room, or shorten WEARON_PICTURE_LIFETIME_SECONDS.")
    return ok("disk", sentence)
