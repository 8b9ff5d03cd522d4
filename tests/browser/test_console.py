"""The console in a real browser, on a running service."""

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.browser.conftest import WAIT_MS, Pages
from tests.browser.consoles import PASSWORD, UNREACHABLE, VIEWER, Consoles, running_consoles
from tests.browser.driver import require_driver
from tests.system.deployment import STORE_ID

require_driver()

from playwright.sync_api import (  # noqa: E402 - missing where the tests are skipped
    Locator,
    Page,
    expect,
)

PHONE = {"viewport": {"width": 375, "height": 812}}
WITHOUT_SCRIPTS = {"java_script_enabled": False}
OWNER = f"b2b:{STORE_ID}"
OWNER_PATH = f"/console/owners/b2b/{STORE_ID}"
GRANT_PATH = f"/console/act/grant?owner={OWNER}"
PATHS = (
    "/console",
    "/console/sessions",
    "/console/owners",
    OWNER_PATH,
    "/console/queue",
    "/console/workers",
    "/console/costs",
    "/console/keys",
    "/console/audit",
    "/console/find?q=no-such-thing",
    GRANT_PATH,
    "/console/act/pause",
)
NO_REDIS = "No answer from Redis at"
MAX_PAGE_BYTES = 150_000

SCROLLS = "document.documentElement.scrollWidth > window.innerWidth"
UNLABELLED = """[...document.querySelectorAll("input:not([type=hidden]), select, textarea")]
    .filter((at) => at.labels.length === 0 && !at.ariaLabel).map((at) => at.outerHTML)"""
UNNAMED = """[...document.querySelectorAll("a, button, img")]
    .filter((at) => !(at.ariaLabel || at.textContent.trim() || at.alt)).map((at) => at.outerHTML)"""

WEIGHT = """Object.values(Object.fromEntries(
    ["navigation", "resource"].flatMap((type) => performance.getEntriesByType(type))
    .map((entry) => [entry.name, entry.decodedBodySize]))).reduce((sum, size) => sum + size)"""
"""Of what the open page loaded, each address once."""


@pytest.fixture(scope="module")
def consoles() -> Iterator[Consoles]:
    """One deployment for all tests of this file. A test leaves it as it works: the worker runs, and
    all servers answer."""
    with running_consoles() as running:
        yield running


def signed_in(pages: Pages, consoles: Consoles, **options: Any) -> Page:
    """The overview, opened by a developer's link."""
    page = pages.open(consoles.link(), **options)
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    return page


def go(page: Page, path: str) -> None:
    """Open a page of the same console."""
    root = page.url.partition("/console")[0]
    page.goto(root + path)


def row(page: Page, *texts: str) -> Locator:
    """The table's row that has all of the texts."""
    found = page.get_by_role("row")
    for text in texts:
        found = found.filter(has_text=text)
    return found


def balance_of(page: Page) -> int:
    """The store's, as its page shows."""
    go(page, OWNER_PATH)
    return int(tile(page, "Balance").inner_text().replace(",", ""))


def tile(page: Page, name: str) -> Locator:
    return page.get_by_role("term").filter(has_text=name).locator("xpath=following-sibling::dd")


def fill_grant(page: Page, amount: int, reason: str) -> Locator:
    """The filled form's button."""
    page.get_by_label("Credits").fill(str(amount))
    page.get_by_label("Reason").fill(reason)
    return page.get_by_role("button", name="Grant")


def grant_form(page: Page, reason: str) -> dict[str, str | float | bool]:
    """What the form would send for 5 credits, with the token of the page's own forms."""
    token = page.locator("input[name=token]").first.input_value()
    given: dict[str, str | float | bool] = {"owner": OWNER, "amount": "5", "reason": reason}
    return {"token": token, "action_id": str(uuid4()), **given}


def test_provider_trouble_is_told_on_one_page(pages: Pages, consoles: Consoles) -> None:
    """A session whose attempts all failed: the cause of each, the ledger's two entries, and that
    its owner paid nothing."""
    page = signed_in(pages, consoles)
    session = consoles.ended(UNREACHABLE)

    go(page, f"/console/sessions/{session['session_id']}")

    story = page.get_by_role("listitem")
    for attempt in (1, 2):
        told = story.filter(has_text=f"attempt {attempt} failed at")
        expect(told).to_contain_text("input connection refused host=127.0.0.1")
    expect(story.last).to_contain_text("failed as IMAGE_UNREACHABLE, credit refunded")
    expect(row(page, "debit")).to_contain_text("\N{MINUS SIGN}1")
    expect(row(page, "refund")).to_contain_text("+1")
    expect(page.get_by_text("The customer was not charged.")).to_be_visible()
    expect(page.get_by_text("Net 0.")).to_be_visible()


def test_attempts_before_a_success_are_told(pages: Pages, consoles: Consoles) -> None:
    """Two attempts met a busy provider, and the third one's picture was paid."""
    page = signed_in(pages, consoles)

    go(page, f"/console/sessions/{consoles.ended('busy')['session_id']}")

    story = page.get_by_role("listitem")
    for attempt in (1, 2):
        expect(story.filter(has_text=f"attempt {attempt} failed at")).to_contain_text("provider")
    expect(story.last).to_contain_text("completed")
    expect(page.get_by_text("The customer was charged 1 credit(s).")).to_be_visible()


def test_search_opens_a_single_hit(pages: Pages, consoles: Consoles) -> None:
    """By request id, session and key. The key is not left in the address."""
    page = signed_in(pages, consoles)
    session = consoles.ended("moderated")
    of_session = f"{consoles.url}/console/sessions/{session['session_id']}"
    key = consoles.deployment.tokens["b2b"]
    opened = {
        session["request_id"]: of_session,
        session["session_id"]: of_session,
        key: consoles.url + OWNER_PATH,
    }

    for text, url in opened.items():
        go(page, "/console")
        page.get_by_role("searchbox").fill(text)
        page.get_by_role("searchbox").press("Enter")
        expect(page).to_have_url(url)


def test_grant_is_done_once(pages: Pages, consoles: Consoles) -> None:
    """Its button was pressed twice, and its answer was loaded again. Balance, ledger and audit log
    have one grant, with the reason."""
    page = signed_in(pages, consoles)
    before = balance_of(page)
    reason = f"ticket {uuid4().hex}"

    page.get_by_role("link", name="Grant…").click()
    fill_grant(page, 7, reason).dblclick()
    expect(page.get_by_role("heading", name="Granted")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Granted")).to_be_visible()
    page.get_by_role("link", name=f"Open {STORE_ID}").click()

    expect(tile(page, "Balance")).to_have_text(f"{before + 7:,}")
    expect(row(page, "grant", reason).filter(has_text="+7")).to_have_count(1)
    go(page, "/console/audit")
    expect(row(page, reason)).to_have_count(1)
    expect(row(page, reason)).to_contain_text("credits.grant")
    expect(row(page, reason)).to_contain_text(OWNER)


def test_viewer_changes_nothing(pages: Pages, consoles: Consoles) -> None:
    """She chooses her password by her link. All that a page offers her is to verify the books, and
    an action that is sent all the same is refused."""
    pages.expect_complaint("403 (Forbidden)")
    page = pages.open(consoles.viewer_link)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Set it and sign in").click()
    expect(page.get_by_text(VIEWER)).to_be_visible()
    before = balance_of(page)

    for path in (*PATHS[:9], f"/console/sessions/{consoles.ended('moderated')['session_id']}"):
        go(page, path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.locator("main a[href*='/act/']")).to_have_count(int(path == "/console"))
        expect(page.locator("main form[method=post]")).to_have_count(0)
    refused = page.request.post(
        f"{consoles.url}/console/act/grant", form=grant_form(page, "as a viewer")
    )
    go(page, GRANT_PATH)

    expect(page.get_by_text("yours is viewer")).to_be_visible()
    assert refused.status == 403
    assert balance_of(page) == before


def test_read_only_console_changes_nothing(pages: Pages, consoles: Consoles) -> None:
    """Not even for an administrator."""
    page = pages.open(consoles.link(consoles.read_only_url))
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    before = balance_of(page)

    expect(page.locator("main a[href*='/act/']")).to_have_count(0)
    refused = page.request.post(
        f"{consoles.read_only_url}/console/act/grant", form=grant_form(page, "read only")
    )

    assert refused.status == 403
    assert "read-only" in refused.text()
    assert balance_of(page) == before


def test_stopped_redis_is_named(pages: Pages, consoles: Consoles) -> None:
    """The pages are shown all the same, and the open overview says by itself when Redis is back."""
    page = signed_in(pages, consoles)
    alarm = page.get_by_role("list", name="What is wrong").get_by_text(NO_REDIS)
    consoles.deployment.valkey.stop()
    try:
        go(page, "/console/queue")
        expect(page.get_by_text(NO_REDIS).first).to_be_visible()
        go(page, "/console")
        expect(alarm).to_be_visible()
        expect(tile(page, "Waiting")).to_have_text("0")
    finally:
        consoles.deployment.valkey.start()

    expect(alarm).to_have_count(0)


def test_filters_are_kept_in_the_address(pages: Pages, consoles: Consoles) -> None:
    """A reload shows the same sessions, and a tab keeps the other filters."""
    failed, completed = consoles.ended("moderated"), consoles.ended("busy")
    page = signed_in(pages, consoles)
    go(page, "/console/sessions")

    page.get_by_label("Owner", exact=True).fill(OWNER)
    page.get_by_label("Code").select_option("MODERATION_BLOCKED")
    page.get_by_label("Since").select_option("24h")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="Failed").click()
    expect(page).to_have_url(re.compile("status=failed"))
    page.reload()

    expect(page.get_by_label("Owner", exact=True)).to_have_value(OWNER)
    expect(page.get_by_label("Code")).to_have_value("MODERATION_BLOCKED")
    expect(page.get_by_label("Since")).to_have_value("24h")
    expect(page.get_by_role("link", name="Failed")).to_have_attribute("aria-current", "true")
    expect(page.get_by_title(failed["session_id"])).to_have_count(1)
    expect(page.get_by_title(completed["session_id"])).to_have_count(0)


@pytest.mark.parametrize("way", ["/", "Tab"])
def test_keyboard_is_enough_to_find(pages: Pages, consoles: Consoles, way: str) -> None:
    """A slash or the tab key leads to the search, and Enter opens what was found."""
    page = signed_in(pages, consoles)
    session_id = consoles.ended("moderated")["session_id"]
    search = page.get_by_role("searchbox")

    presses = 0
    while not search.evaluate("at => at === document.activeElement"):
        page.keyboard.press(way)
        presses += 1
        assert presses < 10
    outline = search.evaluate("at => getComputedStyle(at).outlineStyle")
    page.keyboard.type(session_id)
    page.keyboard.press("Enter")

    expect(page).to_have_url(re.compile(f"/console/sessions/{session_id}$"))
    assert outline == "solid"


def test_scripts_are_not_needed(pages: Pages, consoles: Consoles) -> None:
    """Overview, list, session, and a grant that is about the session."""
    session_id = consoles.ended("moderated")["session_id"]
    page = signed_in(pages, consoles, **WITHOUT_SCRIPTS)
    before = balance_of(page)

    page.get_by_role("link", name="Sessions", exact=True).click()
    page.get_by_title(session_id).click()
    expect(page.get_by_role("heading", name="What happened")).to_be_visible()
    page.get_by_role("link", name="Grant…").click()
    fill_grant(page, 3, f"without scripts {session_id}").click()
    expect(page.get_by_role("heading", name="Granted")).to_be_visible()

    assert balance_of(page) == before + 3


def test_phone_needs_no_horizontal_scrolling(pages: Pages, consoles: Consoles) -> None:
    page = signed_in(pages, consoles, **PHONE)

    scrolling = [path for path in paths(consoles) if shown(page, path).evaluate(SCROLLS)]

    assert scrolling == []


def test_pages_have_names_and_one_heading(pages: Pages, consoles: Consoles) -> None:
    """Every field has a label, every link, button and picture a name, every page one first
    heading and a title of its own."""
    page = signed_in(pages, consoles)
    found, titles = {}, set()

    for path in paths(consoles):
        shown(page, path)
        titles.add(page.title())
        found[path] = page.evaluate(UNLABELLED) + page.evaluate(UNNAMED)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)

    assert {path: faults for path, faults in found.items() if faults} == {}
    assert len(titles) == len(found)


def test_pages_are_light(pages: Pages, consoles: Consoles) -> None:
    """Each with all that a first visitor loads, uncompressed."""
    weights = {
        path: weight_of(signed_in(pages, consoles), path)
        for path in ("/console", "/console/costs", "/console/sessions")
    }

    assert all(30_000 < weight < MAX_PAGE_BYTES for weight in weights.values()), weights


def weight_of(page: Page, path: str) -> int:
    shown(page, path).wait_for_load_state("networkidle")
    weight: int = page.evaluate(WEIGHT)
    return weight


def paths(consoles: Consoles) -> tuple[str, ...]:
    return (*PATHS, f"/console/sessions/{consoles.ended('gone')['session_id']}")


def shown(page: Page, path: str) -> Page:
    go(page, path)
    expect(page.get_by_role("heading", level=1).first).to_be_visible()
    return page


@pytest.mark.patient
def test_killed_worker_is_missed(pages: Pages, consoles: Consoles) -> None:
    """The open overview says that no worker has reported for half a minute, and says it no more
    after the next one's start."""
    page = signed_in(pages, consoles)
    alarm = page.get_by_role("list", name="What is wrong").get_by_text("No worker")
    expect(alarm).to_have_count(0)

    consoles.kill_worker()
    try:
        expect(alarm).to_be_visible(timeout=WAIT_MS)
    finally:
        consoles.start_worker()

    expect(alarm).to_have_count(0)
