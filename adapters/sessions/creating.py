"""Creates sessions in PostgreSQL: runs the statements of ``creation.py`` in batches, and says what
they decided."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeAlias

import asyncpg

from adapters.coalescing import BLOCKED, BatchLimits, Coalescer
from adapters.coalescing import Blocked as BlockedCall
from adapters.postgres.arrays import WRITERS
from adapters.postgres.database import Database, too_many_calls
from adapters.sessions import creation as sql
from adapters.sessions.creation import ASKED, OF_SHOPPERS
from adapters.sessions.rows import inserted_values
from domain.credits import GENERATION_COST, Owner
from domain.errors import DatabaseUnavailable, WearonError
from domain.plans import AccountLimits, Plan, PlanRates, Rate, RateUse, RefundWindow
from domain.ports import Receipt
from domain.refusals import Refusal, error_of, rates_used_up, refunded_too_often
from domain.sessions import GenerationSession

MAX_LOCK_WAITERS = 4
"""How many locked accounts (and, per kind of call, locked sessions) to wait for at once; each wait
holds a connection."""

MAX_BATCHES = 4
"""How many batches share a statement. One of 100 sessions is long enough to be cheap."""

_STALE_TRIES = 5
_CREATED = "created"
_MAY_SIGN_UP = {Refusal.NO_ACCOUNT, Refusal.UNFUNDED}
_RECHECKED_TABLES = {"credit_accounts", "client_tokens"}

_Creation: TypeAlias = tuple[GenerationSession, int]
"""A session to create, and the limit on its owner's unfinished sessions."""

_Batch: TypeAlias = Sequence[_Creation]
"""Sessions of one owner, at least one, that are created together."""

_Rows: TypeAlias = Sequence[asyncpg.Record]
"""What the statement decided about each session of a batch."""

_Refused: TypeAlias = tuple[Refusal, asyncpg.Record | None]
_Outcome: TypeAlias = Receipt | _Refused
"""A receipt, or why there is none: what the statement decided, and its row."""


class CreationRepo:
    """Concurrent calls share a statement, except for calls whose account is locked. Sessions of
    shoppers have statements of their own, so that the others do not pay for theirs."""

    def __init__(self, database: Database, *, batches: BatchLimits, limits: AccountLimits) -> None:
        self._database = database
        self._limits = limits
        rates = [limits.rates_of(plan) for plan in Plan]
        self._arguments = (
            GENERATION_COST,
            [rate.submissions_per_minute for rate in rates],
            [rate.submissions_per_hour for rate in rates],
            limits.refunds_per_hour,
        )
        # Built once: the rates are on every receipt.
        self._rates_of = {plan.value: _placed(limits.rates_of(plan)) for plan in Plan}
        self._of_shoppers = (
            *self._arguments,
            limits.shopper_refunds_per_hour,
            limits.max_active_of_token,
        )
        waiting = replace(batches, in_flight=MAX_LOCK_WAITERS, patience_seconds=0)
        self._create: Coalescer[_Creation, _Outcome] = batches.coalescer(
            self._run_skip_locked,
            key=_payer,
            too_many=too_many_calls,
            blocked=waiting.coalescer(
                self._run_wait, key=_payer, one_key=True, too_many=too_many_calls
            ),
        )
        self._create_for_shopper: Coalescer[_Creation, _Outcome] = batches.coalescer(
            self._run_for_shoppers_skip_locked,
            key=_payer,
            too_many=too_many_calls,
            blocked=waiting.coalescer(
                self._run_for_shoppers_wait, key=_payer, one_key=True, too_many=too_many_calls
            ),
        )
        self._create_many: Coalescer[_Batch, _Rows] = replace(batches, calls=MAX_BATCHES).coalescer(
            self._run_many_skip_locked,
            key=_payer_of_all,
            too_many=too_many_calls,
            blocked=replace(waiting, calls=MAX_BATCHES).coalescer(
                self._run_many_wait, key=_payer_of_all, one_key=True, too_many=too_many_calls
            ),
        )

    async def create(
        self, session: GenerationSession, max_active: int, signup_credits: int
    ) -> Receipt | None:
        """The receipt; None if the session's idempotency key is taken, or if the account changed
        too much meanwhile. Raises what ``SessionRepoPort.create`` raises."""
        create = self._create if session.shopper is None else self._create_for_shopper
        outcome = await create((session, max_active))
        if isinstance(outcome, Receipt):
            return outcome
        refusal, row = outcome
        if refusal is Refusal.KEY_IS_TAKEN:
            return None
        if refusal in _MAY_SIGN_UP and signup_credits > 0:
            return await self._sign_up(session, signup_credits)
        raise await self._error(session, refusal, row)

    async def create_many(
        self, sessions: Sequence[GenerationSession], max_active: int, signup_credits: int
    ) -> Sequence[Receipt | WearonError | None]:
        """What ``SessionRepoPort.create_many`` returns."""
        try:
            rows = await self._create_many([(session, max_active) for session in sessions])
        except WearonError:
            raise
        except Exception:  # noqa: BLE001 - had no effect, and each ``create`` finds out by itself
            return [None] * len(sessions)
        last = max((place for place, row in enumerate(rows) if row[0] == _CREATED), default=-1)
        errors: dict[str, WearonError | None] = {}
        outcomes: list[Receipt | WearonError | None] = []
        for place, (session, row) in enumerate(zip(sessions, rows, strict=True)):
            decided, balance, created_at, plan, minute, hour, _ = row
            if decided == _CREATED:
                outcomes.append(
                    Receipt(
                        session=session.stored(created_at=created_at),
                        credits_remaining=balance,
                        rates=self._rates(plan, minute, hour) if place == last else (),
                    )
                )
                continue
            if decided not in errors:
                errors[decided] = await self._refused(session, row, signup_credits)
            outcomes.append(errors[decided])
        return outcomes

    async def _refused(
        self, session: GenerationSession, row: asyncpg.Record, signup_credits: int
    ) -> WearonError | None:
        """Why a session of a batch was not created; the same for all that were refused so. None if
        it needs a ``create`` of its own."""
        refusal = Refusal(row[0])
        may_sign_up = refusal in _MAY_SIGN_UP and signup_credits > 0
        if refusal is Refusal.KEY_IS_TAKEN or may_sign_up:
            return None
        try:
            return await self._error(session, refusal, row)
        except DatabaseUnavailable as error:  # The other sessions of the batch are created.
            return error

    async def _run_many_skip_locked(
        self, batches: Sequence[_Batch]
    ) -> Sequence[_Rows | BlockedCall]:
        """Like ``_run_skip_locked``. All sessions of a batch have one account."""
        found = await self._run_many(sql.CREATE_SKIP_LOCKED, batches)
        return [BLOCKED if rows[0][0] == Refusal.NO_ACCOUNT else rows for rows in found]

    async def _run_many_wait(self, batches: Sequence[_Batch]) -> Sequence[_Rows]:
        return await self._run_many(sql.CREATE_WAIT, batches)

    async def _run_many(self, statement: str, batches: Sequence[_Batch]) -> Sequence[_Rows]:
        """The rows of each batch."""
        asked = [_asked(*creation) for batch in batches for creation in batch]
        rows = iter(await self._rows(statement, *_written(asked, ASKED), *self._arguments))
        return [list(islice(rows, len(batch))) for batch in batches]

    async def _run_skip_locked(
        self, creations: Sequence[_Creation]
    ) -> Sequence[_Outcome | BlockedCall]:
        """A locked account looks like a missing one. Either way its calls are blocked and wait for
        it by themselves, so that the other owners do not wait."""
        outcomes = await self._run(sql.CREATE_SKIP_LOCKED, sql.CREATE_ONE_SKIP_LOCKED, creations)
        return [_blocked_or(outcome) for outcome in outcomes]

    async def _run_wait(self, creations: Sequence[_Creation]) -> Sequence[_Outcome]:
        return await self._run(sql.CREATE_WAIT, sql.CREATE_ONE_WAIT, creations)

    async def _run_for_shoppers_skip_locked(
        self, creations: Sequence[_Creation]
    ) -> Sequence[_Outcome | BlockedCall]:
        outcomes = await self._run_for_shoppers(sql.CREATE_FOR_SHOPPERS_SKIP_LOCKED, creations)
        return [_blocked_or(outcome) for outcome in outcomes]

    async def _run_for_shoppers_wait(self, creations: Sequence[_Creation]) -> Sequence[_Outcome]:
        return await self._run_for_shoppers(sql.CREATE_FOR_SHOPPERS_WAIT, creations)

    async def _run(
        self, of_many: str, of_one: str, creations: Sequence[_Creation]
    ) -> Sequence[_Outcome]:
        asked = [_asked(*creation) for creation in creations]
        if len(asked) > 1:
            rows = await self._rows(of_many, *_written(asked, ASKED), *self._arguments)
        else:
            rows = await self._rows(of_one, *asked[0], *self._arguments)
            if not rows:
                return [(Refusal.NO_ACCOUNT, None)]
        return self._outcomes(creations, rows)

    async def _run_for_shoppers(
        self, statement: str, creations: Sequence[_Creation]
    ) -> Sequence[_Outcome]:
        asked = [
            (*_asked(session, max_active), session.shopper.id, session.shopper.token_id)
            for session, max_active in creations
            if session.shopper is not None
        ]
        arrays = _written(asked, ASKED | OF_SHOPPERS)
        rows = await self._rows(statement, *arrays, *self._of_shoppers)
        return self._outcomes(creations, rows)

    async def _rows(self, statement: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Run the statement, and repeat it if a CHECK refuses a row that was out of date.

        PostgreSQL checks the row of the statement's snapshot first, and only then finds the newer
        one that was locked: if a refund or a grant came between, the old row has nothing left to
        take. Nothing was written, and the next snapshot has the newer row.
        """
        for tries_left in reversed(range(_STALE_TRIES)):
            try:
                return await self._database.fetch(statement, *arguments)
            except asyncpg.CheckViolationError as error:
                if error.table_name not in _RECHECKED_TABLES or not tries_left:
                    raise
        raise AssertionError("The last try returns or raises")

    async def _sign_up(self, session: GenerationSession, signup_credits: int) -> Receipt | None:
        rates = self._limits.rates_of(Plan.DEFAULT)
        row = await self._database.fetch_row(
            sql.SIGN_UP,
            session.owner.id,
            session.idempotency_key,
            *inserted_values(session),
            GENERATION_COST,
            rates.submissions_per_minute,
            rates.submissions_per_hour,
            signup_credits,
            self._limits.signups_per_day,
        )
        assert row is not None  # noqa: S101 - the statement returns one row
        if row["balance"] is None:
            if row["is_new"]:
                raise error_of(Refusal.UNFUNDED)
            return None
        return Receipt(
            session=session.stored(created_at=row["created_at"]),
            credits_remaining=row["balance"],
            rates=tuple(rate.use(rate.interval.total_seconds()) for rate in rates.all),
        )

    def _outcomes(
        self, creations: Sequence[_Creation], rows: Sequence[asyncpg.Record]
    ) -> Sequence[_Outcome]:
        """A receipt for each created session and for its replays in the same batch; for the others
        the reason of the refusal. Replays of a refused session are refused for its reason."""
        outcomes: list[_Outcome] = []
        of_key: dict[tuple[Owner, str], _Outcome] = {}
        for (session, _), row in zip(creations, rows, strict=True):
            # By position, which costs a third of what names do.
            decided, balance, created_at, plan, minute, hour, pictures_left = row
            outcome: _Outcome
            if decided != _CREATED:
                outcome = (Refusal(decided), row)
            else:
                outcome = Receipt(
                    session=session.stored(created_at=created_at),
                    credits_remaining=balance,
                    rates=self._rates(plan, minute, hour),
                    pictures_remaining=pictures_left,
                )
            if session.idempotency_key is not None:
                key = (session.owner, session.idempotency_key)
                if decided == Refusal.KEY_IS_TAKEN:
                    outcome = of_key.setdefault(key, outcome)
                elif isinstance(outcome, Receipt):
                    of_key[key] = replace(outcome, replayed=True, rates=())
                else:
                    of_key[key] = outcome
            outcomes.append(outcome)
        return outcomes

    def _rates(self, plan: str, *backlogs: float) -> tuple[RateUse, ...]:
        """The rates of a plan by the backlogs of its minute and its hour, in seconds."""
        return tuple([rate.use(backlogs[place]) for place, rate in self._rates_of.get(plan, ())])

    async def _error(
        self, session: GenerationSession, refusal: Refusal, row: asyncpg.Record | None
    ) -> WearonError:
        if refusal is Refusal.RATE_LIMITED and row is not None:
            of_shopper = session.shopper is not None
            rates = self._rates(row["plan"], row["minute"], row["hour"])
            return rates_used_up(rates, of_shopper=of_shopper)
        if refusal is Refusal.REFUNDED_TOO_OFTEN and self._limits.refunds_per_hour is not None:
            owner = (session.owner.channel, session.owner.id)
            return await self._refunds(sql.REFUNDS_OF_OWNER, owner, self._limits.refunds_per_hour)
        limit, shopper = self._limits.shopper_refunds_per_hour, session.shopper
        if refusal is Refusal.SHOPPER_REFUNDED_TOO_OFTEN and limit is not None and shopper:
            ids = (session.owner.id, shopper.id)
            return await self._refunds(sql.REFUNDS_OF_SHOPPER, ids, limit)
        return error_of(refusal)

    async def _refunds(self, statement: str, ids: tuple[str, str], limit: int) -> WearonError:
        row = await self._database.fetch_row(statement, *ids)
        assert row is not None  # noqa: S101 - the statement returns one row
        hour, current, earlier, now = row
        window = (
            RefundWindow.empty(now)
            if hour is None  # A shopper who was forgotten after the refusal.
            else RefundWindow(hour=hour, current=current, earlier=earlier)
        )
        return refunded_too_often(window, limit, now)


def _placed(rates: PlanRates) -> Sequence[tuple[int, Rate]]:
    """The rates that have a limit, each with its place: 0 for the minute, 1 for the hour."""
    places = enumerate((rates.minute, rates.hour))
    return [(place, rate) for place, rate in places if rate is not None]


def _blocked_or(outcome: _Outcome) -> _Outcome | BlockedCall:
    is_missing = not isinstance(outcome, Receipt) and outcome[0] is Refusal.NO_ACCOUNT
    return BLOCKED if is_missing else outcome


def _payer(creation: _Creation) -> str:
    """The owner's id, whose hash costs less than the owner's. That a store and a user of one id
    take turns does no harm."""
    return creation[0].owner.id


def _payer_of_all(batch: _Batch) -> str:
    return _payer(batch[0])


def _asked(session: GenerationSession, max_active: int) -> tuple[object, ...]:
    """The calls' own arguments of all CREATE statements."""
    owner = session.owner
    key = session.idempotency_key
    return owner.channel, owner.id, key, max_active, *inserted_values(session)


def _written(rows: Sequence[tuple[object, ...]], types: Mapping[str, str]) -> Iterator[str | None]:
    """One array per column, as a text. It is NULL if all its values are: ``unnest`` fills it up."""
    for column, type_ in zip(zip(*rows, strict=True), types.values(), strict=True):
        yield None if column.count(None) == len(column) else WRITERS[type_](column)


def arrays_of(rows: Iterable[tuple[object, ...]]) -> Iterator[tuple[object, ...] | None]:
    """One array per column. It is NULL if all its values are: ``unnest`` fills it up, and the
    driver would look at each value."""
    for column in zip(*rows, strict=True):
        yield None if column.count(None) == len(column) else column
