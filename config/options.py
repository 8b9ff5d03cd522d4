"""The types of the settings. ``config/container.py`` matches each value of the enumerations that
choose an adapter."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

DAY = 86_400

Seconds = Annotated[float, Meta(gt=0, le=DAY)]
Secret = Annotated[str, Meta(min_length=32)]
ApiKey = Annotated[str, Meta(pattern=r"^[!-~]+$")]
# One number per plan; a string, because a setting is one value.
PlanNumbers = Annotated[
    str,
    Meta(
        pattern=r"^(default|starter|growth|scale|enterprise)=[1-9][0-9]{0,8}"
        r"(,(default|starter|growth|scale|enterprise)=[1-9][0-9]{0,8})*$"
    ),
]
# A string, because a float would not hold it exactly.
Dollars = Annotated[str, Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,6})?$")]
Budget = Annotated[str, Meta(pattern=r"^(?=.*[1-9])[0-9]{1,7}(\.[0-9]{1,6})?$")]
"""Dollars, more than none."""
BaseUrl = Annotated[str, Meta(pattern=r"^https?://[^\s?#]*[^\s?#/]$")]
JwksUrl = Annotated[str, Meta(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+(/[!-\"$-?A-~]*)?$")]
"""Without a user, a password or a fragment."""
Words = Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1)]
ProviderUrl = Annotated[str, Meta(pattern=r"^https?://[^\s?#@/]+(/[^\s?#@]*)?$")]


class Environment(StrEnum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class Database(StrEnum):
    POSTGRES = "postgres"
    MEMORY = "memory"


class Queue(StrEnum):
    REDIS = "redis"
    MEMORY = "memory"


class Storage(StrEnum):
    LOCAL = "local"
    S3 = "s3"
    MEMORY = "memory"


class Generator(StrEnum):
    LOCAL = "local"
    OPENAI = "openai"
    REPLICATE = "replicate"


class Quality(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    AUTO = "auto"


class OutputFormat(StrEnum):
    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


class TokenAlgorithm(StrEnum):
    """The algorithms of RFC 7518 and RFC 8037 with which a key pair signs users' tokens."""

    ES256 = "ES256"
    RS256 = "RS256"
    EDDSA = "EdDSA"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Traces(StrEnum):
    NONE = "none"
    OTLP = "otlp"


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


def doc(
    description: str,
    *,
    variable: str | None = None,
    example: str | None = None,
    secret: bool = False,
) -> Meta:
    """A row of the settings table. ``variable`` is set where it is not ``WEARON_`` + name,
    ``example`` where a pattern defines the allowed values; a ``secret``'s value is never shown."""
    return Meta(
        description=description,
        examples=None if example is None else [example],
        extra={"variable": variable, "secret": secret},
    )
