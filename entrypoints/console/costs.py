"""The page of what pictures cost."""

from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from litestar import Response, get

from domain.console_ports import Role
from domain.credits import Owner
from domain.errors import InvalidInput
from domain.operator_ports import CostKey, CostRow
from entrypoints.console import queries
from entrypoints.console.auth import ROLE
from entrypoints.console.rendering import Pages
from entrypoints.console.services import Services
from entrypoints.http.inputs import AnyRequest, Injected

MAX_ROWS = 100
_SPANS = {7: "7 days", 30: "30 days", 90: "90 days"}


@get("/console/costs", opt={ROLE: Role.VIEWER})
async def costs(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    days = queries.number_of(queries.text_of(request, "days") or "30", field="days")
    if days not in _SPANS:
        raise InvalidInput("days", f"must be one of {', '.join(map(str, _SPANS))}")
    owner = queries.owner_of(queries.text_of(request, "owner"))
    rows = {key: await _read(services, key, days, owner) for key in CostKey}
    by_day = rows[CostKey.DAY]
    data = {
        "days": days,
        "total": _total(by_day),
        "by_day": by_day,
        "by_owner": rows[CostKey.OWNER],
        "by_provider": rows[CostKey.PROVIDER],
    }
    only_html = {"spans": list(_SPANS.items()), "chart": _chart(by_day)}
    return pages.answer(request, "costs.html", data, only_html=only_html)


async def _read(services: Services, key: CostKey, days: int, owner: Owner | None) -> list[CostRow]:
    """Whole days up to now."""
    until = services.clock()
    first = until.astimezone(UTC).date() - timedelta(days=days - 1)
    since = datetime.combine(first, time(), UTC)
    reads = services.reading.reads
    return await reads.costs(key, since=since, until=until, owner=owner, limit=MAX_ROWS)


def _total(by_day: list[CostRow]) -> dict[str, Any]:
    """``each`` is what a picture with a price cost on average."""
    spent = sum((row.estimated_cost_usd for row in by_day), Decimal(0))
    pictures = sum(row.pictures for row in by_day)
    unpriced = sum(row.unpriced for row in by_day)
    priced = pictures - unpriced
    return {
        "estimated_cost_usd": spent,
        "pictures": pictures,
        "unpriced": unpriced,
        "each": spent / priced if priced else None,
    }


def _chart(by_day: list[CostRow]) -> str:
    """For the script that draws: oldest first, times in Unix seconds."""
    rows = sorted(by_day, key=lambda row: row.key)
    series = {
        "at": [datetime.fromisoformat(row.key).replace(tzinfo=UTC).timestamp() for row in rows],
        "spent": [float(round(row.estimated_cost_usd, 4)) for row in rows],
    }
    return msgspec.json.encode({"series": series, "unit": "$"}).decode()
