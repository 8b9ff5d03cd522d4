"""Credits: the balance and its ledger."""

from typing import Annotated

import msgspec
from litestar import get
from msgspec import Meta

from domain.credits import LedgerEntry, Owner
from domain.ports import CreditRepoPort
from domain.signup import CallerAccounts
from entrypoints.http.credit_schemas import (
    Credits,
    CreditsEnvelope,
    LedgerItem,
    LedgerPage,
    LedgerPageEnvelope,
)
from entrypoints.http.inputs import Cursor, CursorText, Injected, Limit, OwnedRequest
from entrypoints.http.openapi import failures

_TAGS = ["Credits"]
_EntryId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
_CURSOR: Cursor[int] = Cursor(msgspec.json.Decoder(_EntryId))


@get(
    "/credits",
    tags=_TAGS,
    summary="Get your balance",
    response_description="Your account.",
    responses=failures(401, 403, 503),
)
async def get_credits(request: OwnedRequest, accounts: Injected[CallerAccounts]) -> CreditsEnvelope:
    """Balance and totals, in credits. A generation costs one. A new user counts as holding its
    sign-up credits."""
    return CreditsEnvelope(data=Credits.of(await accounts.of(request.user)), error=None)


@get(
    "/credits/ledger",
    tags=_TAGS,
    summary="List your ledger entries",
    response_description="One page of your ledger, newest first.",
    responses=failures(401, 403, 503),
)
async def list_ledger(
    request: OwnedRequest,
    credit_repo: Injected[CreditRepoPort],
    limit: Limit = 20,
    cursor: CursorText = None,
) -> LedgerPageEnvelope:
    """Every grant, debit, refund and adjustment, newest first, up to `limit` per page. They add up
    to your balance."""
    found, next_cursor = await ledger_page(
        credit_repo, request.user.owner, limit=limit, cursor=cursor
    )
    items = [LedgerItem.of(entry) for entry in found]
    return LedgerPageEnvelope(data=LedgerPage(items=items, next_cursor=next_cursor), error=None)


async def ledger_page(
    credit_repo: CreditRepoPort, owner: Owner, *, limit: int, cursor: str | None
) -> tuple[list[LedgerEntry], str | None]:
    """The entries after ``cursor``, and the next cursor. Raises ``InvalidInput`` for a wrong
    one."""
    before_id = None if cursor is None else _CURSOR.decode(cursor)
    found = await credit_repo.ledger(owner, limit=limit + 1, before_id=before_id)
    entries = found[:limit]
    return entries, _CURSOR.encode(entries[-1].id) if len(found) > limit else None


CREDIT_HANDLERS = (get_credits, list_ledger)
