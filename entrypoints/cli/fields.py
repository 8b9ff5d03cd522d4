"""Records as commands print them, under the names that the HTTP API and the database use."""

from typing import Any

from domain.sessions import GenerationSession

_USAGE = ("provider", "input_tokens", "output_tokens", "estimated_cost_usd")


def flat(record: object) -> dict[str, Any]:
    """An owner's record: ``channel`` and ``owner_id`` in place of ``owner``."""
    import msgspec  # noqa: PLC0415 - help needs no encoder

    fields: dict[str, Any] = {}
    for name, value in msgspec.to_builtins(record).items():
        if name == "owner":
            fields |= {"channel": value["channel"], "owner_id": value["id"]}
        else:
            fields[name] = value
    return fields


def session_fields(session: GenerationSession) -> dict[str, Any]:
    """Everything that is stored of a session, one level deep."""
    fields = flat(session)
    picture, failure, usage, shopper = (
        fields.pop(name) or {} for name in ("picture", "failure", "usage", "shopper")
    )
    return {
        "session_id": fields.pop("id"),
        "shopper_id": shopper.get("id"),
        "client_token_id": shopper.get("token_id"),
        **fields.pop("input"),
        **fields,
        "attempts_spent": session.attempts_spent,
        "image_expired": session.image_expired,
        "object_key": picture.get("object_key"),
        "media_type": picture.get("media_type"),
        "error_code": failure.get("code"),
        "error_message": failure.get("message"),
        **{name: usage.get(name) for name in _USAGE},
    }
