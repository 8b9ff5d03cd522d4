"""One session on one screen: what happened, and where its credit is."""

from collections.abc import Iterator
from datetime import datetime

from config.printable import printable
from domain.alarms import duration
from domain.operator_ports import SessionFile
from domain.session_files import charged, timeline, verdict
from domain.sessions import GenerationSession


def page_lines(file: SessionFile) -> list[str]:
    """What ``wearon sessions show`` prints, without control characters."""
    return [
        printable(line)
        for line in (
            *_heading(file.session),
            "",
            "what happened (UTC)",
            *_events(file),
            "",
            "credit",
            *_credit(file),
        )
    ]


def _heading(session: GenerationSession) -> Iterator[str]:
    code = f"  {session.failure.code}" if session.failure else ""
    yield f"{session.id}  {session.status.upper()}{code}"
    if session.failure:
        yield f"  message          {session.failure.message}"
    shopper = f", shopper {session.shopper_id}" if session.shopper_id else ""
    yield f"  owner            {session.owner}{shopper}"
    yield f"  request id       {session.request_id}"
    yield f"  idempotency key  {session.idempotency_key or '-'}"
    yield f"  provider job     {session.provider_job or '-'}"
    yield f"  picture          {_picture(session)}"
    yield f"  cost to us       {_cost(session)}"


def _picture(session: GenerationSession) -> str:
    if session.image_expired:
        return "deleted"
    return session.picture.object_key if session.picture else session.generated_image_url or "-"


def _cost(session: GenerationSession) -> str:
    usage = session.usage
    if usage is None:
        return "-"
    cost = "unknown" if usage.estimated_cost_usd is None else f"${usage.estimated_cost_usd}"
    return f"{cost}, tokens in {_number(usage.input_tokens)} out {_number(usage.output_tokens)}"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _events(file: SessionFile) -> Iterator[str]:
    began = file.session.created_at
    for event in timeline(file):
        when = _after(began, event.at) if event.at > began else f"{began:%Y-%m-%d %H:%M:%S}"
        yield f"  {when:<19}  {event.text}"


def _after(began: datetime, at: datetime) -> str:
    waited = at - began
    seconds = waited.total_seconds()
    return f"+ {seconds:.2f} s" if seconds < 60 else f"+ {duration(waited)}"


def _credit(file: SessionFile) -> Iterator[str]:
    for entry in file.entries:
        at = f"{entry.created_at:%Y-%m-%d %H:%M:%S}"
        yield f"  entry {entry.id}  {entry.kind}  {entry.amount:+d}  {at}"
    yield (
        f"  net {-charged(file):+d}: {verdict(file)}"
        if charged(file)
        else (f"  net 0: {verdict(file)}")
    )
