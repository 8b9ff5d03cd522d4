"""What operators do in the console: shown before, done once, and kept in the audit log."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from domain.console_ports import Role
from domain.errors import Conflict, QueueUnavailable
from domain.sessions import SessionStatus
from tests.support.console import REASON, ConsoleOf, Visitor, filled, new_action_id
from tests.support.examples import STORE, USER


@pytest.fixture
def console() -> ConsoleOf:
    return ConsoleOf()


@pytest.fixture
def ids(console: ConsoleOf) -> dict[str, UUID]:
    return console.do(filled)


@pytest.fixture
def admin(console: ConsoleOf) -> Visitor:
    return console.visitor(Role.ADMIN)


def log_of(console: ConsoleOf, subject: object) -> list[tuple[str, str, str | None]]:
    """Action, actor and reason of each entry by the console, oldest first."""
    entries = console.do(
        lambda container: container.audit_log().actions(subject=str(subject), limit=99)
    )
    return [
        (entry.action, entry.actor, entry.reason)
        for entry in reversed(entries)
        if entry.actor.startswith("console:")
    ]


def balance_of(console: ConsoleOf, owner: Any) -> int:
    return console.do(lambda container: container.accounts().account(owner)).balance


def twice(visitor: Visitor, action: str, about: str, **fields: object) -> list[Any]:
    """The same form, sent twice."""
    form = visitor.form_of(f"/console/act/{action}?{about}")
    sent = {**form, "reason": REASON, **fields}
    return [visitor.post(f"/console/act/{action}", sent) for _ in range(2)]


def test_grant_about_a_session_is_booked_once(
    console: ConsoleOf, admin: Visitor, ids: dict[str, UUID]
) -> None:
    """The note names the session, the preview says that its credit was given back."""
    before = balance_of(console, STORE)
    about = f"owner={STORE}&session={ids['failed']}"
    preview = admin.get(f"/console/act/grant?{about}").text

    answers = twice(admin, "grant", about, amount=2)

    assert "given back already" in preview
    assert [answer.status_code for answer in answers] == [200, 200]
    assert balance_of(console, STORE) == before + 2
    (entry,) = console.do(lambda c: c.accounts().ledger(STORE, limit=1, before_id=None))
    assert entry.note == f"{REASON} (session {ids['failed']})"
    assert log_of(console, STORE) == [("credits.grant", "console:a-admin", REASON)]


def test_grant_names_an_owner_of_the_session(admin: Visitor, ids: dict[str, UUID]) -> None:
    """Another owner's session is like an unknown one."""
    page = admin.get(f"/console/act/grant?owner={USER}&session={ids['failed']}")

    assert page.status_code == 404


@pytest.mark.usefixtures("ids")
def test_grant_to_a_store_that_does_not_exist(admin: Visitor) -> None:
    """No account is made by a typing error."""
    page = admin.get("/console/act/grant?owner=b2b:store-i")

    assert page.status_code == 404
    assert "store-1" in page.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"amount": 0}, "amount"),
        ({"amount": 10**12}, "amount"),
        ({"amount": "x"}, "amount"),
        ({"reason": "oops"}, "at least 5 characters"),
        ({"reason": " " * 20}, "reason: must not be empty"),
        ({"reason": "x" * 201}, "more than 200 characters"),
        ({"action_id": "x"}, "action_id"),
        ({"action_id": ""}, "action_id"),
    ],
)
@pytest.mark.usefixtures("ids")
def test_wrong_field_is_named(
    console: ConsoleOf, admin: Visitor, fields: dict[str, Any], words: str
) -> None:
    """On the page of the form, and nothing is done."""
    before = balance_of(console, STORE)

    answer = admin.act("grant", f"owner={STORE}", **{"amount": 1, **fields})

    assert answer.status_code == 400
    assert words in answer.text
    assert "Grant credits" in answer.text
    assert balance_of(console, STORE) == before
    assert log_of(console, STORE) == []


@pytest.mark.usefixtures("ids")
def test_credits_are_taken_back_once(console: ConsoleOf, admin: Visitor) -> None:
    """All of them, or none with a conflict that shows the balance."""
    before = balance_of(console, STORE)

    answers = twice(admin, "take-back", f"owner={STORE}", amount=2)
    too_many = admin.act("take-back", f"owner={STORE}", amount=1_000)

    assert [answer.status_code for answer in answers] == [200, 200]
    assert too_many.status_code == 409
    assert f"{before - 2}" in too_many.text
    assert balance_of(console, STORE) == before - 2
    assert log_of(console, STORE) == [("credits.adjust", "console:a-admin", REASON)]


def test_queued_session_is_cancelled_once(
    console: ConsoleOf, admin: Visitor, ids: dict[str, UUID]
) -> None:
    """With its refund; another form finds that the session has ended."""
    before = balance_of(console, USER)
    about = f"session={ids['queued']}"

    answers = twice(admin, "cancel", about)
    late = admin.get(f"/console/act/cancel?{about}")

    assert [answer.status_code for answer in answers] == [200, 200]
    assert balance_of(console, USER) == before + 1
    session = console.do(lambda c: c.sessions().get(ids["queued"], None))
    assert session.status is SessionStatus.FAILED
    assert "The session has ended" in late.text
    assert '<button class="grave">' not in late.text
    subject = f"session:{ids['queued']}"
    assert log_of(console, subject) == [("session.cancel", "console:a-admin", REASON)]


def test_session_that_ended_meanwhile_is_not_cancelled(
    console: ConsoleOf, admin: Visitor, ids: dict[str, UUID]
) -> None:
    """The conflict is shown on the page, with the state as it is now."""
    form = admin.form_of(f"/console/act/cancel?session={ids['queued']}")
    console.do(lambda c: c.sessions().cancel(ids["queued"]))
    other = {**form, "action_id": new_action_id(), "reason": REASON}

    answer = admin.post("/console/act/cancel", other)

    assert answer.status_code == 409
    assert "cannot be cancelled any more" in answer.text
    assert "failed" in answer.text


@pytest.mark.parametrize(("payer", "cost"), [("owner", 1), ("grant", 0)])
def test_session_is_made_again_once(
    console: ConsoleOf, admin: Visitor, ids: dict[str, UUID], payer: str, cost: int
) -> None:
    """A new session with the same input; the operator decides who pays."""
    before = balance_of(console, STORE)

    answers = twice(admin, "again", f"session={ids['failed']}", payer=payer)

    assert [answer.status_code for answer in answers] == [200, 200]
    assert balance_of(console, STORE) == before - cost
    old = console.do(lambda c: c.sessions().get(ids["failed"], None))
    (new, *_) = console.do(
        lambda c: c.sessions().history(STORE, status=SessionStatus.QUEUED, limit=9, after=None)
    )
    assert new.input == old.input
    assert str(new.idempotency_key).startswith(f"again-{old.id}-")
    assert str(new.id) in answers[0].text
    assert str(new.id) in answers[1].text
    subject = f"session:{old.id}"
    assert log_of(console, subject) == [("session.again", "console:a-admin", REASON)]


def test_unfinished_or_erased_session_is_not_made_again(
    console: ConsoleOf, admin: Visitor, ids: dict[str, UUID]
) -> None:
    """The page says why, and a form that is sent all the same gets the conflict."""
    erased = console.do(lambda c: c.sessions().get(ids["done"], None))
    sessions: Any = console.container.sessions()
    sessions.overwrite(erased.id, erased_at=erased.created_at)

    for name, words in (("queued", "is queued"), ("done", "was erased")):
        page = admin.get(f"/console/act/again?session={ids[name]}").text
        fields = {"session": ids[name], "payer": "owner", "reason": REASON}
        token = admin.form_of("/console")["token"]
        answer = admin.post(
            "/console/act/again", {**fields, "token": token, "action_id": new_action_id()}
        )

        assert words in page
        assert "Make it again</button>" not in page
        assert answer.status_code == 409


@pytest.mark.parametrize(("action", "depth"), [("requeue", 1), ("discard", 0)])
def test_letter_is_dealt_with_once(
    console: ConsoleOf, admin: Visitor, ids: dict[str, UUID], action: str, depth: int
) -> None:
    """What was begun and that it was done are two entries: Redis is no part of a transaction."""
    answers = twice(admin, action, f"letter={ids['letter']}")
    late = admin.get(f"/console/act/{action}?letter={ids['letter']}")

    assert [answer.status_code for answer in answers] == [200, 200]
    assert late.status_code == 404
    assert console.do(lambda c: c.queue().count()) == 0
    assert console.do(lambda c: c.queue().depth()) == depth
    assert log_of(console, f"letter:{ids['letter']}") == [
        (f"dead.{action}", "console:a-admin", REASON),
        (f"dead.{action}.done", "console:a-admin", REASON),
    ]


def test_press_that_redis_did_not_answer_is_continued(
    console: ConsoleOf,
    admin: Visitor,
    ids: dict[str, UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same form again deals with the letter; the log has one beginning."""
    form = admin.form_of(f"/console/act/requeue?letter={ids['letter']}")
    fields = {**form, "reason": REASON}

    async def down(_: UUID) -> bool:
        raise QueueUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(console.container.queue(), "requeue", down)
        failed = admin.post("/console/act/requeue", fields)
    answer = admin.post("/console/act/requeue", fields)

    assert (failed.status_code, answer.status_code) == (503, 200)
    assert [action for action, *_ in log_of(console, f"letter:{ids['letter']}")] == [
        "dead.requeue",
        "dead.requeue.done",
    ]


@pytest.mark.usefixtures("ids")
def test_key_is_created_and_shown_once(console: ConsoleOf, admin: Visitor) -> None:
    first, second = twice(admin, "create-key", f"owner={STORE}", label="till 3")

    (key, _) = console.do(lambda c: c.api_keys().all(STORE))
    assert key.label == "till 3"
    assert f"<pre>{key.prefix}" in first.text
    assert first.headers["cache-control"] == "no-store"
    assert "<pre>" not in second.text
    assert "shown already" in second.text
    assert log_of(console, STORE) == [("key.create", "console:a-admin", REASON)]


def test_key_is_revoked(console: ConsoleOf, admin: Visitor, ids: dict[str, UUID]) -> None:
    answers = twice(admin, "revoke-key", f"key={ids['key']}")

    (key,) = console.do(lambda c: c.api_keys().all(STORE))
    assert key.revoked_at is not None
    assert [answer.status_code for answer in answers] == [200, 200]
    assert log_of(console, STORE) == [("key.revoke", "console:a-admin", REASON)]


def test_intake_is_paused_and_resumed_once(console: ConsoleOf, admin: Visitor) -> None:
    """A second press changes nothing, and says so."""
    paused = twice(admin, "pause", "switch=workers", switch="workers")
    state = console.do(lambda c: c.pauses().paused())
    resumed = twice(admin, "resume", "", switch="workers")
    wrong = admin.act("pause", switch="everything")

    assert [(pause.switch, pause.actor, pause.reason) for pause in state] == [
        ("workers", "console:a-admin", REASON)
    ]
    assert console.do(lambda c: c.pauses().paused()) == []
    assert "paused already" in paused[1].text
    assert "was not paused" in resumed[1].text
    assert wrong.status_code == 400
    assert log_of(console, "workers") == [
        ("switch.pause", "console:a-admin", REASON),
        ("switch.resume", "console:a-admin", REASON),
    ]


@pytest.mark.usefixtures("ids")
def test_books_are_verified(console: ConsoleOf) -> None:
    """By any role; discrepancies are listed."""
    viewer = console.visitor(Role.VIEWER)
    good = viewer.act("verify")
    accounts: Any = console.container.accounts()
    accounts._accounts[STORE] = replace(accounts.balance_of(STORE), balance=77)
    bad = viewer.act("verify")

    assert "The books balance" in good.text
    assert "Discrepancies found" in bad.text
    assert str(STORE) in bad.text


def test_books_are_verified_by_one_at_a_time(console: ConsoleOf) -> None:
    """The check reads the whole ledger."""
    actions = console.services.actions

    async def while_another_runs(_: object) -> None:
        async with actions._verifying:
            with pytest.raises(Conflict, match="already"):
                await actions.verify()

    console.do(while_another_runs)
