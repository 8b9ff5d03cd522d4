"""``wearon webhooks``: what operators do with owners' webhooks, and what it leaves behind."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from domain.endpoints import DeliveryStatus
from tests.support.cli import Shop, new_shop
from tests.support.examples import LEASE, STORE, USER
from tests.support.webhooks import a_result, an_attempt, an_outcome

OF = ("--store", STORE.id)
OTHER = ("--store", "store-2")
URL = "http://127.0.0.1:9/hooks?key=hidden"


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    """Where loopback addresses are allowed: tests look up no names."""
    shop = new_shop(postgres.url())
    shop.env |= {"WEARON_ENVIRONMENT": "development", "WEARON_FETCH_ALLOW_LOOPBACK": "true"}
    return shop


def added(shop: Shop, *options: object) -> Any:
    return shop.json("webhooks", "add", URL, *OF, *options)


def end_deliveries(shop: Shop, status: DeliveryStatus, code: int) -> None:
    """All that is due ends like this."""

    async def work(container: Any) -> None:
        repo = container.webhook_repo()
        for turn in await repo.claim(limit=10, window=8, lease=LEASE):
            attempt = an_attempt(code, response="said no")
            outcomes = [an_outcome(due.id, status=status, attempt=attempt) for due in turn.due]
            await repo.settle(a_result(turn, *outcomes))

    shop.do(work)


def test_endpoint_is_added_listed_and_shown(shop: Shop) -> None:
    """With its secret once; a list shows neither that nor the query of the URL."""
    endpoint = added(shop, "--event", "credits.low", "--description", "till")
    secret = endpoint.pop("secret")
    listed = shop.json("webhooks", "list", *OF)
    shown = shop.json("webhooks", "show", endpoint["endpoint_id"], *OF)
    table = shop.run("webhooks", "list", *OF).stdout
    fields = shop.run("webhooks", "show", endpoint["endpoint_id"], *OF).stdout

    assert secret.startswith("whsec_")
    assert listed == [endpoint]
    assert shown == endpoint
    assert (endpoint["url"], endpoint["events"]) == (URL, ["credits.low"])
    assert table.splitlines()[1].split()[:4] == [
        endpoint["endpoint_id"], "http://127.0.0.1:9/hooks?…", "credits.low", "enabled"
    ]  # fmt: skip
    assert secret not in table + fields
    assert "hidden" not in table


def test_new_secret_is_printed_once(shop: Shop) -> None:
    """By `add` and `rotate`, for people too."""
    result = shop.run("webhooks", "add", URL, *OF)
    (endpoint,) = shop.json("webhooks", "list", *OF)
    rotated = shop.run("webhooks", "rotate", endpoint["endpoint_id"], *OF)

    for each in (result, rotated):
        secret, note = each.stdout.splitlines()
        assert secret.startswith("whsec_")
        assert note == (
            f"(id {endpoint['endpoint_id']}; save the secret now: it is not shown again)"
        )
    assert result.stdout != rotated.stdout


def test_endpoint_is_updated(shop: Shop) -> None:
    """Only what is given."""
    endpoint = added(shop)
    endpoint.pop("secret")
    update = ("webhooks", "update", endpoint["endpoint_id"], *OF)
    disabled = shop.json(*update, "--disable", "--event", "credits.low")
    state = shop.run("webhooks", "list", *OF).stdout
    enabled = shop.json(*update, "--enable", "--url", f"{URL}2")
    nothing = shop.run(*update)

    assert (disabled["enabled"], disabled["events"]) == (False, ["credits.low"])
    assert "disabled (owner)" in state
    assert enabled == endpoint | {"events": ["credits.low"], "url": f"{URL}2"}
    assert (nothing.exit_code, "Give what to change" in nothing.stderr) == (2, True)


def test_deliveries_are_listed_and_retried(shop: Shop) -> None:
    """One by its id, and all that failed since a time."""
    endpoint_id = added(shop)["endpoint_id"]
    sent = shop.json("webhooks", "test", endpoint_id, *OF)
    end_deliveries(shop, DeliveryStatus.FAILED, 500)
    (failed,) = shop.json("webhooks", "deliveries", endpoint_id, *OF, "--status", "failed")
    none = shop.json("webhooks", "deliveries", endpoint_id, *OF, "--status", "delivered")
    row = shop.run("webhooks", "deliveries", endpoint_id, *OF).stdout.splitlines()[1].split()
    one = shop.json("webhooks", "retry", sent["delivery_id"], *OF)
    end_deliveries(shop, DeliveryStatus.FAILED, 500)
    since = ("webhooks", "retry", endpoint_id, *OF, "--since")
    future, past = shop.json(*since, "2999-01-01"), shop.run(*since, "2000-01-01T00:00:00")

    assert (sent["event"], sent["status"]) == ("webhook.test", "pending")
    assert [(each["status"], each["response"]) for each in failed["attempts"]] == [(500, "said no")]
    assert none == []
    assert row[:7] == [sent["delivery_id"], "webhook.test", "-", "failed", "1", "500", "12"]
    assert (one["delivery_id"], one["status"]) == (sent["delivery_id"], "pending")
    assert future == {"retried": 0}
    assert past.stdout == "1 deliveries are sent again.\n"


def test_endpoint_is_removed(shop: Shop) -> None:
    endpoint_id = added(shop)["endpoint_id"]
    removed = shop.run("webhooks", "remove", endpoint_id, *OF)
    again = shop.run("webhooks", "remove", endpoint_id, *OF)

    assert (removed.exit_code, removed.stdout) == (0, "Removed.\n")
    assert (again.exit_code, again.stderr) == (1, "Error: No such webhook endpoint\n")
    assert shop.json("webhooks", "list", *OF) == []


def test_threshold_of_low_credits(shop: Shop) -> None:
    command = ("webhooks", "low-credits", *OF)
    off, on = shop.run(*command).stdout, shop.run(*command, "--below", 7).stdout
    shown, ended = shop.json(*command), shop.json(*command, "--off")
    both = shop.run(*command, "--off", "--below", 7)

    assert (off, on) == ("off\n", "below 7 credit(s)\n")
    assert (shown, ended) == ({"low_credits": 7}, {"low_credits": None})
    assert both.exit_code == 2


COMMANDS: dict[str, tuple[object, ...]] = {
    "show": (),
    "update": ("--disable",),
    "remove": (),
    "rotate": (),
    "test": (),
    "deliveries": (),
    "retry": ("--since", "2000-01-01"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_another_owners_endpoint_looks_unknown(shop: Shop, command: str) -> None:
    endpoint_id = added(shop)["endpoint_id"]
    before = shop.json("webhooks", "list", *OF)
    others = shop.run("webhooks", command, endpoint_id, *OTHER, *COMMANDS[command])
    unknown = shop.run("webhooks", command, uuid4(), *OF, *COMMANDS[command])

    assert (others.exit_code, others.stderr) == (1, "Error: No such webhook endpoint\n")
    assert (unknown.exit_code, unknown.stderr) == (1, others.stderr)
    assert shop.json("webhooks", "list", *OF) == before


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("add", "https://127.0.0.1.evil:99999/", *OF), 1, "url: "),
        (("add", "ftp://127.0.0.1/", *OF), 1, "url: must be an http or https URL"),
        (("add", URL, *OF, "--description", "x" * 201), 1, "description: "),
        (("add", URL, *OF, "--event", "webhook.test"), 2, "--event"),
        (("add", URL), 2, "Give --user UUID or --store ID."),
        (("add", URL, "--store", "store-9"), 1, "No store has the id store-9"),
        (("add", URL, "--user", USER.id), 1, "is unknown: it has no account"),
        (("deliveries", str(uuid4()), *OF, "--limit", 51), 2, "--limit"),
        (("retry", str(uuid4()), *OF), 1, "No such delivery"),
        (("retry", str(uuid4()), *OF, "--since", "yesterday"), 2, "--since"),
    ],
)
def test_mistake_is_named(
    shop: Shop, arguments: tuple[object, ...], code: int, problem: str
) -> None:
    result = shop.run("webhooks", *arguments)

    assert (result.exit_code, problem in result.stderr) == (code, True), result.stderr


def test_changes_are_in_the_audit_log(shop: Shop) -> None:
    """With reason and person, without secrets and URLs; reading leaves nothing."""
    why = ("--reason", "ticket 7", "--by", "alice")
    endpoint = added(shop, *why)
    of = (endpoint["endpoint_id"], *OF)
    rotated = shop.json("webhooks", "rotate", *of, *why)
    shop.json("webhooks", "update", *of, "--url", f"{URL}3", *why)
    sent = shop.json("webhooks", "test", *of, *why)
    shop.json("webhooks", "retry", sent["delivery_id"], *OF, *why)
    shop.json("webhooks", "retry", *of, "--since", "2026-01-01", *why)
    shop.json("webhooks", "low-credits", *OF, "--below", 3, *why)
    shop.run("webhooks", "list", *OF)
    shop.run("webhooks", "low-credits", *OF)
    shop.run("webhooks", "remove", *of, *why)
    log = shop.json("audit", "list", *OF)

    assert [entry["action"] for entry in reversed(log)] == [
        f"webhooks.{action}"
        for action in (
            "create", "rotate", "change", "test", "retry", "retry", "low_credits", "delete"
        )
    ]  # fmt: skip
    assert {(entry["actor"], entry["reason"]) for entry in log} == {("alice", "ticket 7")}
    assert UUID(log[0]["details"]["endpoint_id"]) == UUID(endpoint["endpoint_id"])
    for secret in (endpoint["secret"], rotated["secret"], "hidden"):
        assert secret not in str(log)
