"""Administration: what a service of the operator's, such as a billing system, may do."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, get, patch, post, put
from litestar.openapi import ResponseSpec
from litestar.params import HeaderParameter, JSONBody, PathParameter

from domain.account_ports import StoreChange
from domain.accounts import CreditGrants, Owners, owner_named
from domain.callers import Scope, Service
from domain.credits import Channel
from domain.errors import InvalidInput, UnknownStore
from domain.keys import ApiKeyIssuer
from domain.operators import Operator
from domain.ports import CreditRepoPort
from domain.stores import Stores, store_named
from entrypoints.http.access import for_services
from entrypoints.http.admin_schemas import (
    Account,
    AccountEnvelope,
    Booking,
    BookingEnvelope,
    CreatedKey,
    CreatedKeyEnvelope,
    Entry,
    EntryPage,
    EntryPageEnvelope,
    KeyEnvelope,
    KeyItem,
    Keys,
    KeysEnvelope,
    NewAdjustment,
    NewGrant,
    NewKey,
    NewPlan,
    NewStore,
    StoreChanges,
    StoreEnvelope,
    StoreItem,
    Suspension,
)
from entrypoints.http.credits import ledger_page
from entrypoints.http.inputs import CursorText, Injected, Limit, StrictBody
from entrypoints.http.openapi import failures

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Administration:
    """The use cases of an operator."""

    grants: CreditGrants
    owners: Owners
    stores: Stores
    keys: ApiKeyIssuer


ServiceRequest: TypeAlias = Request[Service, Any, Any]
"""A request whose ``user`` is a service."""

Admin: TypeAlias = Injected[Administration]

ChannelInPath = Annotated[Channel, PathParameter(description="`b2b`: stores; `b2c`: users.")]
OwnerIdInPath = Annotated[
    str, PathParameter(description="The store's id (`b2b`), or the user's UUID (`b2c`).")
]
StoreIdInPath = Annotated[str, PathParameter(description="The store's id.")]
KeyIdInPath = Annotated[UUID, PathParameter(description="The key's id.")]
RequiredIdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="Required. Chosen by you: 1 to 255 visible ASCII characters, unique per key.",
    ),
]

_TAGS = ["Administration"]
_ACCOUNT = "/admin/accounts/{channel:str}/{owner_id:str}"
_ACCOUNT_FAILURES = failures(401, 403, UnknownStore, 503)
_CHANGE_FAILURES = failures(401, 403, UnknownStore, 413, 415, 503)


class NewGrantBody(StrictBody[NewGrant]):
    decoder = msgspec.json.Decoder(NewGrant)


class NewAdjustmentBody(StrictBody[NewAdjustment]):
    decoder = msgspec.json.Decoder(NewAdjustment)


class NewStoreBody(StrictBody[NewStore]):
    decoder = msgspec.json.Decoder(NewStore)


class StoreChangesBody(StrictBody[StoreChanges]):
    decoder = msgspec.json.Decoder(StoreChanges)


class NewKeyBody(StrictBody[NewKey]):
    decoder = msgspec.json.Decoder(NewKey)


class SuspensionBody(StrictBody[Suspension]):
    decoder = msgspec.json.Decoder(Suspension)


class NewPlanBody(StrictBody[NewPlan]):
    decoder = msgspec.json.Decoder(NewPlan)


def _by(request: ServiceRequest, reason: str | None = None) -> Operator:
    return Operator(actor=str(request.user), reason=reason or None)


def _again(kind: type[T], description: str) -> dict[int, ResponseSpec]:
    """The response to the repetition of a request that answers 201."""
    return {200: ResponseSpec(kind, description=description, generate_examples=False)}


@post(
    "/admin/grants",
    status_code=200,
    dto=NewGrantBody,
    return_dto=None,
    opt=for_services(Scope.GRANTS),
    tags=_TAGS,
    summary="Grant credits",
    response_description="The ledger entry, and the account as it is now.",
    responses=failures(401, 403, UnknownStore, 413, 415, 422, 503),
)
async def grant_credits(
    request: ServiceRequest, data: JSONBody[NewGrant], administration: Admin
) -> BookingEnvelope:
    """Repeating a grant with its `reference` grants nothing again. A store has to exist; a user's
    account is created. Needs the scope `grants`."""
    booked = await administration.grants.grant(
        owner_named(data.channel, data.owner_id),
        data.amount,
        note=data.note,
        reference=data.reference,
        by=_by(request),
    )
    return BookingEnvelope(data=Booking.of(booked), error=None)


@post(
    "/admin/adjustments",
    status_code=200,
    dto=NewAdjustmentBody,
    return_dto=None,
    opt=for_services(Scope.GRANTS),
    tags=_TAGS,
    summary="Take a mistaken grant back",
    response_description="The ledger entry, and the account as it is now.",
    responses=failures(401, 403, UnknownStore, 409, 413, 415, 422, 503),
)
async def adjust_credits(
    request: ServiceRequest, data: JSONBody[NewAdjustment], administration: Admin
) -> BookingEnvelope:
    """Takes the whole `amount`, or nothing if the balance is smaller (409). Repeating it with its
    `reference` takes nothing again. Needs the scope `grants`."""
    booked = await administration.grants.adjust(
        owner_named(data.channel, data.owner_id),
        data.amount,
        reference=data.reference,
        by=_by(request, data.reason),
    )
    return BookingEnvelope(data=Booking.of(booked), error=None)


@post(
    "/admin/stores",
    status_code=201,
    dto=NewStoreBody,
    return_dto=None,
    opt=for_services(Scope.STORES),
    tags=_TAGS,
    summary="Create a store",
    response_description="The new store.",
    responses={
        **failures(401, 403, 409, 413, 415, 503),
        **_again(StoreEnvelope, "The store, which an earlier request created."),
    },
)
async def create_store(
    request: ServiceRequest, data: JSONBody[NewStore], administration: Admin
) -> Response[StoreEnvelope]:
    """Repeating the same body returns the store with 200; a store that differs is a 409. Needs the
    scope `stores`."""
    created = await administration.stores.create(
        data.id, name=data.name, origins=data.origins, plan=data.plan, by=_by(request)
    )
    envelope = StoreEnvelope(data=StoreItem.of(created.store), error=None)
    return Response(envelope, status_code=200 if created.replayed else 201)


@get(
    "/admin/stores/{store_id:str}",
    opt=for_services(Scope.READ),
    tags=_TAGS,
    summary="Get a store",
    response_description="The store.",
    responses=_ACCOUNT_FAILURES,
)
async def get_store(store_id: StoreIdInPath, administration: Admin) -> StoreEnvelope:
    """Needs the scope `read`."""
    store = await administration.stores.get(store_id)
    return StoreEnvelope(data=StoreItem.of(store), error=None)


@patch(
    "/admin/stores/{store_id:str}",
    dto=StoreChangesBody,
    return_dto=None,
    opt=for_services(Scope.STORES),
    tags=_TAGS,
    summary="Change a store",
    response_description="The store after the change.",
    responses=_CHANGE_FAILURES,
)
async def change_store(
    request: ServiceRequest,
    store_id: StoreIdInPath,
    data: JSONBody[StoreChanges],
    administration: Admin,
) -> StoreEnvelope:
    """`origins` replaces all of the store's origins. Needs the scope `stores`."""
    change = StoreChange(name=data.name, origins=data.origins, plan=data.plan)
    by = _by(request, data.reason)
    store = await administration.stores.change(store_id, change, by=by)
    return StoreEnvelope(data=StoreItem.of(store), error=None)


@post(
    "/admin/stores/{store_id:str}/keys",
    status_code=201,
    dto=NewKeyBody,
    return_dto=None,
    opt=for_services(Scope.KEYS),
    tags=_TAGS,
    summary="Create an API key",
    response_description="The new key. It is not shown again.",
    responses={
        **failures(401, 403, UnknownStore, 413, 415, 422, 503),
        **_again(CreatedKeyEnvelope, "The key's record, which an earlier request created."),
    },
)
async def create_key(
    request: ServiceRequest,
    store_id: StoreIdInPath,
    data: JSONBody[NewKey],
    administration: Admin,
    idempotency_key: RequiredIdempotencyKey = None,
) -> Response[CreatedKeyEnvelope]:
    """Repeating it with its `Idempotency-Key` returns the same record with 200, without the key:
    if you lost the first response, revoke the key and create another one. Needs the scope
    `keys`."""
    if idempotency_key is None:
        raise InvalidInput("Idempotency-Key", "is required")
    issued = await administration.keys.issue(
        store_named(store_id),
        label=data.label,
        idempotency_key=idempotency_key,
        by=_by(request),
    )
    envelope = CreatedKeyEnvelope(data=CreatedKey.issued(issued), error=None)
    return Response(envelope, status_code=200 if issued.secret is None else 201)


@get(
    "/admin/stores/{store_id:str}/keys",
    opt=for_services(Scope.READ),
    tags=_TAGS,
    summary="List a store's API keys",
    response_description="The records of the keys, newest first.",
    responses=_ACCOUNT_FAILURES,
)
async def list_keys(store_id: StoreIdInPath, administration: Admin) -> KeysEnvelope:
    """The newest 1,000, including revoked ones. Needs the scope `read`."""
    keys = await administration.keys.all(store_named(store_id))
    return KeysEnvelope(data=Keys(items=[KeyItem.of(key) for key in keys]), error=None)


@delete(
    "/admin/keys/{key_id:str}",
    status_code=200,
    opt=for_services(Scope.KEYS),
    tags=_TAGS,
    summary="Revoke an API key",
    response_description="The key's record.",
    responses=failures(401, 403, 404, 503),
)
async def revoke_key(
    request: ServiceRequest, key_id: KeyIdInPath, administration: Admin
) -> KeyEnvelope:
    """The key stops working within seconds. Repeating it changes nothing. Needs the scope
    `keys`."""
    key = await administration.keys.revoke(key_id, by=_by(request))
    return KeyEnvelope(data=KeyItem.of(key), error=None)


@get(
    _ACCOUNT,
    opt=for_services(Scope.READ),
    tags=_TAGS,
    summary="Get an owner's account",
    response_description="The account.",
    responses=_ACCOUNT_FAILURES,
)
async def get_account(
    channel: ChannelInPath, owner_id: OwnerIdInPath, administration: Admin
) -> AccountEnvelope:
    """A user without an account has a balance of 0. Needs the scope `read`."""
    account = await administration.owners.account(owner_named(channel, owner_id))
    return AccountEnvelope(data=Account.of(account), error=None)


@get(
    f"{_ACCOUNT}/ledger",
    opt=for_services(Scope.READ),
    tags=_TAGS,
    summary="List an owner's ledger entries",
    response_description="One page of the owner's ledger, newest first.",
    responses=_ACCOUNT_FAILURES,
)
async def list_account_ledger(
    *,
    channel: ChannelInPath,
    owner_id: OwnerIdInPath,
    administration: Admin,
    credit_repo: Injected[CreditRepoPort],
    limit: Limit = 20,
    cursor: CursorText = None,
) -> EntryPageEnvelope:
    """The same entries as the owner's own, with your references. Needs the scope `read`."""
    owner = owner_named(channel, owner_id)
    await administration.owners.require(owner)
    found, next_cursor = await ledger_page(credit_repo, owner, limit=limit, cursor=cursor)
    items = [Entry.with_reference(entry) for entry in found]
    return EntryPageEnvelope(data=EntryPage(items=items, next_cursor=next_cursor), error=None)


@post(
    f"{_ACCOUNT}/suspend",
    status_code=200,
    dto=SuspensionBody,
    return_dto=None,
    opt=for_services(Scope.STORES),
    tags=_TAGS,
    summary="Suspend an owner",
    response_description="The account, suspended.",
    responses=_CHANGE_FAILURES,
)
async def suspend_owner(
    request: ServiceRequest,
    channel: ChannelInPath,
    owner_id: OwnerIdInPath,
    data: JSONBody[Suspension],
    administration: Admin,
) -> AccountEnvelope:
    """The owner can request and upload nothing until it is resumed; what it requested before goes
    on. Repeating it changes nothing. Needs the scope `stores`."""
    owner, by = owner_named(channel, owner_id), _by(request, data.reason)
    account = await administration.owners.suspend(owner, by=by)
    return AccountEnvelope(data=Account.of(account), error=None)


@post(
    f"{_ACCOUNT}/resume",
    status_code=200,
    dto=SuspensionBody,
    return_dto=None,
    opt=for_services(Scope.STORES),
    tags=_TAGS,
    summary="Resume an owner",
    response_description="The account, no longer suspended.",
    responses=_CHANGE_FAILURES,
)
async def resume_owner(
    request: ServiceRequest,
    channel: ChannelInPath,
    owner_id: OwnerIdInPath,
    data: JSONBody[Suspension],
    administration: Admin,
) -> AccountEnvelope:
    """Ends a suspension. Repeating it changes nothing. Needs the scope `stores`."""
    owner, by = owner_named(channel, owner_id), _by(request, data.reason)
    account = await administration.owners.resume(owner, by=by)
    return AccountEnvelope(data=Account.of(account), error=None)


@put(
    f"{_ACCOUNT}/plan",
    dto=NewPlanBody,
    return_dto=None,
    opt=for_services(Scope.STORES),
    tags=_TAGS,
    summary="Set an owner's plan",
    response_description="The account with the plan.",
    responses=_CHANGE_FAILURES,
)
async def set_plan(
    request: ServiceRequest,
    channel: ChannelInPath,
    owner_id: OwnerIdInPath,
    data: JSONBody[NewPlan],
    administration: Admin,
) -> AccountEnvelope:
    """A plan decides how often the owner may call. Needs the scope `stores`."""
    owner, by = owner_named(channel, owner_id), _by(request, data.reason)
    account = await administration.owners.set_plan(owner, data.plan, by=by)
    return AccountEnvelope(data=Account.of(account), error=None)


ADMIN_HANDLERS = (
    grant_credits,
    adjust_credits,
    create_store,
    get_store,
    change_store,
    create_key,
    list_keys,
    revoke_key,
    get_account,
    list_account_ledger,
    suspend_owner,
    resume_owner,
    set_plan,
)
