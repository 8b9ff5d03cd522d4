"""Who calls: a user, a store, one of a store's shoppers, or a service of the operator's."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

from domain.credits import Channel, Owner
from domain.errors import DomainMismatch


class CallerKind(StrEnum):
    """The kinds of principals that a route may allow."""

    USER = "user"
    STORE = "store"
    SHOPPER = "shopper"
    SERVICE = "service"


class Scope(StrEnum):
    """What a service key may do."""

    GRANTS = "grants"
    STORES = "stores"
    KEYS = "keys"
    READ = "read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shopper:
    """One person in a store's shop, by the store's own id, and the client token in use."""

    id: str
    token_id: UUID

    def stored_key(self, idempotency_key: str) -> str:
        """This shopper's idempotency key as its session has it.

        A store and each of its shoppers have keys of their own: a request under another one's key
        would be answered with that one's session. No key that a caller sends has a space, so no
        store's key looks like a shopper's. A stored key outlives an erasure, so it does not show
        the shopper's id.
        """
        digest = hashlib.sha256(f"{self.id} {idempotency_key}".encode()).hexdigest()
        return f"shopper {digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The owner that a credential acts for.

    ``origins`` are the web pages from which the credential may be used; with ``any_origin`` it may
    be used from all. ``shopper`` is set for a store's client token. ``is_anonymous`` users have no
    account of their own at the identity provider.
    """

    owner: Owner
    origins: frozenset[str] = frozenset()
    any_origin: bool = False
    shopper: Shopper | None = None
    is_anonymous: bool = False
    kind: CallerKind = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        of_channel = CallerKind.USER if self.owner.channel is Channel.B2C else CallerKind.STORE
        kind = of_channel if self.shopper is None else CallerKind.SHOPPER
        object.__setattr__(self, "kind", kind)

    @property
    def shopper_id(self) -> str | None:
        """The shopper to whose sessions the caller is confined; None for users and stores."""
        return None if self.shopper is None else self.shopper.id

    def check_origin(self, origin: str | None) -> None:
        """Raises ``DomainMismatch`` unless the credential may be used from ``origin``, which
        browsers send and servers do not. A client token is for browsers only."""
        if origin is None:
            if self.shopper is not None:
                raise DomainMismatch("A client token can only be used from its own origin")
        elif not self.any_origin and origin not in self.origins:
            raise DomainMismatch("This credential cannot be used from this web page")

    def __str__(self) -> str:
        return str(self.owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service of the operator's, such as a billing system, by its service key."""

    key_id: UUID
    label: str
    scopes: Collection[Scope]

    @property
    def kind(self) -> CallerKind:
        return CallerKind.SERVICE

    def check_origin(self, origin: str | None) -> None:
        """Raises ``DomainMismatch`` for a browser: a service key must not be in a page."""
        if origin is not None:
            raise DomainMismatch("A service key cannot be used from a browser")

    def __str__(self) -> str:
        return f"service:{self.label or self.key_id}"


Principal: TypeAlias = Caller | Service
"""What a valid credential stands for."""
