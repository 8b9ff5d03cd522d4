"""Pauses in PostgreSQL."""

from collections.abc import Sequence

from adapters.postgres.database import Database
from domain.operator_ports import Pause, PauseRepoPort, Switch
from domain.operators import Operator

_PAUSE = """
    WITH pause AS (
        INSERT INTO pauses (switch, actor, reason) VALUES ($1, $2, $3)
        ON CONFLICT DO NOTHING
        RETURNING switch, actor, reason
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason)
        SELECT actor, 'switch.pause', switch, reason FROM pause
    )
    SELECT FROM pause"""

# Of concurrent calls, one deletes the row; the others find none.
_RESUME = """
    WITH pause AS (
        DELETE FROM pauses WHERE switch = $1 RETURNING switch, since, actor, reason
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $2, 'switch.resume', switch, $3, jsonb_build_object(
            'paused_by', actor, 'paused_because', reason,
            'paused_seconds', floor(extract(epoch FROM now() - since))::bigint
        )
        FROM pause
    )
    SELECT FROM pause"""

_PAUSED = "SELECT switch, since, actor, reason FROM pauses ORDER BY switch LIMIT 10"


class PostgresPauseRepo(PauseRepoPort):
    """``background`` reads what is paused. API processes do that on their reserve connection, so
    that a burst of requests delays no pause."""

    def __init__(self, database: Database, *, background: Database | None = None) -> None:
        self._database = database
        self._background = background or database

    async def pause(self, switch: Switch, *, by: Operator) -> bool:
        return bool(await self._database.fetch(_PAUSE, switch, by.actor, by.reason))

    async def resume(self, switch: Switch, *, by: Operator) -> bool:
        return bool(await self._database.fetch(_RESUME, switch, by.actor, by.reason))

    async def paused(self) -> Sequence[Pause]:
        rows = await self._background.fetch(_PAUSED)
        return [Pause(**{**row, "switch": Switch(row["switch"])}) for row in rows]
