"""Which kinds of callers a route allows, as an option of its handler."""

from typing import Any

from litestar.types import HTTPScope

from domain.callers import Caller, CallerKind, Principal, Scope, Service
from domain.errors import Forbidden

_CALLERS, _SCOPE = "callers", "scope"
_OWNERS = frozenset({CallerKind.USER, CallerKind.STORE})


def for_stores() -> dict[str, Any]:
    """The option of a handler for stores' servers alone."""
    return {_CALLERS: frozenset({CallerKind.STORE})}


def for_shoppers_too() -> dict[str, Any]:
    """The option of a handler for users, stores and stores' shoppers. Without an option, a handler
    is for users and stores."""
    return {_CALLERS: _OWNERS | {CallerKind.SHOPPER}}


def for_services(scope: Scope) -> dict[str, Any]:
    """The option of a handler for services with ``scope``."""
    return {_CALLERS: frozenset({CallerKind.SERVICE}), _SCOPE: scope}


def check_access(scope: HTTPScope, principal: Principal) -> None:
    """Raises ``Forbidden`` unless the route of ``scope`` allows ``principal``."""
    check_kind(principal, scope["route_handler"].opt)


def check_kind(principal: Principal, options: dict[str, Any]) -> None:
    """The same, for the options of a handler."""
    if principal.kind not in options.get(_CALLERS, _OWNERS):
        raise Forbidden(f"A {principal.kind} may not call this")
    needed = options.get(_SCOPE)
    if isinstance(principal, Service) and needed not in principal.scopes:
        raise Forbidden(f"This service key lacks the scope {needed}")


def caller_of(principal: Principal, options: dict[str, Any]) -> Caller:
    """The caller whom a route with ``options`` serves. Raises ``Forbidden``."""
    check_kind(principal, options)
    if isinstance(principal, Service):
        raise Forbidden("A service may not call this")
    return principal
