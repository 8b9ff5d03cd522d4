"""The settings of the door: who may call, from where, and how often."""

from typing import Annotated

from msgspec import Meta

from config.options import Seconds, Secret, doc
from config.service_settings import ServiceSettings
from domain.age import AgeVerification


class DoorSettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Callers' credentials, signed links, origins, rates and accounts."""

    jwt_secret: Annotated[
        Secret | None, doc("HS256 key that signs the users' tokens", secret=True)
    ] = None
    jwt_issuer: Annotated[str, doc("Required `iss` of users' tokens")] = "wearon"
    jwt_audience: Annotated[str, doc("Required `aud` of users' tokens")] = "wearon"
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
