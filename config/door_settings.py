"""The settings of the door: who may call, from where, and how often."""

from typing import Annotated

from msgspec import Meta

from config.console_settings import ConsoleSettings
from config.options import (
    JwksUrl,
    PlanNumbers,
    Seconds,
    Secret,
    TokenAlgorithm,
    Words,
    doc,
)
from domain.age import AgeVerification
from domain.plans import NO_LIMITS
from domain.signup import NO_SIGNUP as _SIGNUP


class DoorSettings(ConsoleSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Callers' credentials, signed links, origins, rates and accounts."""

    jwt_jwks_url: Annotated[
        JwksUrl | None,
        doc(
            "Key set (JWKS) of the identity provider that signs the users' tokens",
            example="https://project.supabase.co/auth/v1/.well-known/jwks.json",
        ),
    ] = None
    jwt_algorithms: Annotated[
        tuple[TokenAlgorithm, ...],
        Meta(min_length=1),
        doc("Algorithms accepted with the keys of the JWKS"),
    ] = tuple(TokenAlgorithm)
    jwt_jwks_refresh_seconds: Annotated[
        float,
        Meta(ge=10, le=86_400),
        doc("How often the JWKS is fetched, unless its `max-age` is shorter"),
    ] = 300
    jwt_jwks_keep_seconds: Annotated[
        float,
        Meta(ge=60, le=604_800),
        doc("How long fetched keys are used while the JWKS cannot be fetched"),
    ] = 86_400
    jwt_secret: Annotated[
        Secret | None,
        doc("HS256 key that signs users' tokens, beside the JWKS or instead of it", secret=True),
    ] = None
    jwt_previous_secret: Annotated[
        Secret | None,
        doc("HS256 key before a rotation; tokens that it signed stay valid", secret=True),
    ] = None
    jwt_issuer: Annotated[str, doc("Required `iss` of users' tokens")] = "wearon"
    jwt_audience: Annotated[str, doc("Required `aud` of users' tokens")] = "wearon"
    jwt_roles: Annotated[Words, doc("Allowed `role` of users' tokens, if they have one")] = (
        "authenticated",
    )
    origins: Annotated[
        str | None,
        doc(
            "Origins of the web pages that may use users' tokens, separated by commas; `*` for all,"
            " only in `development`, where it is the default. Stores have origins of their own",
            example="https://shop.example,https://app.example",
        ),
    ] = None
    auth_cache_seconds: Annotated[
        float,
        Meta(ge=0, le=300),
        doc(
            "How long an authenticated token is cached;"
            " a revoked key keeps working for at most this long"
        ),
    ] = 5
    max_shopper_uploads: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        doc("Uploads per day of one shopper with client tokens; they count for the store as well"),
    ] = 50
    signing_secret: Annotated[
        Secret | None, doc("Key that signs picture URLs, unless the storage is `s3`", secret=True)
    ] = None
    signing_previous_secret: Annotated[
        Secret | None,
        doc("That key before a rotation; URLs that it signed stay valid", secret=True),
    ] = None
    picture_url_seconds: Annotated[Seconds, doc("How long a picture's URL is valid")] = 21_600
    age_verification_b2b: Annotated[
        AgeVerification,
        doc(
            "Whether requests of stores and their shoppers have to say `age_verified: true`;"
            " with `off` it is not recorded"
        ),
    ] = AgeVerification.OPTIONAL
    age_verification_b2c: Annotated[AgeVerification, doc("The same for users' requests")] = (
        AgeVerification.OPTIONAL
    )

    # Rates and accounts.
    signup_credits: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        doc("Credits that a user is granted at its first request; 0 for none"),
    ] = _SIGNUP.credits
    signup_anonymous_credits: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        doc("The same for users whose token says `is_anonymous`"),
    ] = _SIGNUP.anonymous_credits
    signups_per_day: Annotated[
        int,
        Meta(ge=0, le=10_000_000),
        doc("How many users are granted sign-up credits on one day (UTC)"),
    ] = _SIGNUP.per_day
    rate_per_minute: Annotated[
        PlanNumbers | None,
        doc(
            "Requests for a picture per minute and account, for each plan; a plan that is missing"
            " has no limit",
            example="default=60,starter=120,growth=600",
        ),
    ] = None
    rate_per_hour: Annotated[
        PlanNumbers | None,
        doc("The same per hour", example="default=600,starter=2000,growth=20000"),
    ] = None
    refunds_per_hour: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        doc(
            "Sessions of one account that may be cancelled, or fail through the caller's own fault,"
            " within an hour; then further requests get a 429; 0 for no limit"
        ),
    ] = 0
    shopper_refunds_per_hour: Annotated[
        int, Meta(ge=0, le=1_000_000), doc("The same for one shopper of a store")
    ] = 20
    reads_per_minute: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        doc(
            "Reads per minute and caller in one API process, apart from the rates of requests;"
            " 0 for no limit"
        ),
    ] = 0
    strangers_per_minute: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        doc(
            "Requests without a valid credential per minute from one address in one API process;"
            " 0 for no limit"
        ),
    ] = 600
    trusted_proxies: Annotated[
        int,
        Meta(ge=0, le=10),
        doc(
            "How many proxies in front append their client's address to `X-Forwarded-For`; 0 if"
            " clients connect directly"
        ),
    ] = 0
    shopper_max_active: Annotated[
        int, Meta(ge=1, le=1_000), doc("Unfinished sessions of one client token")
    ] = NO_LIMITS.max_active_of_token

    # Roles in the database.
    database_roles: Annotated[
        str,
        Meta(pattern=r"^[a-z_][a-z0-9_]{0,39}$"),
        doc(
            "Prefix of the group roles that `wearon migrate` creates in PostgreSQL:"
            " `_app`, `_consumer`, `_reader`"
        ),
    ] = "wearon"
