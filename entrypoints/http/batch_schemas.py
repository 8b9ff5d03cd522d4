"""The bodies of ``POST /api/v1/generations/batch``."""

from typing import Annotated, Self

from msgspec import Meta, Struct

from domain.ports import Receipt
from entrypoints.http.schemas import ErrorBody, NewGeneration, Submitted

MAX_ITEMS = 100


class BatchItem(NewGeneration, frozen=True, kw_only=True):
    """One try-on request of a batch."""

    idempotency_key: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=255,
                pattern="^[!-~]*$",
                description="Like the header `Idempotency-Key` of a single request, for this item.",
                examples=["order-4711"],
            ),
        ]
        | None
    ) = None


class NewBatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Up to 100 try-on requests."""

    items: Annotated[
        list[BatchItem],
        Meta(min_length=1, max_length=MAX_ITEMS, description="Each is a request of its own."),
    ]


class ItemAnswer(Struct, frozen=True, kw_only=True):
    """The answer to one item: what it would have got as a request of its own."""

    status: Annotated[
        int, Meta(description="The HTTP status: 202 if it is accepted.", examples=[202])
    ]
    data: Submitted | None
    error: ErrorBody | None
    replayed: Annotated[
        bool, Meta(description="Whether an earlier request with this key was accepted.")
    ] = False

    @classmethod
    def accepted(cls, receipt: Receipt) -> Self:
        return cls(status=202, data=Submitted.of(receipt), error=None, replayed=receipt.replayed)


class BatchAnswers(Struct, frozen=True, kw_only=True):
    """The answers, in the order of the items."""

    items: list[ItemAnswer]


class BatchEnvelope(Struct, frozen=True, kw_only=True):
    """Response to a batch."""

    data: BatchAnswers
    error: None
