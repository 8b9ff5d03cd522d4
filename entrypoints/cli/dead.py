"""Commands for messages that were taken out of the queue: look at them, send them again, or throw
them away."""

from typing import TYPE_CHECKING, Any
from uuid import UUID

import rich_click as click

from domain.errors import Conflict, NotFound
from domain.tasks import DeadLetter
from entrypoints.cli.output import json_option, limit_option, print_json, print_table, run

if TYPE_CHECKING:
    from config.container import Container

ALL_LETTERS = 10_000
"""As many as a queue keeps."""

letter_id_argument = click.argument("letter_id", type=click.UUID)


@click.group("dead")
def dead_group() -> None:
    """Dead letters: what could not be read, or killed every worker that took it.

    Their sessions have failed and their credits are back, so a letter is only there to find out
    why. List them, look at one with `show`, and end with `discard`, or with `requeue` where a
    worker that can read it runs now.
    """


@dead_group.command("list")
@limit_option
@json_option
def list_letters(limit: int, *, as_json: bool) -> None:
    """List dead letters, newest first, with the reason for each."""
    letters = run(lambda container: container.queue().dead(limit=limit))
    if as_json:
        print_json([_summary(letter) for letter in letters])
        return
    print_table(
        ("ID", "SESSION", "BURIED (UTC)", "REASON"),
        [(item.id, item.session_id, item.buried_at, item.reason) for item in letters],
    )


@dead_group.command("show")
@letter_id_argument
@json_option
def show_letter(letter_id: UUID, *, as_json: bool) -> None:
    """Show all of the letter with the id LETTER_ID, with the text that was in the queue."""
    letter = run(lambda container: _find(container, letter_id))
    if as_json:
        print_json(_summary(letter) | _raw(letter))
        return
    print_table(
        ("FIELD", "VALUE"),
        [
            *_summary(letter).items(),
            ("raw", letter.raw.decode("utf-8", errors="backslashreplace")),
        ],
    )


@dead_group.command("requeue")
@letter_id_argument
def requeue_letter(letter_id: UUID) -> None:
    """Move the letter with the id LETTER_ID back into the queue, behind all tasks.

    Refused where it names a session that has come to its end: nobody would work on it.
    """

    async def requeue(container: "Container") -> bool:
        letter = await _find(container, letter_id)
        if letter.session_id is not None:
            await _require_open(container, letter.session_id)
        requeued: bool = await container.queue().requeue(letter_id)
        return requeued

    if not run(requeue):
        raise _gone()
    click.echo("Requeued.")


@dead_group.command("discard")
@letter_id_argument
def discard_letter(letter_id: UUID) -> None:
    """Throw the letter with the id LETTER_ID away, for good."""
    if not run(lambda container: container.queue().discard(letter_id)):
        raise _gone()
    click.echo("Discarded.")


async def _find(container: "Container", letter_id: UUID) -> DeadLetter:
    letters: list[DeadLetter] = await container.queue().dead(limit=ALL_LETTERS)
    for letter in letters:
        if letter.id == letter_id:
            return letter
    raise _gone()


def _gone() -> NotFound:
    return NotFound("There is no such letter, or it was requeued or discarded before.")


async def _require_open(container: "Container", session_id: UUID) -> None:
    """Raise Conflict if a claim of the session would find nothing to do."""
    try:
        session = await container.sessions().get(session_id, None)
    except NotFound:
        return
    if session.status.is_final:
        raise Conflict(
            f"Session {session_id} is {session.status} already: a worker would find nothing to do."
            f" Use `wearon dead discard`."
        )


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "session_id": letter.session_id,
        "buried_at": letter.buried_at,
        "reason": letter.reason,
    }


def _raw(letter: DeadLetter) -> dict[str, Any]:
    """The message as text or, where it is none, as the bytes that it is made of."""
    try:
        return {"raw": letter.raw.decode(), "raw_base64": None}
    except UnicodeDecodeError:
        return {"raw": None, "raw_base64": letter.raw}
