"""What must hold, read from the database and from what the clients were told."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from domain.credits import Channel, Owner
from tests.chaos.deployment import ACCOUNTS, FOREIGN, NO_DATABASE, Stage
from tests.chaos.load import NO_ANSWER, Journal, Told

LOOK_SECONDS = 0.5
FINAL = {"completed", "failed"}
CHARGES_NOTHING = {401, 402, 409, 422, 429}
EXPECTED = {202, 402, 422, 429, 503, NO_ANSWER}

Row: TypeAlias = asyncpg.Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule that does not hold, and what it is about."""

    rule: str
    session_id: UUID | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The tables as they were at one instant."""

    accounts: dict[Owner, Row]
    sessions: dict[UUID, Row]
    ledger: list[Row]
    history: list[Row]
    """Every change of a status, and who made it."""

    @classmethod
    async def read(cls, stage: Stage) -> "Books":
        async with stage.sql() as sql, sql.transaction(isolation="repeatable_read", readonly=True):
            accounts = await sql.fetch("SELECT * FROM credit_accounts")
            sessions = await sql.fetch("SELECT * FROM generation_sessions ORDER BY created_at")
            ledger = await sql.fetch("SELECT * FROM credit_ledger ORDER BY id")
            history = await sql.fetch("SELECT * FROM chaos_history ORDER BY number")
        return cls(
            accounts={owner_of(row): row for row in accounts},
            sessions={row["id"]: row for row in sessions},
            ledger=ledger,
            history=history,
        )

    def is_settled(self) -> bool:
        return all(
            row["status"] == "completed" or (row["status"] == "failed" and row["refunded"])
            for row in self.sessions.values()
        )

    def entries(self) -> dict[UUID, list[Row]]:
        """The ledger's entries of each session."""
        found: defaultdict[UUID, list[Row]] = defaultdict(list)
        for entry in self.ledger:
            if entry["session_id"] is not None:
                found[entry["session_id"]].append(entry)
        return found


def owner_of(row: Row) -> Owner:
    return Owner(channel=Channel(row["channel"]), id=row["owner_id"])


def always(books: Books) -> Iterator[Violation]:
    """What holds at every instant: every balance is its ledger's sum, every session is paid for
    once, and only what failed is refunded, once, to who paid."""
    sums: Counter[Owner] = Counter()
    for entry in books.ledger:
        sums[owner_of(entry)] += entry["amount"]
    for owner, account in books.accounts.items():
        if account["balance"] != sums[owner] or account["balance"] < 0:
            yield Violation(rule=f"{owner} has {account['balance']}, its ledger says {sums[owner]}")
    entries = books.entries()
    for session_id, session in books.sessions.items():
        if problem := _money_problem(session, entries.pop(session_id, [])):
            yield Violation(rule=problem, session_id=session_id)
    for session_id in entries:
        yield Violation(rule="money without a session", session_id=session_id)
    yield from _wrong_writers(books.history)


def _wrong_writers(history: list[Row]) -> Iterator[Violation]:
    """Who holds a session is the only one of us to complete it, and while its lease lives the only
    one to do anything to it. Consumers that are not ours are not bound by this."""
    holders: dict[UUID, str] = {}
    for change in history:
        session_id, writer = change["session_id"], change["written_by"]
        if change["is_now"] == "processing":
            holders[session_id] = writer
            continue
        holder = holders.pop(session_id, None)
        if change["was"] in FINAL:
            yield Violation(
                rule=f"{change['was']} became {change['is_now']}", session_id=session_id
            )
        elif writer not in {holder, FOREIGN} and (
            change["is_now"] == "completed" or change["lease_was_alive"]
        ):
            rule = f"{writer} made {change['is_now']} what {holder} held"
            yield Violation(rule=rule, session_id=session_id)


def _money_problem(session: Row, entries: Iterable[Row]) -> str | None:
    debits = [entry for entry in entries if entry["kind"] == "debit"]
    refunds = [entry for entry in entries if entry["kind"] == "refund"]
    if len(debits) != 1 or len(refunds) > 1:
        return f"{len(debits)} debits and {len(refunds)} refunds"
    payer, sums = {owner_of(entry) for entry in entries}, sum(e["amount"] for e in entries)
    if payer != {owner_of(session)} or sums != -1 + len(refunds):
        return "who paid, was refunded and owns the session differ, or the amounts do"
    if refunds and session["status"] != "failed":
        return f"{session['status']} and refunded"
    if len(refunds) != session["refunded"]:
        return "the session does not know of its refund, or it knows of one that never was"
    return None


class Watch:
    """Looks again and again, whether what always holds does, and whether what is final stays."""

    def __init__(self, stage: Stage, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._say = say
        self._finals: dict[UUID, tuple[Any, ...]] = {}
        self.looks = 0
        self.violations: dict[Violation, None] = {}
        """In the order of their discovery, each once."""

    async def run(self) -> None:
        """Until cancelled. A database that does not answer is looked at later."""
        while True:
            with suppress(*NO_DATABASE):
                await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> Books:
        books = await Books.read(self._stage)
        self.looks += 1
        for violation in [*always(books), *self._changed(books)]:
            if violation not in self.violations:
                self._say(f"VIOLATION: {violation}")
                self.violations[violation] = None
        return books

    def _changed(self, books: Books) -> Iterator[Violation]:
        for session_id, before in self._finals.items():
            now = _final(books.sessions.get(session_id))
            if now != before:
                yield Violation(rule=f"was {before} and is {now}", session_id=session_id)
        for session_id, session in books.sessions.items():
            if session["status"] in FINAL:
                self._finals.setdefault(session_id, _final(session))


def _final(session: Row | None) -> tuple[Any, ...]:
    """What no longer changes once a session is final."""
    if session is None:
        return ()
    return tuple(session[column] for column in ("status", "error_code", "object_key"))


def at_the_end(books: Books, journal: Journal) -> Iterator[Violation]:
    """What holds once everything came to rest: all is final, and everybody was told the truth."""
    for session_id, session in books.sessions.items():
        if session["status"] not in FINAL:
            yield Violation(rule=f"stuck as {session['status']}", session_id=session_id)
        if session["error_code"] == "EXPIRED":
            yield Violation(rule="waited in vain, with workers there", session_id=session_id)
        if session["status"] == "failed" and not session["refunded"]:
            yield Violation(rule="failed and not refunded", session_id=session_id)
        if session["status"] == "completed" and not (
            session["object_key"] or session["generated_image_url"]
        ):
            yield Violation(rule="completed without a picture", session_id=session_id)
    yield from _accounts(books)
    yield from _answers(books, journal)
    yield from _keys(books, journal)
    yield from _sightings(books, journal)


def _accounts(books: Books) -> Iterator[Violation]:
    """What an account lost is what it got pictures for."""
    pictures = Counter(
        owner_of(row) for row in books.sessions.values() if row["status"] == "completed"
    )
    for owner, granted in ACCOUNTS.items():
        balance = books.accounts[owner]["balance"]
        if balance != granted - pictures[owner]:
            yield Violation(
                rule=f"{owner} was given {granted}, got {pictures[owner]} pictures, has {balance}"
            )


def _answers(books: Books, journal: Journal) -> Iterator[Violation]:
    made: defaultdict[str, list[Row]] = defaultdict(list)
    for session in books.sessions.values():
        made[session["request_id"]].append(session)
    for told in journal.told:
        problem = _problem(told, books, made.pop(told.request_id, []), journal)
        if problem is not None:
            yield Violation(
                rule=f"told {told.status}: {problem}",
                session_id=told.session_id,
                request_id=told.request_id,
            )
    for request_id in made:
        yield Violation(rule="a session that nobody asked for", request_id=request_id)


def _problem(told: Told, books: Books, made: list[Row], journal: Journal) -> str | None:
    """What is wrong about an answer; ``made`` are the sessions that its very request made."""
    if told.status not in EXPECTED:
        return f"{told.code} is no answer to expect"
    if len(made) > 1:
        return f"the request made {len(made)} sessions"
    if told.status == 202:
        return _problem_of_accepted(told, books, made)
    if told.status in CHARGES_NOTHING and made:
        return f"but the request made {made[0]['id']}"
    if told.status == 503 and made and made[0]["status"] != "failed":
        taken_over = _taken_over(told, made[0]["id"], journal)
        return None if taken_over else f"but {made[0]['id']} is {made[0]['status']}"
    return None


def _problem_of_accepted(told: Told, books: Books, made: list[Row]) -> str | None:
    session = books.sessions.get(told.session_id) if told.session_id else None
    if session is None:
        return "the session does not exist"
    if owner_of(session) != told.owner:
        return f"the session is {owner_of(session)}'s"
    if bool(made) == told.replayed or (made and made[0]["id"] != told.session_id):
        return "a replay made a session, or a first request none"
    return None


def _taken_over(refused: Told, session_id: UUID, journal: Journal) -> bool:
    """Whether a repetition with the same key was told of the session, or was told nothing."""
    return refused.key is not None and any(
        (told.owner, told.key) == (refused.owner, refused.key)
        and told.request_id != refused.request_id
        and (told.session_id == session_id or told.status == NO_ANSWER)
        for told in journal.told
    )


def _keys(books: Books, journal: Journal) -> Iterator[Violation]:
    """All that was made with one key was charged once at most, and one session at most has it."""
    keys = {told.request_id: (told.owner, told.key) for told in journal.told if told.key}
    of_key: defaultdict[tuple[Owner, str | None], list[Row]] = defaultdict(list)
    for session in books.sessions.values():
        if session["request_id"] in keys:
            of_key[keys[session["request_id"]]].append(session)
    for (owner, key), sessions in of_key.items():
        for rule, kept in (
            ("charged", [row for row in sessions if row["status"] != "failed"]),
            ("kept", [row for row in sessions if row["idempotency_key"] is not None]),
        ):
            if len(kept) > 1:
                ids = [str(row["id"]) for row in kept]
                yield Violation(rule=f"{key} of {owner}: {rule} {ids}", session_id=kept[0]["id"])


def _sightings(books: Books, journal: Journal) -> Iterator[Violation]:
    """Only the owner sees and cancels, and nobody was shown an end that was none."""
    for seen in journal.seen:
        now = books.sessions[seen.session_id]["status"]
        allowed = {200, 409} if seen.cancel else {200}
        if seen.status not in {503, NO_ANSWER, *(allowed if seen.asker == seen.owner else {404})}:
            rule = f"{seen.asker} was answered {seen.status}"
        elif seen.session_status in FINAL and seen.session_status != now:
            rule = f"was shown as {seen.session_status} and is {now}"
        elif seen.status == 200 and seen.cancel and now != "failed":
            rule = f"was cancelled and is {now}"
        else:
            continue
        yield Violation(rule=rule, session_id=seen.session_id)


def describe(violation: Violation, books: Books, journal: Journal, stage: Stage) -> str:
    """All that is known about it."""
    told = [item for item in journal.told if _concerns(item, violation)]
    keys = {(item.owner, item.key) for item in told if item.key}
    told += [i for i in journal.told if (i.owner, i.key) in keys and i not in told]
    requests = {item.request_id for item in told}
    sessions = {
        row["id"]: row
        for row in books.sessions.values()
        if row["id"] == violation.session_id or row["request_id"] in requests
    }
    seen = [item for item in journal.seen if item.session_id in sessions]
    entries = [entry for entry in books.ledger if entry["session_id"] in sessions]
    changes = [change for change in books.history if change["session_id"] in sessions]
    rows = [_without_nothing(row) for row in [*sessions.values(), *changes, *entries]]
    words = [*map(str, sessions), *(f'"{request_id}"' for request_id in requests)]
    log = stage.log_of(*words) if words else []
    return "\n    ".join([violation.rule, *map(str, [*told, *seen, *rows, *log])])


def _concerns(told: Told, violation: Violation) -> bool:
    return told.request_id == violation.request_id or (
        told.session_id is not None and told.session_id == violation.session_id
    )


def _without_nothing(row: Row) -> dict[str, Any]:
    dull = {"prompt", "model_image_url", "accessories"}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
        if value is not None and name not in dull
    }
