"""How many sessions ended when: a chart of the overview, and a page of its own."""

from datetime import timedelta
from typing import Any

import msgspec
from litestar import Response, get

from domain.console_ports import Role
from domain.errors import InvalidInput
from domain.operator_ports import Step
from entrypoints.console import queries
from entrypoints.console.auth import ROLE
from entrypoints.console.rendering import Pages
from entrypoints.console.services import Services
from entrypoints.http.inputs import AnyRequest, Injected

_SPANS = {
    "1h": ("1 hour", "minute", timedelta(minutes=1), 60),
    "24h": ("24 hours", "quarter of an hour", timedelta(minutes=15), 96),
    "7d": ("7 days", "hour", timedelta(hours=1), 168),
}


@get("/console/pace", opt={ROLE: Role.VIEWER})
async def pace(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    span = queries.text_of(request, "span") or "1h"
    if span not in _SPANS:
        raise InvalidInput("span", f"must be one of {', '.join(_SPANS)}")
    _, unit, step, count = _SPANS[span]
    since = services.clock() - step * count
    steps = await services.reading.reads.pace(since=since, step=step, steps=count)
    data = {
        "span": span,
        "unit": unit,
        "completed": sum(each.completed for each in steps),
        "failed": sum(each.failed for each in steps),
        "steps": steps,
    }
    only_html = {
        "spans": [(value, label) for value, (label, *_) in _SPANS.items()],
        "chart": _chart(steps, with_time=span != "7d"),
    }
    return pages.answer(request, "pace.html", data, only_html=only_html)


def _chart(steps: list[Step], *, with_time: bool) -> str:
    """For the script that draws: times in Unix seconds, shown as times of a day or as days."""
    series = {
        "at": [int(step.at.timestamp()) for step in steps],
        "completed": [step.completed for step in steps],
        "failed": [step.failed for step in steps],
    }
    return msgspec.json.encode({"series": series, "unit": "", "time": with_time}).decode()
