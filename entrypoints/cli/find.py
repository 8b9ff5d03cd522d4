"""``wearon find``: whatever an operator was given."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import rich_click as click

from config.printable import printable
from domain.credits import CreditAccount
from domain.finding import Found, Hit
from domain.operator_ports import SessionFile, SessionFilter
from domain.sessions import GenerationSession
from entrypoints.cli.fields import flat, session_fields
from entrypoints.cli.output import json_option, print_json, print_table, run
from entrypoints.cli.sessions import print_file, print_sessions
from entrypoints.cli.times import Moment

if TYPE_CHECKING:
    from config.container import Container

LATEST = 10
"""How many of an owner's sessions are shown."""
_CREDENTIALS = frozenset({"API key", "client token", "service key"})


@dataclass(frozen=True, slots=True)
class OwnerPage:
    """An account and its latest sessions."""

    account: CreditAccount
    sessions: list[GenerationSession]


@click.command("find")
@click.argument("anything")
@click.option(
    "--since",
    type=Moment(),
    help="How far back to search for a caller's own request id: a time, or 90m, 24h, 7d."
    "  [default: 24h]",
)
@json_option
def find(anything: str, *, since: datetime | None, as_json: bool) -> None:
    """Find ANYTHING: a session, user, request or store by its id, or whose a key is.

    A single session or owner is shown at once. A key (wk_..., wc_..., wa_...) is hashed before it
    is looked up, and never shown; mind that it stays in your shell's history.
    """

    async def search(
        container: "Container",
    ) -> tuple[Found, SessionFile | OwnerPage | None]:
        found = await container.finder().find(anything, since=since)
        return found, await _page(container, found.hits)

    found, page = run(search)
    if not found.hits:
        raise click.ClickException(_nothing(anything, found))
    match page:
        case SessionFile():
            print_file(page, as_json=as_json)
        case OwnerPage():
            _print_owner(page, found.hits[0].note, as_json=as_json)
        case None if as_json:
            print_json({"hits": [_fields(hit) for hit in found.hits]})
        case None:
            _print_hits(found.hits)


async def _page(container: "Container", hits: Sequence[Hit]) -> SessionFile | OwnerPage | None:
    """The page of the only hit."""
    if len(hits) != 1:
        return None
    (hit,) = hits
    reads = container.operator_reads()
    if hit.session is not None:
        return await reads.session_file(hit.session.id)
    if hit.owner is None:
        return None
    return OwnerPage(
        await container.accounts().account(hit.owner),
        await reads.sessions(SessionFilter(owner=hit.owner), limit=LATEST),
    )


def _print_owner(page: OwnerPage, note: str, *, as_json: bool) -> None:
    account = flat(page.account)
    if as_json:
        sessions = [session_fields(session) for session in page.sessions]
        print_json({"found_by": note or None, "account": account, "sessions": sessions})
        return
    if note:
        click.echo(f"{printable(note)}\n")
    print_table(("ACCOUNT", "VALUE"), list(account.items()))
    click.echo(f"\nLatest {LATEST} sessions:")
    print_sessions(page.sessions)


def _print_hits(hits: Sequence[Hit]) -> None:
    for hit in hits:
        if hit.note:
            click.echo(printable(hit.note))
    if sessions := [hit.session for hit in hits if hit.session]:
        print_sessions(sessions)


def _fields(hit: Hit) -> dict[str, Any]:
    session = None if hit.session is None else session_fields(hit.session)
    return {"session": session, "found_by": hit.note or None}


def _nothing(anything: str, found: Found) -> str:
    """A key is not repeated, because standard error may be kept."""
    is_secret = bool(_CREDENTIALS & set(found.tried))
    shown = f"{anything.strip()[:3]}..." if is_secret else repr(anything)
    tried = ", ".join(found.tried) or "nothing, because it has the form of no id"
    return f"Nothing found for {shown}. Tried: {tried}."
