"""The settings of the door: who may call, from where, and how often."""

from typing import Annotated

from msgspec import Meta

from config.options import JwksUrl, Seconds, Secret, TokenAlgorithm, Words, doc
from config.service_settings import ServiceSettings


class DoorSettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    auth_cache_seconds: Annotated[
        float,
        Meta(ge=0, le=300),
        doc(
            "How long an authenticated token is cached;"
            " a revoked key keeps working for at most this long"
        ),
    ] = 5
    signing_secret: Annotated[
        Secret | None, doc("Key that signs picture URLs, unless the storage is `s3`", secret=True)
    ] = None
    signing_previous_secret: Annotated[
        Secret | None,
        doc("That key before a rotation; URLs that it signed stay valid", secret=True),
    ] = None
    picture_url_seconds: Annotated[Seconds, doc("How long a picture's URL is valid")] = 21_600
