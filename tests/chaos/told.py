"""The rules about what owners were told, by streams, waits and webhooks."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from aiohttp import ClientSession

from domain.credits import Owner
from domain.sessions import FINAL_REVISION, ErrorCode
from tests.chaos.checks import FINAL, Books, Row, Violation, owner_of
from tests.chaos.deployment import NO_DATABASE, Stage
from tests.chaos.followers import State, Told
from tests.chaos.load import ACCEPTED, GENERATIONS, Journal
from tests.chaos.receiver import OLD_TURN_SECONDS, Hook, Message, Receiver

END_SECONDS = 10.0
"""Without faults, a client sees an end within this time after its commit: 5 s, and the pause and
the opening of a client that resumes."""
COMPARED = 200
"""Messages that are compared with what the API shows."""


def of_streams(books: Books, told: Told, *, calm_since: datetime) -> Iterator[Violation]:
    """No client misses an end, goes backwards, or sees what is not its caller's."""
    for rule, session_id in told.problems:
        yield Violation(rule=rule, session_id=session_id)
    for client, session_id in told.missed:
        yield Violation(rule=f"{client} never saw the end", session_id=session_id)
    ended_at = {
        change["session_id"]: change["written_at"]
        for change in books.history
        if change["is_now"] in FINAL
    }
    for state in told.states:
        if problem := _problem_of_state(state, books):
            yield Violation(rule=problem, session_id=state.session_id)
        elif state.is_final:
            late = state.at - max(calm_since, ended_at[state.session_id])
            if late > timedelta(seconds=END_SECONDS):
                yield Violation(rule=f"its end was seen {late} late", session_id=state.session_id)
    yield from _of_streams_of_all(books, told)


def _problem_of_state(state: State, books: Books) -> str | None:
    session = books.sessions.get(state.session_id)
    if session is None or owner_of(session) != state.caller.owner:
        return f"{state.caller} was told of it"
    if state.caller.shopper_id not in {None, session["shopper_id"]}:
        return f"{state.caller} was told of it"
    shown, now = (state.status, state.error_code), (session["status"], session["error_code"])
    return f"was shown as {shown} and is {now}" if state.is_final and shown != now else None


def _of_streams_of_all(books: Books, told: Told) -> Iterator[Violation]:
    """One that was open to the end of the run told the end of every session that is younger."""
    for listening in told.listenings:
        if not listening.is_open:
            continue
        for session_id, session in books.sessions.items():
            is_owners = owner_of(session) == listening.caller.owner
            is_shown = listening.caller.shopper_id in {None, session["shopper_id"]}
            is_younger = session["created_at"] > listening.since
            if is_owners and is_shown and is_younger and session["status"] in FINAL:
                told.counts["ends due in open streams of all"] += 1
                if listening.newest.get(session_id) != FINAL_REVISION:
                    rule = f"the stream of all of {listening.caller} never showed the end"
                    yield Violation(rule=rule, session_id=session_id)


def of_webhooks(books: Books, receiver: Receiver, journal: Journal) -> Iterator[Violation]:
    """Each end is delivered to each endpoint of the owner, under one id, and to no other owner."""
    ids: defaultdict[tuple[str, UUID], set[str]] = defaultdict(set)
    sessions: defaultdict[str, set[tuple[str, UUID]]] = defaultdict(set)
    accepted: set[tuple[str, UUID]] = set()
    for message in receiver.messages:
        hook, session_id = receiver.hooks[message.endpoint], message.session_id
        for problem in _problems_of_message(message, hook, books):
            yield Violation(rule=f"{hook.name}: {problem}", session_id=session_id)
        ids[hook.name, session_id].add(message.id)
        sessions[message.id].add((hook.name, session_id))
        if message.accepted:
            accepted.add((hook.name, session_id))
    for (name, session_id), found in ids.items():
        if len(found) > 1:
            yield Violation(rule=f"{name}: told as {found}", session_id=session_id)
    for id_, about in sessions.items():
        if len(about) > 1:
            yield Violation(rule=f"the message {id_} is about {about}")
    for name, session_id in _due(books, receiver, journal):
        if (name, session_id) not in accepted:
            yield Violation(rule=f"{name} was never told of the end", session_id=session_id)


def _due(books: Books, receiver: Receiver, journal: Journal) -> Iterator[tuple[str, UUID]]:
    """The endpoints, and the sessions of whose ends they must be told: all but those of undone
    submissions, whose callers know of none."""
    known = {answer.session_id for answer in journal.answers if answer.status in ACCEPTED}
    for session_id, session in books.sessions.items():
        if session["status"] not in FINAL or (_is_undone(session) and session_id not in known):
            continue
        for hook in receiver.hooks.values():
            if hook.owner == owner_of(session):
                yield hook.name, session_id


def _is_undone(session: Row) -> bool:
    return (
        session["error_code"] == ErrorCode.QUEUE_UNAVAILABLE
        and not session["confirmed"]
        and session["push_again_at"] is None
    )


def _problems_of_message(message: Message, hook: Hook, books: Books) -> Iterator[str]:
    session = books.sessions.get(message.session_id)
    if session is None or owner_of(session) != hook.owner:
        yield f"told of a session of {'no owner' if session is None else owner_of(session)}"
        return
    told = message.type, message.data["status"], message.data["error_code"]
    status = session["status"]
    if told != (f"generation.{status}", status, session["error_code"]):
        yield f"told {told}; it is {status} {session['error_code']}"
    if not _is_verified(message, hook):
        yield f"verified by {set(message.verified_by)} of {len(hook.secrets)} secrets"


def _is_verified(message: Message, hook: Hook) -> bool:
    """The first secret signs before and after a rotation, the new one too from then on."""
    if hook.rotated_at is None:
        return message.verified_by == {0}
    old_turns = timedelta(seconds=OLD_TURN_SECONDS)
    must = {0, 1} if message.signed_at > hook.rotated_at + old_turns else {0}
    return must <= message.verified_by


async def shown_otherwise(stage: Stage, receiver: Receiver) -> list[Violation]:
    """Messages that differ from what the API shows, apart from the links, which expire."""
    newest = {message.session_id: message for message in receiver.messages[-COMPARED:]}
    found = []
    async with ClientSession() as http:
        for session_id, message in newest.items():
            owner = receiver.hooks[message.endpoint].owner
            shown = await _shown(http, stage, owner, session_id)
            if _without_link(shown) != _without_link(message.data):
                rule = f"{message.endpoint} was told {message.data}; the API shows {shown}"
                found.append(Violation(rule=rule, session_id=session_id))
    return found


async def _shown(
    http: ClientSession, stage: Stage, owner: Owner, session_id: UUID
) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {stage.tokens[owner]}"}
    url = f"{stage.url}{GENERATIONS}/{session_id}"
    async with http.get(url, headers=headers) as response:
        return (await response.json())["data"] or {}


def _without_link(session: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in session.items() if name != "generated_image_url"}


async def pending_messages(stage: Stage) -> int | None:
    """None if the database does not say."""
    try:
        async with stage.sql() as sql:
            pending: int = await sql.fetchval(
                "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'"
            )
            return pending
    except NO_DATABASE:
        return None


def counts_of_webhooks(receiver: Receiver) -> Counter[str]:
    counts: Counter[str] = Counter()
    accepted: set[tuple[str, UUID]] = set()
    for message in receiver.messages:
        key = message.endpoint, message.session_id
        counts["received"] += 1
        counts["accepted"] += message.accepted
        counts["repeated after an accepted one"] += key in accepted
        counts["verified"] += bool(message.verified_by)
        counts["verified by old and new secret"] += message.verified_by == {0, 1}
        if message.accepted:
            accepted.add(key)
    return counts + Counter({f"answered {kind}": n for kind, n in receiver.failures.items()})
