"""Who gets into the console, and which forms it accepts."""

import re
from uuid import UUID

import pytest
from httpx import Response
from litestar.routes import HTTPRoute

from config.console import operators
from config.container import Container
from domain import passwords
from domain.console_ports import Role
from domain.errors import DatabaseUnavailable
from entrypoints.console.auth import ROLE
from entrypoints.console.server import application
from tests.support.console import (
    BASE_URL,
    PASSWORD,
    REASON,
    ConsoleOf,
    Visitor,
    filled,
    new_action_id,
)
from tests.support.examples import OPERATOR, STORE

OPEN = {
    ("GET", "/"),
    ("GET", "/console/static/{name}"),
    ("GET", "/console/login"),
    ("POST", "/console/login"),
    ("GET", "/console/link/{token}"),
    ("POST", "/console/link/{token}"),
    ("GET", "/console/developer/{token}"),
}
"""The routes that need no sign-in."""


@pytest.fixture(autouse=True)
def fast_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_COST", 2)


@pytest.fixture
def console() -> ConsoleOf:
    return ConsoleOf()


def invited(console: ConsoleOf, name: str = "alice", role: Role = Role.OPERATOR) -> str:
    """The path of a one-time link."""
    invitation = console.do(lambda container: operators(container).invite(name, role, by=OPERATOR))
    return f"/console/link/{invitation.token}"


def test_every_other_route_needs_a_role(console: ConsoleOf) -> None:
    """A new route without the option would be open: this lists those that are meant to be."""
    found = {
        (method, route.path_format)
        for route in console.app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods
        if handler.opt.get(ROLE) is None and method != "OPTIONS"
    }

    assert found == OPEN


def test_link_then_password_then_name(console: ConsoleOf) -> None:
    """The link sets the password and signs in; afterwards the login does. A link works once."""
    link, visitor = invited(console), console.visitor()
    page = visitor.get(link)
    entered = visitor.post(link, {"password": PASSWORD})
    inside = visitor.get("/console")
    visitor.post("/console/logout", visitor.form_of("/console"))
    outside = visitor.get("/console")
    again = visitor.post(
        "/console/login",
        {"name": "alice", "password": PASSWORD, "next": "/console/queue?x=1"},
    )

    assert "alice, operator" in page.text
    assert (entered.status_code, entered.headers["location"]) == (303, "/console")
    assert (inside.status_code, outside.status_code) == (200, 303)
    assert (again.status_code, again.headers["location"]) == (303, "/console/queue?x=1")
    assert visitor.get("/console").status_code == 200
    assert console.visitor().get(link).status_code == 404


def test_short_password_is_refused(console: ConsoleOf) -> None:
    """In words, and the link still works."""
    link, visitor = invited(console), console.visitor()

    refused = visitor.post(link, {"password": "short"})

    assert refused.status_code == 400
    assert "12 to 200 characters" in refused.text
    assert visitor.post(link, {"password": PASSWORD}).status_code == 303


def test_wrong_password_is_told_in_the_page(console: ConsoleOf) -> None:
    """And after five attempts, to wait."""
    console.visitor().post(invited(console), {"password": PASSWORD})
    visitor = console.visitor()

    answers = [
        visitor.post("/console/login", {"name": "alice", "password": "wrong"}) for _ in range(6)
    ]

    assert [answer.status_code for answer in answers] == [401] * 5 + [429]
    assert "do not match" in answers[0].text
    assert 'value="alice"' in answers[0].text
    assert visitor.cookies == {}


@pytest.mark.parametrize(
    "place",
    ["https://evil.example/console", "//evil.example", "/console/\nx", "/consolex", "/other", ""],
)
def test_sign_in_leads_to_the_console_only(console: ConsoleOf, place: str) -> None:
    console.visitor().post(invited(console), {"password": PASSWORD})

    answer = console.visitor().post(
        "/console/login", {"name": "alice", "password": PASSWORD, "next": place}
    )

    assert answer.headers["location"] == "/console"


def cookie_set_by(console: ConsoleOf, host: str) -> str:
    answer = console.visitor().post(invited(console), {"password": PASSWORD}, host=host)
    return str(answer.headers["set-cookie"])


def test_cookie_is_for_the_console_alone(console: ConsoleOf) -> None:
    """Not for scripts, other sites or the API; over TLS only, except on this machine."""
    here = cookie_set_by(console, "127.0.0.1:8001")
    elsewhere = cookie_set_by(console, "ops.example")

    assert here.startswith("wearon-console=")
    assert "Secure" not in here.partition(";")[2]
    assert elsewhere.startswith("__Secure-wearon-console=")
    for cookie in (here, elsewhere):
        for attribute in ("HttpOnly", "Path=/console", "SameSite=strict", "Max-Age=43200"):
            assert attribute in cookie
    assert "; Secure" in elsewhere


def test_developer_link_works_in_development_only(console: ConsoleOf) -> None:
    token = console.services.access.developer_token()
    visitor = console.visitor()

    page = visitor.get(f"/console/developer/{token}")

    assert page.status_code == 200
    assert 'http-equiv="refresh"' in page.text
    assert visitor.get("/console").status_code == 200
    assert console.visitor().get("/console/developer/" + "0" * 64).status_code == 401


def attempts(ids: dict[str, UUID]) -> dict[str, tuple[str, dict[str, object]]]:
    """A valid form for every POST, without its token."""
    common: dict[str, object] = {"reason": REASON, "action_id": new_action_id()}
    session: dict[str, object] = {"session": ids["queued"]}
    return {
        "/console/act/grant": ("operator", {"owner": STORE, "amount": 3, **common}),
        "/console/act/take-back": ("admin", {"owner": STORE, "amount": 3, **common}),
        "/console/act/cancel": ("operator", {**session, **common}),
        "/console/act/again": ("operator", {"session": ids["done"], "payer": "owner", **common}),
        "/console/act/requeue": ("operator", {"letter": ids["letter"], **common}),
        "/console/act/discard": ("operator", {"letter": ids["letter"], **common}),
        "/console/act/create-key": ("admin", {"owner": STORE, "label": "new", **common}),
        "/console/act/revoke-key": ("admin", {"key": ids["key"], **common}),
        "/console/act/pause": ("operator", {"switch": "intake", **common}),
        "/console/act/resume": ("operator", {"switch": "intake", **common}),
        "/console/act/verify": ("viewer", common),
        f"/console/sessions/{ids['done']}/pictures": ("operator", {}),
        "/console/logout": ("viewer", {}),
    }


async def everything(container: Container) -> object:
    """What an action could change."""
    return (
        [
            entry
            for entry in await container.audit_log().actions(subject=None, limit=999)
            if not entry.subject.startswith("operator:")
        ],
        await container.sessions().history(None, status=None, limit=999, after=None),
        await container.accounts().ledger(STORE, limit=999, before_id=None),
        await container.api_keys().all(None),
        await container.queue().dead(limit=9),
        await container.queue().depth(),
        await container.pauses().paused(),
    )


def test_every_form_is_listed(console: ConsoleOf) -> None:
    """A new one cannot be forgotten in the tests below."""
    ids = console.do(filled)
    listed = {re.sub("[0-9a-f-]{36}", "{session_id}", path) for path in attempts(ids)}
    found = {
        route.path_format
        for route in console.app.routes
        if isinstance(route, HTTPRoute) and "POST" in route.methods
    }

    assert listed == found - {path for _, path in OPEN}


def test_forms_are_refused_without_right_or_token(console: ConsoleOf) -> None:
    """Without a cookie, by a lesser role, without or with another's token, from another site: with
    no effect at all."""
    ids = console.do(filled)
    roles = list(Role)
    before = console.do(everything)
    for path, (needed, fields) in attempts(ids).items():
        role = Role(needed)
        able = console.visitor(role)
        token = able.form_of("/console")["token"]
        refused: dict[str, Response] = {
            "no cookie": console.visitor().post(path, {**fields, "token": token}),
            "no token": able.post(path, fields),
            "another's token": able.post(path, {**fields, "token": token[::-1]}),
            "other site": able.post(path, {**fields, "token": token}, sec_fetch_site="cross-site"),
            "same site": able.post(path, {**fields, "token": token}, sec_fetch_site="same-site"),
            "other origin": able.post(
                path, {**fields, "token": token}, origin="https://evil.example"
            ),
        }
        if role is not roles[0]:
            lesser = console.visitor(roles[roles.index(role) - 1])
            own = lesser.form_of("/console")["token"]
            refused["lesser role"] = lesser.post(path, {**fields, "token": own})

        statuses = {why: answer.status_code for why, answer in refused.items()}
        assert statuses.pop("no cookie") == 303, path
        assert set(statuses.values()) == {403}, (path, statuses)

    assert console.do(everything) == before


def test_read_only_console_refuses_every_change() -> None:
    """Also an administrator's; signing out and verifying the books change nothing."""
    console = ConsoleOf(WEARON_CONSOLE_READ_ONLY="true")
    ids = console.do(filled)
    before = console.do(everything)
    visitor = console.visitor(Role.ADMIN)
    token = visitor.form_of("/console")["token"]

    statuses = {
        path: visitor.post(path, {**fields, "token": token}, origin=BASE_URL).status_code
        for path, (_, fields) in attempts(ids).items()
    }

    assert {path for path, status in statuses.items() if status != 403} == {
        "/console/act/verify",
        "/console/logout",
    }
    assert console.do(everything) == before
    assert "/console/act/" not in console.visitor(Role.ADMIN).get("/console").text


def test_nothing_is_done_while_roles_cannot_be_checked(
    console: ConsoleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database does not answer for the operators: a form that was open is refused, whatever
    its role."""
    visitor = console.visitor(Role.ADMIN)
    form = visitor.form_of("/console/act/verify")

    async def down(_: str) -> None:
        raise DatabaseUnavailable("down")

    monkeypatch.setattr(console.container.repositories().operators, "get", down)
    console.services.access._seen.clear()

    answer = visitor.post("/console/act/verify", form)

    assert answer.status_code == 403
    assert "role can be checked" in answer.text
    assert visitor.get("/console").status_code == 200


def test_login_from_another_site_is_refused(console: ConsoleOf) -> None:
    """Or another site could sign a browser in as somebody else."""
    fields = {"name": "alice", "password": PASSWORD}

    answers = [
        console.visitor().post("/console/login", fields, **headers)
        for headers in ({"sec_fetch_site": "cross-site"}, {"origin": "https://evil.example"})
    ]

    assert [answer.status_code for answer in answers] == [403, 403]


def test_operator_in_a_header_is_trusted_where_that_is_set() -> None:
    """Only an operator's name, with the operator's own role; forms need their token as ever."""
    console = ConsoleOf(WEARON_CONSOLE_USER_HEADER="X-Forwarded-User")
    console.visitor(Role.OPERATOR)
    name = "a-operator"
    visitor = console.visitor()

    known = visitor.get("/console", x_forwarded_user=name)
    unknown = visitor.get("/console", x_forwarded_user="mallory")
    token = re.findall(r'name="token" value="(\w+)"', known.text)

    assert (known.status_code, unknown.status_code) == (200, 303)
    assert token == []  # there is no cookie to sign out of
    assert Visitor(ConsoleOf().app).get("/console", x_forwarded_user=name).status_code == 303
    form = visitor.get("/console/act/verify", x_forwarded_user=name).text
    (token,) = set(re.findall(r'name="token" value="(\w+)"', form))
    fields = {"action_id": new_action_id()}
    path = "/console/act/verify"
    assert visitor.post(path, fields, x_forwarded_user=name).status_code == 403
    fields["token"] = token
    assert visitor.post(path, fields, x_forwarded_user=name).status_code == 200


def test_application_is_built_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection."""
    monkeypatch.setenv("WEARON_CONSOLE_SECRET", "signs the cookies of operators in tests")
    monkeypatch.setenv("WEARON_SIGNING_SECRET", "signs the links of pictures in tests")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    answer = Visitor(application()).get("/console/login")

    assert answer.status_code == 200
    assert "production" in answer.text
