"""Options that name an owner, and who changes something for what reason."""

import getpass
import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import rich_click as click

from domain.credits import Channel, CreditAccount, Owner
from domain.errors import InvalidInput
from domain.labels import checked_reference
from domain.operators import Operator

if TYPE_CHECKING:
    from config.container import Container

F = TypeVar("F", bound=Callable[..., Any])


def one_owner(user: Owner | None, store: Owner | None) -> Owner | None:
    """The owner that was given, if any."""
    if user is not None and store is not None:
        raise click.UsageError("Give --user or --store, not both.")
    return user or store


def required_owner(user: Owner | None, store: Owner | None) -> Owner:
    """The owner that was given."""
    owner = one_owner(user, store)
    if owner is None:
        raise click.UsageError("Give --user UUID or --store ID.")
    return owner


def _as_user(_: click.Context, __: click.Parameter, value: UUID | None) -> Owner | None:
    return None if value is None else Owner(channel=Channel.B2C, id=str(value))


def as_store(_: click.Context, __: click.Parameter, value: str | None) -> Owner | None:
    """The callback of an option for a store's id."""
    try:
        return None if value is None else Owner(channel=Channel.B2B, id=value)
    except InvalidInput as error:
        raise click.BadParameter(str(error).removeprefix(f"{error.field}: ")) from error


async def check_known(container: "Container", owner: Owner | None) -> None:
    """Fail for a store that does not exist, and for a user who has nothing here: most likely a
    mistyped id."""
    if owner is None:
        return
    account = await container.owners().account(owner)
    if owner.channel is Channel.B2C and account == CreditAccount(owner=owner):
        raise click.ClickException(f"{owner} is unknown: it has no account.")


user_option = click.option(
    "--user", type=click.UUID, callback=_as_user, metavar="UUID", help="A user (b2c)."
)
store_option = click.option("--store", callback=as_store, metavar="ID", help="A store (b2b).")


def _checked_reference(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else checked_reference("reference", value)
    except InvalidInput as error:
        raise click.BadParameter(str(error).removeprefix(f"{error.field}: ")) from error


reference_option = click.option(
    "--reference",
    callback=_checked_reference,
    metavar="TEXT",
    help="Your own key of this entry: repeating the command books nothing again.",
)


def operator_options(command: F) -> F:
    """``--reason`` and ``--by``, which become the argument ``operator``."""
    return _with_operator(command, is_required=False)


def reason_required(command: F) -> F:
    """The same, where a reason has to be given."""
    return _with_operator(command, is_required=True)


def _with_operator(command: F, *, is_required: bool) -> F:
    @click.option("--reason", required=is_required, help="Why, for the audit log.")
    @click.option(
        "--by", metavar="NAME", help="Who, for the audit log; by default your user on this machine."
    )
    @wraps(command)
    def with_operator(*args: Any, reason: str | None, by: str | None, **kwargs: Any) -> Any:  # noqa: ANN401
        actor = f"cli:{_os_user()}" if by is None else by
        try:
            operator = Operator(actor=actor, reason=reason)
        except InvalidInput as error:
            raise click.UsageError(str(error)) from error
        return command(*args, operator=operator, **kwargs)

    return with_operator  # type: ignore[return-value]


def _os_user() -> str:
    """In a container, a user may have a number and no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def shortened(prefix: str | None) -> str | None:
    """How a key begins."""
    return None if prefix is None else f"{prefix}…"
