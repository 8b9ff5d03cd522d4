"""Request and response bodies of the administration calls, with their documentation."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from msgspec import Meta, Struct

from domain.account_ports import MAX_ORIGINS, Store
from domain.credits import MAX_GRANT, Booked, Channel, CreditAccount, LedgerEntry
from domain.keys import IssuedKey
from domain.labels import MAX_NAME_LENGTH, MAX_NOTE_LENGTH, MAX_REFERENCE_LENGTH
from domain.origins import MAX_ORIGIN_LENGTH
from domain.plans import Plan
from domain.ports import ApiKey
from entrypoints.http.credit_schemas import LedgerItem
from entrypoints.http.patterns import LINE, NAMED, ORIGIN, VISIBLE
from entrypoints.http.schemas import CreatedAt, NextCursor

MAX_ID_LENGTH = 128

OwnerId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        description="The store's id (`b2b`), or the user's UUID (`b2c`).",
        examples=["corner-shop"],
        extra_json_schema=NAMED,
    ),
]
StoreId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        description="Chosen by you: A-Z a-z 0-9 . _ : - and it begins with a letter or a digit.",
        examples=["corner-shop"],
        extra_json_schema=NAMED,
    ),
]
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        examples=["Corner Shop"],
        extra_json_schema=LINE,
    ),
]
Label = Annotated[
    str, Meta(max_length=MAX_NAME_LENGTH, examples=["web shop"], extra_json_schema=LINE)
]
Origins = Annotated[
    list[
        Annotated[str, Meta(min_length=1, max_length=MAX_ORIGIN_LENGTH, extra_json_schema=ORIGIN)]
    ],
    Meta(
        max_length=MAX_ORIGINS,
        description="The web pages from which the store's keys may be used: scheme://host[:port].",
        examples=[["https://shop.example"]],
    ),
]
Amount = Annotated[int, Meta(ge=1, le=MAX_GRANT, description="Credits.", examples=[100])]
Reference = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_REFERENCE_LENGTH,
        description="Your own key of this entry, used once: 1 to 255 visible ASCII characters.",
        examples=["invoice-4711"],
        extra_json_schema=VISIBLE,
    ),
]
Reason = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_NOTE_LENGTH,
        description="Why, for the audit log.",
        extra_json_schema=LINE,
    ),
]
OptionalReason = Annotated[
    str,
    Meta(max_length=MAX_NOTE_LENGTH, description="Why, for the audit log.", extra_json_schema=LINE),
]


class NewGrant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Credits for an owner."""

    channel: Channel
    owner_id: OwnerId
    amount: Amount
    reference: Reference
    note: Annotated[
        str,
        Meta(
            max_length=MAX_NOTE_LENGTH,
            description="The owner can read it in its ledger.",
            extra_json_schema=LINE,
        ),
    ] = ""


class NewAdjustment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Credits of a mistaken grant, to take back."""

    channel: Channel
    owner_id: OwnerId
    amount: Annotated[
        int, Meta(ge=1, le=MAX_GRANT, description="Credits to take: positive.", examples=[100])
    ]
    reference: Reference
    reason: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=MAX_NOTE_LENGTH,
            description="Why. The owner can read it in its ledger.",
            extra_json_schema=LINE,
        ),
    ]


class NewStore(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A store to create."""

    id: StoreId
    name: Name
    origins: Origins = []
    plan: Plan = Plan.DEFAULT


class StoreChanges(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change; a field that is left out stays as it is."""

    name: Name | None = None
    origins: Origins | None = None
    plan: Plan | None = None
    reason: OptionalReason | None = None


class NewKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An API key to create."""

    label: Label = ""


class Suspension(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an owner is suspended or resumed."""

    reason: Reason


class NewPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan that an owner is to have."""

    plan: Plan
    reason: OptionalReason | None = None


class Account(Struct, frozen=True, kw_only=True):
    """An owner's account."""

    channel: Channel
    owner_id: OwnerId
    balance: int
    total_granted: int
    total_debited: int
    total_refunded: int
    total_adjusted: int
    plan: Plan
    suspended: Annotated[bool, Meta(description="A suspended owner cannot request anything.")]

    @classmethod
    def of(cls, account: CreditAccount) -> Self:
        return cls(
            channel=account.owner.channel,
            owner_id=account.owner.id,
            balance=account.balance,
            total_granted=account.total_granted,
            total_debited=account.total_debited,
            total_refunded=account.total_refunded,
            total_adjusted=account.total_adjusted,
            plan=account.plan,
            suspended=account.suspended,
        )


class AccountEnvelope(Struct, frozen=True, kw_only=True):
    """Response with an account."""

    data: Account
    error: None


class Entry(LedgerItem, frozen=True, kw_only=True):
    """A ledger entry with its reference, which its owner does not see."""

    reference: Annotated[
        str | None, Meta(description="Of a grant or an adjustment, if it has one.")
    ]

    @classmethod
    def with_reference(cls, entry: LedgerEntry) -> Self:
        item = LedgerItem.of(entry)
        fields = {name: getattr(item, name) for name in item.__struct_fields__}
        return cls(reference=entry.reference, **fields)


class EntryPage(Struct, frozen=True, kw_only=True):
    """One page of an owner's ledger, newest first."""

    items: list[Entry]
    next_cursor: NextCursor


class EntryPageEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a page of ledger entries."""

    data: EntryPage
    error: None


class Booking(Struct, frozen=True, kw_only=True):
    """A ledger entry, and the account as it is now."""

    entry: Entry
    account: Account
    replayed: Annotated[
        bool, Meta(description="An earlier request with this reference made the entry.")
    ]

    @classmethod
    def of(cls, booked: Booked) -> Self:
        return cls(
            entry=Entry.with_reference(booked.entry),
            account=Account.of(booked.account),
            replayed=booked.replayed,
        )


class BookingEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a ledger entry."""

    data: Booking
    error: None


class StoreItem(Struct, frozen=True, kw_only=True):
    """A store."""

    id: StoreId
    name: Name
    origins: Origins
    plan: Plan
    created_at: CreatedAt

    @classmethod
    def of(cls, store: Store) -> Self:
        return cls(
            id=store.id,
            name=store.name,
            origins=list(store.origins),
            plan=store.plan,
            created_at=store.created_at,
        )


class StoreEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a store."""

    data: StoreItem
    error: None


class KeyItem(Struct, frozen=True, kw_only=True):
    """An API key's record."""

    id: UUID
    store_id: StoreId
    prefix: Annotated[
        str | None,
        Meta(description="How the key begins; null for old keys.", examples=["wk_1a2b3c"]),
    ]
    label: Label
    created_at: CreatedAt
    revoked_at: Annotated[datetime | None, Meta(description="When it was revoked, UTC.")]

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls(
            id=key.id,
            store_id=key.owner.id,
            prefix=key.prefix,
            label=key.label,
            created_at=key.created_at,
            revoked_at=key.revoked_at,
        )


class KeyEnvelope(Struct, frozen=True, kw_only=True):
    """Response with an API key's record."""

    data: KeyItem
    error: None


class CreatedKey(KeyItem, frozen=True, kw_only=True):
    """A new API key."""

    key: Annotated[
        str | None,
        Meta(description="The key itself. Not shown again: null in the response to a repetition."),
    ]

    @classmethod
    def issued(cls, issued: IssuedKey[ApiKey]) -> Self:
        item = KeyItem.of(issued.key)
        fields = {name: getattr(item, name) for name in item.__struct_fields__}
        return cls(key=issued.secret, **fields)


class CreatedKeyEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a new API key."""

    data: CreatedKey
    error: None


class Keys(Struct, frozen=True, kw_only=True):
    """A store's API keys, newest first, including revoked ones."""

    items: list[KeyItem]


class KeysEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a store's API keys."""

    data: Keys
    error: None
