"""Who may do what in the database: the one table of it.

``adapters/postgres/access.py`` brings the database in line with it after each migration. A relation
or a function that a migration adds gets a line here; without one, a test fails. Whatever is not
granted here is revoked from ``PUBLIC``, from our group roles and from Supabase's roles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

Grants = Mapping[str, Sequence[str]]
"""The columns of each command; none stands for the whole row."""


class Group(StrEnum):
    """Who gets privileges. All but USER are group roles of ours: a login role is put into one."""

    APP = "app"
    """The API, the workers and the CLI, except for ``wearon migrate``."""
    CONSUMER = "consumer"
    """An external consumer: reads sessions, writes their results."""
    READER = "reader"
    """Reads everything but the hashes of credentials."""
    USER = "user"
    """Supabase's role ``authenticated``: a user with a token, who sees only their own rows."""


OURS = (Group.APP, Group.CONSUMER, Group.READER)
AUTHENTICATED = "authenticated"
SUPABASE = ("anon", AUTHENTICATED, "service_role")
"""Supabase's default privileges grant these roles everything on each new table. ``service_role``
also bypasses row-level security."""

RESULT_COLUMNS = (
    "status",
    "generated_image_url",
    "error_code",
    "error_message",
    "processing_time_ms",
)
USER_COLUMNS = (
    *("id", "status", "channel", "model_image_url", "outfit_image_url", "accessories"),
    *("media_type", "error_code", "error_message", "attempt", "request_id"),
    *("created_at", "started_at", "completed_at", "processing_time_ms"),
    *("input_tokens", "output_tokens", "estimated_cost_usd"),
)
"""What the API shows of a session, without the picture: its link is signed for each reader and
expires, so a user gets it from the API. Also the columns that are published for Realtime."""

OWN_ROWS = "channel = 'b2c' AND owner_id = (SELECT auth.uid())::text"
"""The policy for USER. ``owner_id`` is the ``user_id`` of such a session, and is indexed."""


def _all(commands: str) -> Grants:
    return dict.fromkeys(commands.split(), ())


_READS = _all("SELECT")
_ADDS = _all("SELECT INSERT")
_WRITES = _all("SELECT INSERT UPDATE")
_RESULTS: Grants = {"SELECT": (), "UPDATE": RESULT_COLUMNS}


def _columns(names: str) -> Grants:
    return {"SELECT": names.split()}


TABLES: Mapping[str, Mapping[Group, Grants]] = {
    "schema_migrations": {Group.APP: _READS, Group.READER: _READS},
    "credit_accounts": {Group.APP: _WRITES, Group.READER: _READS},
    "credit_ledger": {Group.APP: _ADDS, Group.READER: _READS},
    "generation_sessions": {
        Group.APP: _WRITES,
        Group.CONSUMER: _RESULTS,
        Group.READER: _READS,
        Group.USER: {"SELECT": USER_COLUMNS},
    },
    "attempt_faults": {Group.APP: _all("SELECT INSERT DELETE"), Group.READER: _READS},
    "stores": {Group.APP: _WRITES, Group.READER: _READS},
    "signup_days": {Group.APP: _WRITES, Group.READER: _READS},
    "shoppers": {Group.APP: _all("SELECT INSERT UPDATE DELETE"), Group.READER: _READS},
    "api_keys": {
        Group.APP: _WRITES,
        Group.READER: _columns("id channel owner_id prefix label created_at revoked_at"),
    },
    "client_tokens": {
        Group.APP: _all("SELECT INSERT UPDATE DELETE"),
        Group.READER: _columns(
            "id store_id shopper_id origin pictures used submissions created_at expires_at"
            " revoked_at"
        ),
    },
    "service_keys": {
        Group.APP: _WRITES,
        Group.READER: _columns("id prefix label scopes created_at revoked_at"),
    },
    "operators": {
        Group.APP: _WRITES,
        Group.READER: _columns("name role epoch made_at revoked_at"),
    },
    "operator_actions": {Group.APP: _ADDS, Group.READER: _READS},
    "workers": {Group.APP: _all("SELECT INSERT UPDATE DELETE"), Group.READER: _READS},
    "pauses": {Group.APP: _all("SELECT INSERT DELETE"), Group.READER: _READS},
    "book_checks": {Group.APP: _all("SELECT UPDATE"), Group.READER: _READS},
    "webhook_endpoints": {
        Group.APP: _all("SELECT INSERT UPDATE DELETE"),
        Group.READER: _columns(
            "id channel owner_id url events description created_at disabled_at disabled_reason"
            " failures failing_since paused_until window_size turn leased_until"
        ),
    },
    "webhook_deliveries": {Group.APP: _all("SELECT INSERT UPDATE DELETE"), Group.READER: _READS},
    "webhook_attempts": {Group.APP: _all("SELECT INSERT DELETE"), Group.READER: _READS},
}
"""Each has row-level security, with one policy for each group and command."""

VIEWS: Mapping[str, Mapping[Group, Grants]] = {
    "store_generation_sessions": {Group.CONSUMER: _RESULTS, Group.READER: _READS},
}

SEQUENCES = ("credit_ledger_id_seq", "operator_actions_id_seq")
"""No role has a privilege on these: an identity column takes its numbers without a privilege."""

FUNCTIONS: Mapping[str, Sequence[Group]] = {
    # The CHECK calls it for every role that writes a session.
    "session_is_sound": (Group.APP, Group.CONSUMER),
    "key_is_taken": (Group.APP,),
    "count_unfinished": (Group.APP,),
    "count_unfinished_of_token": (Group.APP,),
    "is_new_user": (Group.APP,),
    # Triggers need no privilege.
    "refuse": (),
    "refuse_account": (),
    "guard_session": (),
    "require_failure": (),
    "require_refund": (),
    "require_accounts": (),
    "tell_of_session": (),
    "tell_of_low_credits": (),
}


@dataclass(frozen=True, slots=True)
class RoleNames:
    """The names of the group roles: a cluster may have others of ours, of another deployment."""

    prefix: str = "wearon"

    def of(self, group: Group) -> str:
        return AUTHENTICATED if group is Group.USER else f"{self.prefix}_{group}"

    @property
    def ours(self) -> list[str]:
        return [self.of(group) for group in OURS]
