"""What pages show of sessions, owners, keys, workers and letters, and programs get as JSON."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec

from domain.credits import LedgerEntry
from domain.operator_ports import WORKER_GONE, SessionFile, WorkerState
from domain.picture_ports import PictureStoragePort
from domain.ports import ApiKey
from domain.session_files import timeline
from domain.sessions import GenerationSession, SessionStatus
from domain.tasks import DeadLetter
from domain.views import SessionView

SHOWN_CHARACTERS = 4_096
"""Of a dead letter's text."""
LINK_LIFETIME = timedelta(seconds=60)
"""Of a picture that an operator looks at."""


def session_row(session: GenerationSession) -> dict[str, Any]:
    """A line of a list. The credit is what the session has cost its owner so far."""
    started, ended = session.started_at, session.completed_at
    return {
        "session_id": session.id,
        "owner": session.owner,
        "status": session.status,
        "attempt": session.attempt,
        "error_code": None if session.failure is None else session.failure.code,
        "waited_seconds": _between(session.created_at, started),
        "worked_seconds": _between(started, ended) if session.attempt else None,
        "credit": 0 if session.status is SessionStatus.FAILED else -1,
        "created_at": session.created_at,
    }


def session_facts(session: GenerationSession) -> dict[str, Any]:
    """All that is stored of a session, with links as places: their queries may be secrets."""
    fields: dict[str, Any] = msgspec.to_builtins(session, builtin_types=(datetime,))
    given, owner = fields.pop("input"), fields.pop("owner")
    failure, usage = fields.pop("failure") or {}, fields.pop("usage") or {}
    picture, shopper = fields.pop("picture") or {}, fields.pop("shopper") or {}
    fields["generated_image_url"] = place_of(session.generated_image_url)
    return {
        "session_id": fields.pop("id"),
        "channel": owner["channel"],
        "owner_id": owner["id"],
        "shopper_id": shopper.get("id"),
        **fields,
        "is_final": session.status.is_final,
        "prompt": given["prompt"],
        "age_verified": given["age_verified"],
        "pictures": [place_of(url) for url in session.input.image_urls],
        "object_key": picture.get("object_key"),
        "error_code": failure.get("code"),
        "error_message": failure.get("message"),
        "input_tokens": usage.get("input_tokens"),
        "output_tokens": usage.get("output_tokens"),
        "estimated_cost_usd": usage.get("estimated_cost_usd"),
    }


def story_of(file: SessionFile) -> list[dict[str, Any]]:
    """The session's events, each with the seconds since the first one."""
    events = timeline(file)
    return [
        {
            "at": event.at,
            "after_seconds": _between(events[0].at, event.at) if index else None,
            "text": event.text,
            "tone": _tone(event.text),
        }
        for index, event in enumerate(events)
    ]


def _tone(text: str) -> str:
    if " failed at " in text or text.startswith("failed"):
        return "bad"
    if text.startswith("completed"):
        return "good"
    return "now" if text.endswith(" began") else ""


def place_of(url: str | None) -> str | None:
    """Host and path of a link, without its query."""
    if not url:
        return None
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path}"


def pictures_of(
    view: SessionView,
    *,
    storage: PictureStoragePort,
    upload_key: Callable[[str], str | None],
    origin: str | None,
) -> list[dict[str, Any]]:
    """Inputs and result. Only a picture of our own storage has a ``url`` to show: a browser must
    not load one from a host of the customer's choice."""
    given = view.session.input
    inputs = [("person", given.model_image_url)]
    if given.outfit_image_url is not None:
        inputs.append(("outfit", given.outfit_image_url))
    inputs += [(item.type, item.url) for item in given.accessories]
    shown = [_input_picture(label, url, storage, upload_key) for label, url in inputs if url]
    result = view.picture_url
    if result is not None and (stored := view.session.picture) is not None:
        result = storage.url(stored.object_key, lifetime=LINK_LIFETIME)
    is_ours = result is not None and _origin_of(result) == origin
    return [
        *shown,
        {
            "label": "result",
            "url": result if is_ours else None,
            "link": None if is_ours else result,
            "place": None if is_ours else place_of(result),
        },
    ]


def _input_picture(
    label: str, url: str, storage: PictureStoragePort, upload_key: Callable[[str], str | None]
) -> dict[str, Any]:
    key = upload_key(url)
    if key is not None:
        return {
            "label": label,
            "url": storage.url(key, lifetime=LINK_LIFETIME),
            "link": None,
            "place": None,
        }
    is_link = urlsplit(url).scheme in {"http", "https"}
    return {"label": label, "url": None, "link": url if is_link else None, "place": place_of(url)}


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def key_row(key: ApiKey) -> dict[str, Any]:
    """Without the hash."""
    return {
        "id": key.id,
        "prefix": key.prefix,
        "owner": key.owner,
        "label": key.label,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


def worker_row(worker: WorkerState, at: datetime) -> dict[str, Any]:
    """A worker at the moment ``at`` of the database's clock."""
    seen_at = worker.seen_at or at
    return {name: getattr(worker, name) for name in WorkerState.__dataclass_fields__} | {
        "name": f"{worker.host}:{worker.pid}",
        "gone": at - seen_at >= WORKER_GONE,
        "seen_seconds": max(0.0, (at - seen_at).total_seconds()),
    }


def letter_row(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "session_id": letter.session_id,
        "buried_at": letter.buried_at,
        "size": letter.size,
        "truncated": letter.is_truncated,
    }


def letter_facts(letter: DeadLetter) -> dict[str, Any]:
    """With the beginning of its text."""
    text = letter.raw.decode("utf-8", errors="backslashreplace")
    cut = len(text) > SHOWN_CHARACTERS
    return letter_row(letter) | {"text": text[:SHOWN_CHARACTERS], "cut": cut}


def ledger_rows(entries: list[LedgerEntry], balance: int | None) -> list[dict[str, Any]]:
    """Newest first, each with the balance after it, if the newest one's is known."""
    rows = []
    for entry in entries:
        rows.append({"entry": entry, "balance": balance})
        balance = None if balance is None else balance - entry.amount
    return rows


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else max(0.0, (end - start).total_seconds())
