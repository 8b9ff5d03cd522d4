"""Commands for dead letters: list, show, requeue and discard them."""

from typing import Any
from uuid import UUID

import rich_click as click

from domain.tasks import DeadLetter
from entrypoints.cli.output import json_option, limit_option, print_json, print_table, run

letter_id_argument = click.argument("letter_id", type=click.UUID)


@click.group("dead")
def dead_group() -> None:
    """Dead letters: messages that no worker could read, that killed every worker, or whose session
    is not in the database.

    Their sessions, if known, have failed and are refunded; a letter is kept to find out why. Look
    at it with `show`, then `discard` it, or `requeue` it once a worker can work on it. Of a message
    above 64 KiB only the beginning is kept.
    """


@dead_group.command("list")
@limit_option
@json_option
def list_letters(limit: int, *, as_json: bool) -> None:
    """List dead letters, newest first, with their reasons."""
    letters = run(lambda container: container.queue().dead(limit=limit))
    if as_json:
        print_json([_summary(letter) for letter in letters])
        return
    print_table(
        ("ID", "SESSION", "BURIED (UTC)", "REASON"),
        [(item.id, item.session_id, item.buried_at, _reason(item)) for item in letters],
    )


@dead_group.command("show")
@letter_id_argument
@json_option
def show_letter(letter_id: UUID, *, as_json: bool) -> None:
    """Show the letter with the id LETTER_ID, including its text from the queue."""
    letter = run(lambda container: container.dead_letters().get(letter_id))
    if as_json:
        print_json(_details(letter) | _raw(letter))
        return
    print_table(
        ("FIELD", "VALUE"),
        [
            *_details(letter).items(),
            ("raw", letter.raw.decode("utf-8", errors="backslashreplace")),
        ],
    )


@dead_group.command("requeue")
@letter_id_argument
def requeue_letter(letter_id: UUID) -> None:
    """Move the letter with the id LETTER_ID back to the queue, behind all tasks.

    Rejected if its session has a final status, because a worker would find nothing to do, and if
    only the beginning of a huge message was kept.
    """
    run(lambda container: container.dead_letters().requeue(letter_id))
    click.echo("Requeued.")


@dead_group.command("discard")
@letter_id_argument
def discard_letter(letter_id: UUID) -> None:
    """Delete the letter with the id LETTER_ID permanently."""
    run(lambda container: container.dead_letters().discard(letter_id))
    click.echo("Discarded.")


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "session_id": letter.session_id,
        "buried_at": letter.buried_at,
        "reason": letter.reason,
    }


def _details(letter: DeadLetter) -> dict[str, Any]:
    """``size`` is the message's, also if only its beginning was kept."""
    return _summary(letter) | {"size": letter.size, "truncated": letter.is_truncated}


def _reason(letter: DeadLetter) -> str:
    return letter.reason + (f" (truncated, had {letter.size:,} bytes)" * letter.is_truncated)


def _raw(letter: DeadLetter) -> dict[str, Any]:
    """The message as text or, if it is not UTF-8, as bytes, which become base64."""
    try:
        return {"raw": letter.raw.decode(), "raw_base64": None}
    except UnicodeDecodeError:
        return {"raw": None, "raw_base64": letter.raw}
