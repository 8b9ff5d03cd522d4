"""Every page of the console: for each role, as HTML and as JSON, whatever texts are stored."""

import re
import tomllib
from datetime import datetime
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from config.container import Container
from domain.console_ports import Role
from domain.errors import DatabaseUnavailable
from domain.operator_ports import Switch
from domain.sessions import SessionStatus
from entrypoints.console.rendering import MENU, static_files
from entrypoints.console.services import ROLES
from tests.support.console import ConsoleOf, filled, pages_of
from tests.support.examples import OPERATOR, STORE, USER

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
MAX_PAGE_BYTES = 150_000
STATIC = Path("entrypoints/console/static")


@pytest.fixture(scope="module")
def console() -> ConsoleOf:
    return ConsoleOf()


@pytest.fixture(scope="module")
def ids(console: ConsoleOf) -> dict[str, UUID]:
    return console.do(filled)


@pytest.mark.parametrize("role", list(Role))
def test_every_role_sees_every_page(console: ConsoleOf, ids: dict[str, UUID], role: Role) -> None:
    """Each also as JSON, and never from a cache."""
    visitor = console.visitor(role)
    for path in pages_of(ids):
        page = visitor.get(path)

        assert page.status_code == 200, (path, page.text[-500:])
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert visitor.json(path) is not None


def test_nothing_but_the_login_is_shown_to_strangers(
    console: ConsoleOf, ids: dict[str, UUID]
) -> None:
    """People are sent to sign in, and come back to the page; programs get a 401."""
    stranger = console.visitor()
    for path in pages_of(ids):
        page = stranger.get(path)
        program = stranger.ask(path)

        assert page.status_code == 303, path
        assert page.headers["location"].startswith("/console/login?next=%2Fconsole"), path
        assert (program.status_code, program.json()["data"]) == (401, None), path


def test_viewer_gets_no_buttons() -> None:
    """Only what a role may do has a link; a forged link is refused."""
    console = ConsoleOf()
    ids = console.do(filled)
    offered: dict[Role, set[str]] = {}
    console.do(lambda container: container.pauses().pause(Switch.INTAKE, by=OPERATOR))
    for role in Role:
        visitor = console.visitor(role)
        pages = "".join(visitor.get(path).text for path in pages_of(ids))
        offered[role] = set(re.findall(r'href="/console/act/([a-z-]+)', pages))
        for action, needed in ROLES.items():
            answer = visitor.get(f"/console/act/{action}").status_code
            assert (answer == 403) == (not role.includes(needed) and action != "show")

    allowed = {
        role: {name for name, least in ROLES.items() if role.includes(least)} - {"show"}
        for role in Role
    }
    assert offered == allowed


TEMPLATE = "{{ 7 * 7 }}{% raw %}"


@pytest.mark.parametrize("text", [EVIL, TEMPLATE])
def test_stored_texts_stay_texts(text: str) -> None:
    """A script in a name, label, note, reason, prompt, code, message, key or letter is shown."""
    console = ConsoleOf()
    ids = console.do(lambda container: filled(container, text))
    visitor = console.visitor(Role.ADMIN)

    pages = {path: visitor.get(path).text for path in pages_of(ids)}

    for path, page in pages.items():
        assert "<script>alert" not in page, path
        assert "<img src=x" not in page, path
        assert "7 * 7" in page or ">49<" not in page, path
    seen = [path for path, page in pages.items() if "alert(1)" in page or "7 * 7" in page]
    assert len(seen) >= 9


def test_links_of_callers_are_shown_without_their_queries(
    console: ConsoleOf, ids: dict[str, UUID]
) -> None:
    """A signed link's query is a secret, and a page loads nothing from another host."""
    visitor = console.visitor(Role.ADMIN)
    for name in ("queued", "failed", "done"):
        page = visitor.get(f"/console/sessions/{ids[name]}").text

        assert "signature=" not in page
        assert "<img" not in page


def test_pictures_are_shown_on_demand_and_recorded(
    console: ConsoleOf, ids: dict[str, UUID]
) -> None:
    """Those of our storage; an input on another host is a link that says nothing about us."""
    visitor = console.visitor(Role.OPERATOR)
    path = f"/console/sessions/{ids['done']}"
    page = visitor.post(f"{path}/pictures", visitor.form_of(path)).text

    (source,) = re.findall(r'<img src="([^"]+)"', page)
    assert source.startswith(f"http://127.0.0.1:8000/files/stores/{STORE.id}/generated/")
    expires = int(parse_qs(urlsplit(unescape(source)).query)["expires"][0])
    assert expires <= console.do(now).timestamp() + 60
    assert 'rel="noreferrer noopener">open</a>' in page
    log = console.do(lambda container: container.audit_log().actions(subject=None, limit=1))
    assert (log[0].action, log[0].actor) == ("session.pictures", "console:a-operator")
    assert log[0].subject == f"session:{ids['done']}"


async def now(container: Container) -> datetime:
    return container.clock()()


def test_result_on_another_host_is_a_link() -> None:
    """An external consumer may have written any link; no page loads from it."""
    console = ConsoleOf()
    ids = console.do(filled)
    sessions: Any = console.container.sessions()
    link = "https://pictures.example/result.png?secret=1"
    sessions.overwrite(ids["queued"], status=SessionStatus.COMPLETED, generated_image_url=link)
    visitor = console.visitor(Role.OPERATOR)
    path = f"/console/sessions/{ids['queued']}"

    page = visitor.post(f"{path}/pictures", visitor.form_of(path)).text

    assert "<img" not in page
    assert f'href="{link}"' in page


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{failed}", "/console/sessions/{failed}"),
        (USER.id, f"/console/owners/b2c/{USER.id}"),
        (STORE.id, f"/console/owners/b2b/{STORE.id}"),
    ],
)
def test_single_hit_opens_its_page(
    console: ConsoleOf, ids: dict[str, UUID], text: str, place: str
) -> None:
    texts = {name: str(value) for name, value in ids.items()}
    visitor = console.visitor(Role.VIEWER)
    found = visitor.get(f"/console/find?q={text.format(**texts)}")

    assert (found.status_code, found.headers["location"]) == (303, place.format(**texts))


def test_key_that_is_searched_for_is_not_shown(console: ConsoleOf) -> None:
    visitor = console.visitor(Role.VIEWER)
    page = visitor.get("/console/find?q=wk_" + "5" * 64).text

    assert "wk_555555…" in page
    assert "5" * 20 not in page


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console/sessions?status=lost", 400),
        ("/console/sessions?owner=b2c:me", 400),
        ("/console/sessions?before=1", 400),
        ("/console/sessions?since=yesterday", 400),
        ("/console/pace?span=1y", 400),
        ("/console/costs?days=8", 400),
        ("/console/audit?before=-1", 400),
        ("/console/find?q=", 400),
        ("/console/sessions/01a21d5d-7105-77ec-bc3a-c7a5ba0bd059", 404),
        ("/console/owners/b2b/nothing", 404),
        ("/console/owners/b2x/nothing", 404),
        ("/console/queue/01a21d5d-7105-77ec-bc3a-c7a5ba0bd059", 404),
        ("/console/sessions/%00", 404),
        ("/console/nothing", 404),
    ],
)
def test_wrong_question_has_an_answer(console: ConsoleOf, path: str, status: int) -> None:
    """In words, with the headers of every page; also as JSON."""
    visitor = console.visitor(Role.VIEWER)
    page = visitor.get(path)
    program = visitor.ask(path)

    assert (page.status_code, program.status_code) == (status, status), page.text[-600:]
    assert "<h1>" in page.text
    assert "content-security-policy" in page.headers
    assert program.json()["error"]["code"] in {"VALIDATION_ERROR", "NOT_FOUND"}


def test_overview_renders_while_the_database_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the trouble. Operators, whose roles cannot be checked now, only read."""
    console = ConsoleOf()
    visitor = console.visitor(Role.ADMIN)
    repositories = console.container.repositories()

    async def down(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("db.example:5432 refused the connection")

    for adapter, method in (
        (repositories.operator_reads, "snapshot"),
        (repositories.operators, "get"),
        (repositories.api_keys, "all"),
    ):
        monkeypatch.setattr(adapter, method, down)

    overview, keys = visitor.get("/console"), visitor.get("/console/keys")
    program = visitor.ask("/console/keys")

    assert overview.status_code == 200
    assert "db.example:5432 refused the connection" in overview.text
    assert "reading only" in overview.text
    assert "/console/act/" not in overview.text
    assert (keys.status_code, program.status_code) == (503, 503)
    assert "db.example:5432 refused the connection" in keys.text
    assert "db.example" not in program.text


def test_pages_are_light(console: ConsoleOf, ids: dict[str, UUID]) -> None:
    """With all that a page loads, and uncompressed."""
    visitor = console.visitor(Role.ADMIN)
    files = static_files()
    for path in pages_of(ids):
        page = visitor.get(path).text
        names = set(re.findall(r"/console/static/([^?]+)\?v=", page))

        size = len(page.encode()) + sum(len(files[name].data) for name in names)
        assert size < MAX_PAGE_BYTES, (path, size)


def test_static_files_are_ours_or_unchanged(console: ConsoleOf) -> None:
    """The hash of each vendored file is the recorded one, and its licence is beside it."""
    recorded = tomllib.loads((STATIC / "vendor.toml").read_text())
    vendored = {path.name for path in (STATIC / "vendor").iterdir() if path.suffix != ".LICENSE"}

    assert vendored == set(recorded)
    for name, entry in recorded.items():
        data = (STATIC / "vendor" / name).read_bytes()
        assert sha256(data).hexdigest() == entry["sha256"]
        assert (STATIC / "vendor" / entry["licence_file"]).read_text()
    stranger = console.visitor()
    answer = stranger.get("/console/static/htmx.min.js")
    assert answer.headers["cache-control"].endswith("immutable")
    assert stranger.get("/console/static/vendor.toml").status_code == 404


def test_pages_load_nothing_from_elsewhere(console: ConsoleOf, ids: dict[str, UUID]) -> None:
    """No host in any source, no style or script within the page: the policy would block it."""
    visitor = console.visitor(Role.ADMIN)
    for path in pages_of(ids):
        page = visitor.get(path).text

        assert re.findall(r'(?:src|srcset|action)="(?!/console)', page) == []
        assert " style=" not in page
        assert re.findall(r"<script(?! src)", page) == []
        assert re.findall(r" on[a-z]+=", page) == []


def test_menu_marks_the_page(console: ConsoleOf, ids: dict[str, UUID]) -> None:
    """Exactly the section that the page belongs to."""
    visitor = console.visitor(Role.VIEWER)
    for path, label in MENU:
        marked = re.findall(r'aria-current="page">([^<]+)</a>', visitor.get(path).text)
        assert marked == [label]
    session = visitor.get(f"/console/sessions/{ids['done']}").text

    assert re.findall(r'aria-current="page">([^<]+)</a>', session) == ["Sessions"]
