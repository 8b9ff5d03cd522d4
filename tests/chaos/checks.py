"""The rules, checked against the database and the answers that clients got."""

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
from tests.chaos.deployment import ACCOUNTS, EXTERNAL, NO_DATABASE, Stage
from tests.chaos.load import ACCEPTED, NO_ANSWER, Answer, Journal

LOOK_SECONDS = 0.5
FINAL = {"completed", "failed"}
CHARGES_NOTHING = {401, 402, 403, 422, 429}
TO_BE_CANCELLED = {("completed", None), ("failed", "CANCELLED")}
"""How a session ends whose cancellation was requested, by status and code."""
EXPECTED = {200, 202, 402, 403, 409, 422, 429, 503, NO_ANSWER}

Row: TypeAlias = asyncpg.Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A broken rule, and the session or request that it is about."""

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
    """Every change of a status, and the program that made it."""

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
    """The rules at every instant: every balance is its ledger's sum, every session is paid for
    once, and only failed ones are refunded, once, to the account that paid."""
    sums: Counter[Owner] = Counter()
    for entry in books.ledger:
        sums[owner_of(entry)] += entry["amount"]
    for owner, account in books.accounts.items():
        if account["balance"] != sums[owner] or account["balance"] < 0:
            yield Violation(rule=f"{owner} has {account['balance']}, its ledger says {sums[owner]}")
    entries = books.entries()
    for session_id, session in books.sessions.items():
        if session["status"] == "queued" and session["cancel_requested_at"] is not None:
            yield Violation(rule="queued, and to be cancelled", session_id=session_id)
        if problem := _money_problem(session, entries.pop(session_id, [])):
            yield Violation(rule=problem, session_id=session_id)
    for session_id in entries:
        yield Violation(rule="a ledger entry without a session", session_id=session_id)
    yield from _wrong_writers(books.history)


def _wrong_writers(history: list[Row]) -> Iterator[Violation]:
    """Only the worker that holds a session completes it, and until its lease expires no other
    program of ours changes it. External consumers are not bound by this."""
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
        elif writer not in {holder, EXTERNAL} and (
            change["is_now"] == "completed" or change["lease_was_alive"]
        ):
            rule = f"{writer} made it {change['is_now']} while {holder} held it"
            yield Violation(rule=rule, session_id=session_id)


def _money_problem(session: Row, entries: Iterable[Row]) -> str | None:
    debits = [entry for entry in entries if entry["kind"] == "debit"]
    refunds = [entry for entry in entries if entry["kind"] == "refund"]
    if len(debits) != 1 or len(refunds) > 1:
        return f"{len(debits)} debits and {len(refunds)} refunds"
    payer, sums = {owner_of(entry) for entry in entries}, sum(e["amount"] for e in entries)
    if payer != {owner_of(session)} or sums != -1 + len(refunds):
        return "payer, refunded account and owner of the session differ, or the amounts do"
    if refunds and session["status"] != "failed":
        return f"{session['status']} and refunded"
    if len(refunds) != session["refunded"]:
        return "the session's refund mark and the ledger differ"
    return None


class Watch:
    """Checks again and again that the rules hold and that final sessions stay as they are."""

    def __init__(self, stage: Stage, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._say = say
        self._finals: dict[UUID, tuple[Any, ...]] = {}
        self.looks = 0
        self.violations: dict[Violation, None] = {}
        """Each once, in the order of discovery."""

    async def run(self) -> None:
        """Look until cancelled. Waits for a database that does not answer."""
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
    """The columns that no longer change once a session is final."""
    if session is None:
        return ()
    return tuple(session[column] for column in ("status", "error_code", "object_key"))


def at_the_end(books: Books, journal: Journal, *, only_kills: bool) -> Iterator[Violation]:
    """The rules once everything has settled: every session is final, and every answer was true.

    ``only_kills``: so many workers die that a session which one had taken may expire."""
    for session_id, session in books.sessions.items():
        if session["status"] not in FINAL:
            yield Violation(rule=f"stuck as {session['status']}", session_id=session_id)
        if session["error_code"] == "EXPIRED" and not (only_kills and session["attempt"]):
            yield Violation(rule="expired although there were workers", session_id=session_id)
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
    """Every account paid for its pictures and for nothing else."""
    pictures = Counter(
        owner_of(row) for row in books.sessions.values() if row["status"] == "completed"
    )
    for owner, granted in ACCOUNTS.items():
        balance = books.accounts[owner]["balance"]
        if balance != granted - pictures[owner]:
            yield Violation(
                rule=f"{owner} was granted {granted}, got {pictures[owner]} pictures, has {balance}"
            )


def _answers(books: Books, journal: Journal) -> Iterator[Violation]:
    made: defaultdict[str, list[Row]] = defaultdict(list)
    for session in books.sessions.values():
        made[session["request_id"]].append(session)
    for answer in journal.answers:
        problem = _problem(answer, books, made.pop(answer.request_id, []))
        if problem is not None:
            yield Violation(
                rule=f"answered {answer.status}: {problem}",
                session_id=answer.session_id,
                request_id=answer.request_id,
            )
    for request_id in made:
        yield Violation(rule="a session that no client requested", request_id=request_id)


def _problem(answer: Answer, books: Books, made: list[Row]) -> str | None:
    """What is wrong with an answer; ``made`` are the sessions that its request created."""
    if answer.status not in EXPECTED or (answer.status == 409 and answer.key is None):
        return f"{answer.code} is unexpected"
    if len(made) > 1:
        return f"the request created {len(made)} sessions"
    if answer.status in ACCEPTED:
        return _problem_of_accepted(answer, books, made)
    if answer.status in CHARGES_NOTHING and made:
        return f"but the request created {made[0]['id']}"
    if answer.status == 503 and made and made[0]["status"] != "failed":
        return f"but {made[0]['id']} is {made[0]['status']}"
    return None


def _problem_of_accepted(answer: Answer, books: Books, made: list[Row]) -> str | None:
    session = books.sessions.get(answer.session_id) if answer.session_id else None
    if session is None:
        return "the session does not exist"
    if owner_of(session) != answer.owner:
        return f"the session belongs to {owner_of(session)}"
    if bool(made) == answer.replayed or (made and made[0]["id"] != answer.session_id):
        return "a replay created a session, or a first request none"
    shown = answer.session_status
    if answer.status == 200 and (shown not in FINAL or not answer.waited):
        return f"{shown}, and the client {'waited' if answer.waited else 'did not wait'}"
    if shown in FINAL and shown != session["status"]:
        return f"it was shown as {shown} and is {session['status']}"
    return None


def _keys(books: Books, journal: Journal) -> Iterator[Violation]:
    """A key that was accepted is never freed: all its answers name one session, which still has
    the key. And at most one of a key's sessions is charged."""
    keys = {
        answer.request_id: (answer.owner, answer.key) for answer in journal.answers if answer.key
    }
    accepted: defaultdict[tuple[Owner, str | None], set[UUID]] = defaultdict(set)
    for answer in journal.answers:
        if answer.key and answer.session_id in books.sessions:
            accepted[answer.owner, answer.key].add(answer.session_id)
    for (owner, key), ids in accepted.items():
        kept = [id_ for id_ in ids if books.sessions[id_]["idempotency_key"] == key]
        if len(ids) != 1 or not kept:
            rule = f"{key} of {owner}: 202 for {[*map(str, ids)]}, of which {len(kept)} have it"
            yield Violation(rule=rule, session_id=next(iter(ids)))
    charged: defaultdict[tuple[Owner, str | None], list[UUID]] = defaultdict(list)
    for session in books.sessions.values():
        if session["request_id"] in keys and session["status"] != "failed":
            charged[keys[session["request_id"]]].append(session["id"])
    for (owner, key), sessions in charged.items():
        if len(sessions) > 1:
            rule = f"{key} of {owner}: charged {[*map(str, sessions)]}"
            yield Violation(rule=rule, session_id=sessions[0])


def _sightings(books: Books, journal: Journal) -> Iterator[Violation]:
    """Only the owner sees and cancels a session, and a final status that it saw stays."""
    for sighting in journal.sightings:
        now = books.sessions[sighting.session_id]["status"]
        code = books.sessions[sighting.session_id]["error_code"]
        allowed = {200, 202, 409} if sighting.cancel else {200}
        if sighting.caller != sighting.owner:
            allowed = {404}
        if sighting.status not in {503, NO_ANSWER, *allowed}:
            rule = f"{sighting.caller} was answered {sighting.status}"
        elif sighting.session_status in FINAL and sighting.session_status != now:
            rule = f"was shown as {sighting.session_status} and is {now}"
        elif sighting.status == 200 and sighting.cancel and now != "failed":
            rule = f"was cancelled and is {now}"
        elif sighting.status == 202 and (now, code) not in TO_BE_CANCELLED:
            rule = f"was to be cancelled and is {now} {code}"
        else:
            continue
        yield Violation(rule=rule, session_id=sighting.session_id)


def describe(violation: Violation, books: Books, journal: Journal, stage: Stage) -> str:
    """Everything that is known about it."""
    answers = [answer for answer in journal.answers if _concerns(answer, violation)]
    keys = {(answer.owner, answer.key) for answer in answers if answer.key}
    answers += [a for a in journal.answers if (a.owner, a.key) in keys and a not in answers]
    requests = {answer.request_id for answer in answers}
    sessions = {
        row["id"]: row
        for row in books.sessions.values()
        if row["id"] == violation.session_id or row["request_id"] in requests
    }
    sightings = [item for item in journal.sightings if item.session_id in sessions]
    entries = [entry for entry in books.ledger if entry["session_id"] in sessions]
    changes = [change for change in books.history if change["session_id"] in sessions]
    rows = [_telling(row) for row in [*sessions.values(), *changes, *entries]]
    words = [*map(str, sessions), *(f'"{request_id}"' for request_id in requests)]
    log = stage.log_of(*words) if words else []
    return "\n    ".join([violation.rule, *map(str, [*answers, *sightings, *rows, *log])])


def _concerns(answer: Answer, violation: Violation) -> bool:
    return answer.request_id == violation.request_id or (
        answer.session_id is not None and answer.session_id == violation.session_id
    )


def _telling(row: Row) -> dict[str, Any]:
    """The columns of a row that have a value and may explain something."""
    dull = {"prompt", "model_image_url", "accessories"}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
        if value is not None and name not in dull
    }
