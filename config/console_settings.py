"""The settings of the operators' console."""

from typing import Annotated

from msgspec import Meta

from config.options import Secret, doc
from config.service_settings import ServiceSettings


class ConsoleSettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the console listens, and who may use it."""

    console_host: Annotated[str, doc("Address the console listens on")] = "127.0.0.1"
    console_port: Annotated[int, Meta(ge=1, le=65_535), doc("Port the console listens on")] = 8001
    console_secret: Annotated[
        Secret | None,
        doc("Key that signs the console's cookies; the console requires it", secret=True),
    ] = None
    console_read_only: Annotated[
        bool, doc("`true` lets operators of every role look, and change nothing, in the console")
    ] = False
    console_user_header: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$")] | None,
        doc(
            "Header in which a proxy in front names the operator whom it has signed in; only while"
            " the console listens on this machine alone",
            example="X-Forwarded-User",
        ),
    ] = None
