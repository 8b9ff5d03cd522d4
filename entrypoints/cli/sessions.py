"""Commands for operators: sessions of all owners."""

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import rich_click as click

from domain.credits import Owner
from domain.operator_ports import SessionFile, SessionFilter
from domain.session_files import charged
from domain.sessions import GenerationSession, SessionStatus
from entrypoints.cli.fields import flat, session_fields
from entrypoints.cli.output import json_option, limit_option, print_json, print_table, run
from entrypoints.cli.owner_options import check_known, one_owner, store_option, user_option
from entrypoints.cli.session_page import page_lines
from entrypoints.cli.times import Moment

if TYPE_CHECKING:
    from config.container import Container


@click.group("sessions")
def sessions_group() -> None:
    """Generation sessions of all owners."""


@sessions_group.command("show")
@click.argument("session_id", type=click.UUID)
@click.option("--all", "with_fields", is_flag=True, help="Also list every stored field.")
@json_option
def show_session(session_id: UUID, *, with_fields: bool, as_json: bool) -> None:
    """Show what happened to the session with the id SESSION_ID, and whether it was charged."""
    print_file(
        run(lambda container: container.operator_reads().session_file(session_id)),
        with_fields=with_fields,
        as_json=as_json,
    )


def print_file(file: SessionFile, *, with_fields: bool = False, as_json: bool) -> None:
    """Print a session's page, or everything that is known as JSON."""
    if as_json:
        print_json(
            session_fields(file.session)
            | {
                "faults": file.faults,
                "ledger": [flat(entry) for entry in file.entries],
                "credits_charged": charged(file),
            }
        )
        return
    click.echo("\n".join(page_lines(file)))
    if with_fields:
        click.echo()
        print_table(("FIELD", "VALUE"), _rows(session_fields(file.session)))


def _rows(fields: dict[str, Any]) -> list[tuple[str, object]]:
    """The fields as rows, with a row for each accessory."""
    accessories = fields.pop("accessories")
    return [
        *fields.items(),
        *(
            (f"accessories[{index}]", f"{accessory['type']}: {accessory['url']}")
            for index, accessory in enumerate(accessories)
        ),
    ]


@sessions_group.command("list")
@user_option
@store_option
@click.option(
    "--status",
    "statuses",
    type=click.Choice([status.value for status in SessionStatus]),
    multiple=True,
    help="Only sessions in this status; repeatable.",
)
@click.option("--code", metavar="CODE", help="Only sessions that failed with this error code.")
@click.option("--request-id", metavar="ID", help="Only sessions of the request with this id.")
@click.option("--since", type=Moment(), help="Only those created since: a time, or 90m, 24h, 7d.")
@click.option("--until", type=Moment(), help="Only those created before.")
@click.option(
    "--after", "cursor", type=click.UUID, metavar="CURSOR", help="Go on after the last page."
)
@limit_option
@json_option
def list_sessions(
    *,
    user: Owner | None,
    store: Owner | None,
    statuses: tuple[str, ...],
    code: str | None,
    request_id: str | None,
    since: datetime | None,
    until: datetime | None,
    cursor: UUID | None,
    limit: int,
    as_json: bool,
) -> None:
    """List sessions, newest first.

    A request id that we made (`req_...`) tells its time, so it is found at any age; others are
    searched for in the last 24 hours, or since --since.
    """
    owner = one_owner(user, store)
    which = SessionFilter(
        statuses=tuple(SessionStatus(status) for status in statuses),
        owner=owner,
        error_code=code,
        request_id=request_id,
        since=since,
        until=until,
    )

    async def read(container: "Container") -> list[GenerationSession]:
        await check_known(container, owner)
        # One more than asked for shows whether there is another page.
        return await container.operator_reads().sessions(which, limit=limit + 1, before=cursor)

    found = run(read)
    next_cursor = found[limit - 1].id if len(found) > limit else None
    if as_json:
        items = [session_fields(session) for session in found[:limit]]
        print_json({"items": items, "next_cursor": next_cursor})
        return
    print_sessions(found[:limit])
    if next_cursor is not None:
        click.echo(f"More: --after {next_cursor}", err=True)


def print_sessions(sessions: list[GenerationSession]) -> None:
    """A row for each."""
    print_table(
        ("ID", "OWNER", "STATUS", "ATTEMPT", "ERROR", "CREATED (UTC)"),
        [
            (
                session.id,
                session.owner,
                session.status,
                session.attempt,
                session.failure.code if session.failure else None,
                session.created_at,
            )
            for session in sessions
        ],
    )
