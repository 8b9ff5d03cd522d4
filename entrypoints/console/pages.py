"""The pages for looking: overview, sessions, owners, queue, workers, keys and the audit log."""

from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath

from domain.accounts import owner_named
from domain.console_ports import Role
from domain.credits import Channel, Owner
from domain.errors import InvalidInput, NotFound, Unavailable
from domain.finding import Hit
from domain.operator_ports import SessionFile, SessionFilter
from domain.operators import Operator
from domain.session_files import charged, verdict
from domain.sessions import DEFAULT_PROMPT, ErrorCode, SessionStatus
from domain.status import Report
from domain.tasks import GenerationTask
from entrypoints.console import queries
from entrypoints.console.auth import ROLE
from entrypoints.console.rendering import Pages, person_of
from entrypoints.console.services import Reading, Services
from entrypoints.console.shapes import (
    key_row,
    ledger_rows,
    letter_facts,
    letter_row,
    pictures_of,
    session_facts,
    session_row,
    story_of,
    worker_row,
)
from entrypoints.http.inputs import AnyRequest, Injected
from entrypoints.http.schemas import Session

PAGE = 50
FEW = 10
MAX_LETTERS = 100
MAX_STORES = 200

_READS = {ROLE: Role.VIEWER}


@get("/console", opt=_READS)
async def overview(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    report = await services.reading.report()
    return pages.answer(request, "overview.html", _overview(report))


def _overview(report: Report) -> dict[str, Any]:
    measured = report.measured
    snapshot, at = measured.snapshot, measured.at
    alive = snapshot.live_workers() if snapshot else []
    return {
        "at": at,
        "alarms": report.alarms,
        "waiting": measured.waiting if snapshot is None else snapshot.queued,
        "oldest_seconds": measured.oldest_waits.total_seconds() or None,
        "dead_letters": measured.dead_letters,
        "busy": sum(worker.busy for worker in alive),
        "slots": sum(worker.slots for worker in alive),
        "snapshot": snapshot,
        "workers": [worker_row(worker, at) for worker in snapshot.workers] if snapshot else [],
    }


@get("/console/workers", opt=_READS)
async def workers(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    snapshot = await services.reading.reads.snapshot()
    data = {
        "at": snapshot.at,
        "alive": len(snapshot.live_workers()),
        "workers": [worker_row(worker, snapshot.at) for worker in snapshot.workers],
        "pauses": snapshot.pauses,
    }
    return pages.answer(request, "workers.html", data)


@get("/console/sessions", opt=_READS)
async def sessions(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    asked = {
        name: queries.text_of(request, name)
        for name in ("status", "owner", "code", "request", "since")
    }
    before = queries.id_of(queries.text_of(request, "before"), field="before")
    which = SessionFilter(
        statuses=_statuses(asked["status"]),
        owner=queries.owner_of(asked["owner"]),
        error_code=asked["code"] or None,
        request_id=asked["request"] or None,
        since=queries.since_of(asked["since"], services.clock()),
    )
    found = await services.reading.reads.sessions(which, limit=PAGE + 1, before=before)
    shown = found[:PAGE]
    data = {
        "filter": asked,
        "sessions": [session_row(session) for session in shown],
        "next_before": shown[-1].id if len(found) > PAGE else None,
    }
    only_html = {
        "tabs": [("", "All"), *((status.value, status.capitalize()) for status in SessionStatus)],
        "codes": sorted({*map(str, ErrorCode), *([asked["code"]] if asked["code"] else [])}),
        "spans": [(value, label) for value, (label, _) in queries.SPANS.items()],
        "query_with": queries.query_with(asked),
        "problem": "",
    }
    return pages.answer(request, "sessions.html", data, only_html=only_html)


def _statuses(text: str) -> tuple[SessionStatus, ...]:
    try:
        return (SessionStatus(text),) if text else ()
    except ValueError as error:
        raise InvalidInput("status", f"must be one of {', '.join(SessionStatus)}") from error


@get("/console/sessions/{session_id:uuid}", opt=_READS)
async def session(
    request: AnyRequest,
    services: Injected[Services],
    pages: Injected[Pages],
    session_id: FromPath[UUID],
) -> Response[Any]:
    return await _session_page(request, services, pages, session_id)


@post("/console/sessions/{session_id:uuid}/pictures", opt={ROLE: Role.OPERATOR})
async def show_pictures(
    request: AnyRequest,
    services: Injected[Services],
    pages: Injected[Pages],
    session_id: FromPath[UUID],
) -> Response[Any]:
    """The page with its pictures, after an entry in the audit log."""
    person = person_of(request)
    assert person is not None  # noqa: S101 - the door has checked the role
    await services.reading.reads.session_file(session_id)
    await services.reading.audit_log.add(
        Operator(actor=person.operator), "session.pictures", f"session:{session_id}"
    )
    return await _session_page(request, services, pages, session_id, with_pictures=True)


async def _session_page(
    request: AnyRequest,
    services: Services,
    pages: Pages,
    session_id: UUID,
    *,
    with_pictures: bool = False,
) -> Response[Any]:
    reading = services.reading
    file = await reading.reads.session_file(session_id)
    facts = session_facts(file.session)
    data = {
        "session": facts,
        "owner": file.session.owner,
        "story": story_of(file),
        "entries": file.entries,
        "faults": file.faults,
        "net": -charged(file),
        "verdict": f"{verdict(file)[:1].upper()}{verdict(file)[1:]}.",
    }
    only_html = {
        "has_default_prompt": file.session.input.prompt == DEFAULT_PROMPT,
        "pictures": _pictures(services, file) if with_pictures else None,
        "api_json": await _as_owner_sees(reading, file),
        "raw_json": _pretty(facts),
    }
    return pages.answer(request, "session.html", data, only_html=only_html)


def _pictures(services: Services, file: SessionFile) -> list[dict[str, Any]]:
    reading = services.reading
    return pictures_of(
        reading.views.view_of(file.session),
        storage=reading.storage,
        upload_key=reading.upload_key,
        origin=services.setup.picture_origin,
    )


async def _as_owner_sees(reading: Reading, file: SessionFile) -> str:
    """The API's answer to the owner. Its links are hidden: they would open the pictures."""
    view = await reading.views.get(file.session.id, file.session.owner)
    answer = msgspec.to_builtins(Session.of(view))
    return _pretty({"data": _without_queries(answer), "error": None})


def _without_queries(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return {name: _without_queries(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_queries(item) for item in value]
    is_link = isinstance(value, str) and value.startswith(("http://", "https://"))
    return value.partition("?")[0] + "?…" if is_link and "?" in value else value


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode()


@get("/console/owners", opt=_READS)
async def owners(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    data = {
        "stores": await services.reading.stores.all(limit=MAX_STORES),
        "lowest": await services.reading.reads.lowest_balances(limit=20),
    }
    return pages.answer(request, "owners.html", data)


@get("/console/owners/{channel:str}/{owner_id:str}", opt=_READS)
async def owner(
    request: AnyRequest,
    services: Injected[Services],
    pages: Injected[Pages],
    channel: FromPath[str],
    owner_id: FromPath[str],
) -> Response[Any]:
    if channel not in {each.value for each in Channel}:
        raise NotFound(channel)
    known = owner_named(Channel(channel), owner_id)
    before = queries.number_of(queries.text_of(request, "before"), field="before")
    data = await _owner_data(services.reading, known, before)
    return pages.answer(request, "owner.html", data)


async def _owner_data(reading: Reading, known: Owner, before: int | None) -> dict[str, Any]:
    account = await reading.owners.account(known)
    entries = await reading.credits.ledger(known, limit=PAGE + 1, before_id=before)
    is_store = known.channel is Channel.B2B
    newest = await reading.reads.sessions(SessionFilter(owner=known), limit=FEW)
    return {
        "owner": known,
        "store": await reading.stores.get(known.id) if is_store else None,
        "account": account,
        "stats": await reading.sessions.stats(known),
        "entries": ledger_rows(entries[:PAGE], account.balance if before is None else None),
        "next_before": entries[PAGE - 1].id if len(entries) > PAGE else None,
        "sessions": [session_row(one) for one in newest],
        "keys": [key_row(key) for key in await reading.api_keys.all(known)] if is_store else [],
        "actions": await reading.audit_log.actions(subject=str(known), limit=FEW),
    }


@get("/console/queue", opt=_READS)
async def queue(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    """Redis and the database beside each other; what does not answer is named, the rest shown."""
    reading = services.reading
    report = await reading.report()
    measured = report.measured
    oldest, letters, problems = None, [], []
    try:
        oldest = await reading.queue.oldest()
        letters = await reading.queue.dead(limit=MAX_LETTERS)
    except Unavailable as error:
        problems.append(measured.queue_problem or f"Redis: {error.cause.detail}")
    if measured.database_problem is not None:
        problems.append(measured.database_problem)
    data = {
        "at": measured.at,
        "depth": measured.waiting,
        "oldest_task_at": oldest.created_at if isinstance(oldest, GenerationTask) else None,
        "oldest_session_id": None if oldest is None else oldest.session_id,
        "queued": None if measured.snapshot is None else measured.snapshot.queued,
        "oldest_queued_at": measured.snapshot and measured.snapshot.oldest_queued_at,
        "letters": [letter_row(letter) for letter in letters],
        "problems": problems,
    }
    return pages.answer(request, "queue.html", data)


@get("/console/queue/{letter_id:uuid}", opt=_READS)
async def letter(
    request: AnyRequest,
    services: Injected[Services],
    pages: Injected[Pages],
    letter_id: FromPath[UUID],
) -> Response[Any]:
    found = await services.reading.letters.get(letter_id)
    return pages.answer(request, "letter.html", {"letter": letter_facts(found)})


@get("/console/keys", opt=_READS)
async def keys(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    store = queries.text_of(request, "store")
    known = queries.owner_of(store)
    found = await services.reading.api_keys.all(known, limit=MAX_STORES)
    data = {"store": store, "keys": [key_row(key) for key in found]}
    return pages.answer(request, "keys.html", data)


@get("/console/audit", opt=_READS)
async def audit(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    asked = {name: queries.text_of(request, name) for name in ("actor", "subject")}
    before = queries.number_of(queries.text_of(request, "before"), field="before")
    found = await services.reading.audit_log.actions(
        subject=asked["subject"] or None,
        actor=asked["actor"] or None,
        limit=PAGE + 1,
        before_id=before,
    )
    data = {
        **asked,
        "actions": found[:PAGE],
        "next_before": found[PAGE - 1].id if len(found) > PAGE else None,
    }
    only_html = {"query_with": queries.query_with(asked)}
    return pages.answer(request, "audit.html", data, only_html=only_html)


@get("/console/find", opt=_READS)
async def find(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    """A single hit opens its page. A key that was searched for is not shown again."""
    text = queries.text_of(request, "q")
    if not text or len(text) > 200:
        raise InvalidInput("q", "must have 1 to 200 characters")
    found = await services.reading.finder.find(text)
    if len(found.hits) == 1 and (path := _path_of(found.hits[0])) is not None:
        return Response(None, status_code=303, headers={"Location": path})
    is_credential = text[:3] in {"wk_", "wc_", "wa_"}
    data = {
        "q": f"{text[:9]}…" if is_credential else text,
        "sessions": [session_row(hit.session) for hit in found.hits if hit.session],
        "tried": f"Searched as {', '.join(found.tried) or 'nothing that fits'}.",
        "notes": [hit.note for hit in found.hits if hit.note],
    }
    return pages.answer(request, "found.html", data)


def _path_of(hit: Hit) -> str | None:
    if hit.session is not None:
        return f"/console/sessions/{hit.session.id}"
    if hit.owner is not None:
        return f"/console/owners/{hit.owner.channel}/{hit.owner.id}"
    return None


READ_HANDLERS = (
    overview, workers, sessions, session, show_pictures, owners, owner, queue, letter, keys, audit,
    find,
)  # fmt: skip
