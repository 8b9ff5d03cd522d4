"""``wearon sessions``: lists, and one session on one screen."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from config.container import Container
from domain.causes import Cause, CauseKind
from domain.sessions import GenerationSession
from entrypoints.cli.times import moment
from entrypoints.http.schemas import Session
from tests.support.cli import Shop, new_shop
from tests.support.clock import START
from tests.support.examples import (
    FAILURE,
    FAULT,
    HAT,
    LEASE,
    MODEL_URL,
    STORE,
    USER,
    picture_of,
)


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    return new_shop(postgres.url())


def ids(page: dict[str, Any]) -> list[str]:
    return [item["session_id"] for item in page["items"]]


def test_sessions_are_listed(shop: Shop) -> None:
    """Newest first, of all owners, one owner or some statuses."""
    store_s = shop.session(STORE)
    done = shop.completed()
    failed = shop.failed()

    table = shop.run("sessions", "list").stdout.splitlines()
    final = shop.json("sessions", "list", "--status", "completed", "--status", "failed")
    by_owner = shop.json("sessions", "list", "--store", STORE.id)

    assert [row.split()[:5] for row in table[1:]] == [
        [str(failed.id), f"b2c:{USER.id}", "failed", "0", "MODERATION_BLOCKED"],
        [str(done.id), f"b2c:{USER.id}", "completed", "1", "-"],
        [str(store_s.id), "b2b:store-1", "queued", "0", "-"],
    ]
    assert ids(final) == [str(failed.id), str(done.id)]
    assert by_owner == {
        "items": [shop.json("sessions", "list", "--limit", 3)["items"][2]], "next_cursor": None,
    }  # fmt: skip


def test_sessions_are_listed_by_what_a_customer_quotes(shop: Shop) -> None:
    """An error code, a request id, a time."""
    before = datetime.now(UTC).isoformat()
    failed = shop.failed(request_id="order-7")
    shop.session(request_id="order-8")

    def listed(*options: str) -> list[str]:
        return ids(shop.json("sessions", "list", *options))

    assert listed("--code", "MODERATION_BLOCKED") == [str(failed.id)]
    assert listed("--request-id", "order-7") == [str(failed.id)]
    assert listed("--request-id", "order-9") == []
    assert len(listed("--since", "5m")) == len(listed("--since", before)) == 2
    assert listed("--until", before) == listed("--since", "0s") == []


def test_pages_of_sessions_follow_each_other(shop: Shop) -> None:
    """The cursor of a page begins the next one; the last page has none."""
    sessions = [str(shop.session().id) for _ in range(3)]

    first = shop.json("sessions", "list", "--limit", 2)
    second = shop.json("sessions", "list", "--limit", 2, "--after", first["next_cursor"])
    table = shop.run("sessions", "list", "--limit", 2)

    assert ids(first) + ids(second) == sessions[::-1]
    assert (first["next_cursor"], second["next_cursor"]) == (sessions[1], None)
    assert table.stderr == f"More: --after {sessions[1]}\n"
    assert sessions[0] not in table.stdout


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90m", START - timedelta(minutes=90)),
        ("24h", START - timedelta(hours=24)),
        ("7d", START - timedelta(days=7)),
        ("0s", START),
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T12:30+02:00", datetime(2026, 1, 1, 10, 30, tzinfo=UTC)),
        ("2026-01-01T12:30Z", datetime(2026, 1, 1, 12, 30, tzinfo=UTC)),
    ],
)
def test_times_are_iso_or_ages(text: str, at: datetime) -> None:
    """UTC unless the text says otherwise."""
    assert moment(text, now=START) == at


@pytest.mark.parametrize("text", ["yesterday", "7w", "-1d", "999999d", ""])
def test_time_that_is_none_is_refused(text: str, shop: Shop) -> None:
    """With examples, and exit code 2."""
    result = shop.run("sessions", "list", "--since", text)

    assert result.exit_code == 2
    assert "is neither a time like 2026-11-28T14:00 nor 90m, 24h or 7d." in result.stderr


def fail_twice(shop: Shop, session: GenerationSession) -> None:
    async def work(container: Container) -> None:
        sessions = container.sessions()
        await sessions.claim(session.id, lease=LEASE)
        await sessions.release(session.id, attempt=1, delay=timedelta(0), fault=FAULT)
        await sessions.claim(session.id, lease=LEASE)
        other = replace(FAULT, cause=Cause(CauseKind.PROVIDER, "500 server_error"))
        await sessions.fail(session.id, FAILURE, attempt=2, fault=other)

    shop.do(work)


def test_failed_session_is_explained_on_one_screen(shop: Shop) -> None:
    """Each attempt with its worker and cause, both ledger entries, and that it cost nothing."""
    session = shop.session(request_id="order-7", idempotency_key="key-1")
    fail_twice(shop, session)

    shown = shop.run("sessions", "show", session.id).stdout
    as_json = shop.json("sessions", "show", session.id)

    heading, happened, credit = shown.split("\n\n")
    assert heading.splitlines()[0] == f"{session.id}  FAILED  MODERATION_BLOCKED"
    assert f"  message          {FAILURE.message}" in heading
    assert f"  owner            b2c:{USER.id}" in heading
    assert "  request id       order-7" in heading
    assert "  idempotency key  key-1" in heading
    debit, refund = (entry["id"] for entry in as_json["ledger"])
    texts = [re.sub(r"^  (\+ [\d.]+ s|[\d-]+ [\d:]+) +", "", line) for line in lines_of(happened)]
    assert texts == [
        f"requested, 1 credit(s) debited (entry {debit})",
        "attempt 1 failed at worker-1:7: input 404 host=pictures.example",
        "attempt 2 failed at worker-1:7: provider 500 server_error",
        f"failed as MODERATION_BLOCKED, credit refunded (entry {refund})",
    ]
    assert [line.split()[:4] for line in lines_of(credit)[:2]] == [
        ["entry", str(debit), "debit", "-1"], ["entry", str(refund), "refund", "+1"],
    ]  # fmt: skip
    assert lines_of(credit)[-1] == "  net 0: the customer was not charged"
    assert [fault["attempt"] for fault in as_json["faults"]] == [1, 2]
    assert as_json["faults"][1]["cause"] == "provider 500 server_error"
    assert (as_json["attempts_spent"], as_json["credits_charged"]) == (2, 0)
    assert len(shown.splitlines()) <= 24


def lines_of(part: str) -> list[str]:
    """Below the heading of a part."""
    return part.splitlines()[1:]


def test_completed_session_was_charged(shop: Shop) -> None:
    """With its picture, tokens and cost."""
    session = shop.completed()

    shown = shop.run("sessions", "show", session.id).stdout

    assert f"  picture          {picture_of(session.id).object_key}\n" in shown
    assert "  cost to us       $0.215064, tokens in 1923 out 6240\n" in shown
    assert "attempt 1 began\n" in shown
    assert shown.endswith("  net -1: the customer was charged 1 credit(s)\n")


def test_all_fields_are_shown_on_request(shop: Shop) -> None:
    """Images in the contract's order, nothing truncated."""
    long_url = "https://pictures.example/" + "x" * 500
    session = shop.completed(outfit_image_url=long_url, accessories=(HAT,))

    shown = shop.run("sessions", "show", session.id, "--all").stdout
    as_json = shop.json("sessions", "show", session.id)

    rows = shown.split("\n\n")[-1].splitlines()
    fields = dict(re.split(r"  +", line, maxsplit=1) for line in rows)
    assert fields["session_id"] == as_json["session_id"] == str(session.id)
    assert (fields["status"], fields["attempt"]) == ("completed", "1")
    assert fields["object_key"] == as_json["object_key"] == picture_of(session.id).object_key
    assert (fields["model_image_url"], fields["outfit_image_url"]) == (MODEL_URL, long_url)
    assert fields["accessories[0]"] == f"hat: {HAT.url}"
    assert as_json["accessories"] == [{"type": "hat", "url": HAT.url}]
    assert fields["error_code"] == "-"
    assert (fields["input_tokens"], fields["output_tokens"]) == ("1923", "6240")
    assert fields["estimated_cost_usd"] == "0.215064"


def test_names_of_a_session_are_those_of_the_api(shop: Shop) -> None:
    """All that the API shows, but for what it computes for one caller, has the same name here."""
    shown = shop.json("sessions", "show", shop.completed().id)

    computed = {"queue_position", "status_url"}
    assert set(Session.__struct_fields__) - computed <= shown.keys()


def test_deleted_picture_is_shown_as_deleted(shop: Shop) -> None:
    """Once it is gone from the storage."""
    kept, deleted = shop.completed(), shop.completed()
    shop.do(lambda container: container.sessions().mark_images_deleted([deleted.id]))

    shown = [shop.run("sessions", "show", session.id).stdout for session in (kept, deleted)]

    assert ["picture deleted" in text for text in shown] == [False, True]
    assert "  picture          deleted\n" in shown[1]


def test_control_characters_of_callers_are_escaped(shop: Shop) -> None:
    """Terminals would execute them. Markup is printed as text."""
    session = shop.session(request_id="\x1b[31mred\x07", model_image_url="https://x/[/bold]\nb")

    shown = shop.run("sessions", "show", session.id, "--all")

    assert shown.exit_code == 0
    assert shown.stdout.count("\\x1b[31mred\\x07\n") == 2
    assert "https://x/[/bold]\\nb\n" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_unknown_session(shop: Shop) -> None:
    """One line on standard error and exit code 1, with --json too."""
    for option in ([], ["--json"]):
        result = shop.run("sessions", "show", uuid4(), *option)

        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "Error: No such generation\n"
