"""The playground in a real browser, on a running service."""

import json
import os
import re
import subprocess
import sys
from typing import Any

from tests.browser.conftest import WAIT_MS, Pages
from tests.browser.driver import require_driver
from tests.clients.dev import Dev
from tests.docs.pages import ROOT
from tests.support.images import encoded

require_driver()

from playwright.sync_api import Page, expect  # noqa: E402 - missing where the tests are skipped

PHONE = {"viewport": {"width": 375, "height": 812}}
FAILING_CARDS = {
    "moderated": "MODERATION_BLOCKED",
    "broken": "INVALID_IMAGE",
    "gone": "IMAGE_UNREACHABLE",
}
NARROW = "document.documentElement.scrollWidth <= window.innerWidth"


def choose(page: Page, kind: Any, name: str) -> None:
    page.get_by_role(kind, name=name).check()


def expect_picture(page: Page) -> None:
    """One that the browser could decode, in the local generator's size."""
    picture = page.get_by_alt_text("The generated picture")
    expect(picture).to_be_visible()
    expect(picture).to_have_js_property("naturalWidth", 768)
    expect(page.locator("#status")).to_have_text("completed")


def shown_code(page: Page, tab: str) -> str:
    choose(page, "radio", tab)
    code: str = page.locator("#text").inner_text()
    return code


def a_png(color: tuple[int, int, int]) -> bytes:
    return encoded("PNG", size=(300, 400), color=color)


def transfer(page: Page, name: str, data: bytes) -> Any:
    """What a browser hands over with a dropped or pasted file."""
    return page.evaluate_handle(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            return transfer;
        }""",
        [name, list(data)],
    )


def test_one_click_makes_a_picture(pages: Pages, dev: Dev) -> None:
    """The link of `wearon dev` has the token, which leaves the address at once and is stored
    nowhere. The page shows what was charged, who was called, and how it learnt of the end."""
    page = pages.open(dev.playground)
    expect(page).to_have_url(f"{dev.url}/playground")
    expect(page.get_by_text("The picture appears here.")).to_be_visible()

    page.get_by_role("button", name="Run").click()
    expect_picture(page)

    before, after = (int(text) for text in page.locator("#credits").inner_text().split(" → "))
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert before - after == 1
    expect(page.locator("#balance")).to_have_text(f"Credits {after}")
    expect(page.locator("#session")).to_have_text(re.compile("^[0-9a-f-]{36}$"))
    expect(page.locator("#request")).to_have_text(re.compile("^req_"))
    expect(page.locator("#transport")).to_have_text("events (a stream)")
    expect(page.locator("#states li").last).to_have_text(re.compile("completed"))
    assert stored == [0, 0, ""]


def test_picture_is_downloaded_and_made_again(pages: Pages, dev: Dev) -> None:
    """Again is a new request: another session and another credit."""
    page = pages.open(dev.playground)
    page.get_by_role("button", name="Run").click()
    expect_picture(page)
    first = page.locator("#session").inner_text()

    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    page.get_by_role("button", name="Again").click()
    expect(page.locator("#session")).not_to_have_text(re.compile(f"{first}|^-$"))
    expect_picture(page)

    assert download.value.path().read_bytes().startswith(b"\xff\xd8")


def test_own_pictures_are_uploaded(pages: Pages, dev: Dev) -> None:
    """One that was chosen, one that was dropped, and one that was pasted."""
    page = pages.open(dev.playground)
    page.get_by_label("outfit: choose a picture of yours").set_input_files(
        {"name": "coat.png", "mimeType": "image/png", "buffer": a_png((30, 160, 30))}
    )
    expect(page.get_by_role("radio", name="coat")).to_be_checked()
    scarf = transfer(page, "scarf.png", a_png((200, 40, 200)))
    page.locator("#accessories").dispatch_event("drop", {"dataTransfer": scarf})
    expect(page.get_by_role("checkbox", name="scarf")).to_be_checked()
    me = transfer(page, "me.png", a_png((220, 30, 30)))
    page.evaluate(
        """clipboardData => document.body.dispatchEvent(
            new ClipboardEvent("paste", {clipboardData, bubbles: true})
        )""",
        me,
    )
    expect(page.get_by_role("radio", name="me")).to_be_checked()

    sent = json.loads(shown_code(page, "Request").partition("\n\n")[2])
    page.get_by_role("button", name="Run").click()
    expect_picture(page)

    own = f"{dev.url}/files/uploads/"
    links = [sent["model_image_url"], sent["outfit_image_url"], sent["accessories"][0]["url"]]
    assert all(link.startswith(own) for link in links)
    assert len(set(links)) == 3
    assert [accessory["type"] for accessory in sent["accessories"]] == ["scarf"]


def test_file_that_is_no_picture_is_not_sent(pages: Pages, dev: Dev) -> None:
    page = pages.open(dev.playground)

    page.get_by_label("outfit: choose a picture of yours").set_input_files(
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    )

    expect(page.locator("#upload")).to_have_text("A picture is a JPEG, PNG or WebP file.")


def test_each_test_card_does_what_it_says(pages: Pages, dev: Dev) -> None:
    """All at once, because they take their time. The slow one leaves enough to cancel it."""
    opened = {card: pages.open(dev.playground) for card in ("busy", *FAILING_CARDS, "slow")}
    for card, page in opened.items():
        choose(page, "radio", f"{card}:")
        page.get_by_role("button", name="Run").click()
    opened["slow"].get_by_role("button", name="Cancel").click()

    for card, code in {**FAILING_CARDS, "slow": "CANCELLED"}.items():
        error = opened[card].get_by_role("alert")
        expect(error).to_contain_text(code)
        expect(error).to_contain_text("credit refunded")
        expect(opened[card].locator("#credits")).to_have_text(re.compile(r"^\d+ → \d+ → \d+$"))
    expect_picture(opened["busy"])
    expect(opened["busy"].locator("#states")).to_contain_text("attempt 3")


def test_keyboard_is_enough(pages: Pages, dev: Dev) -> None:
    """Each stop of the tab key shows its focus; arrows and the space bar choose, Ctrl-Enter runs
    from anywhere."""
    page = pages.open(dev.playground)
    expect(page.locator("#balance")).to_have_text(re.compile(r"Credits \d+"))
    stops: list[str] = []
    while "run" not in stops:
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => {
                const at = document.activeElement;
                const shown = at.closest(".choice") ?? at;
                return [at.id || at.ariaLabel || at.value || at.textContent,
                        getComputedStyle(shown).outlineStyle];
            }"""
        )
        assert outline == "solid", name
        stops.append(name)
        assert len(stops) < 40, stops
        if name == f"{dev.url}/samples/outfit.png":
            page.keyboard.press("ArrowRight")
        if name == f"{dev.url}/samples/bag.png":
            page.keyboard.press("Space")

    request = json.loads(shown_code(page, "Request").partition("\n\n")[2])
    page.keyboard.press("Control+Enter")
    expect_picture(page)

    assert request == {
        "model_image_url": f"{dev.url}/samples/model.png",
        "outfit_image_url": f"{dev.url}/samples/suit.png",
        "accessories": [{"type": "bag", "url": f"{dev.url}/samples/bag.png"}],
    }


def test_phone_needs_no_horizontal_scrolling(pages: Pages, dev: Dev) -> None:
    """Neither empty, nor with a picture, nor with any code."""
    page = pages.open(dev.playground, **PHONE)
    fits = [page.evaluate(NARROW)]

    page.get_by_role("button", name="Run").click()
    expect_picture(page)
    for tab in ("curl", "Python", "TypeScript", "Request", "Response"):
        assert shown_code(page, tab)
        fits.append(page.evaluate(NARROW))

    assert fits == [True] * 6


def test_shown_call_is_the_one_that_is_sent(pages: Pages, dev: Dev) -> None:
    """And that of each language: those for curl and Python run as they are."""
    page = pages.open(dev.playground)
    choose(page, "radio", "Suit")
    choose(page, "checkbox", "Hat")
    head, _, body = shown_code(page, "Request").partition("\n\n")
    assert json.loads(body)["outfit_image_url"].endswith("/suit.png")
    assert body.replace("\n", "") in shown_code(page, "TypeScript").replace("\n", "")

    with page.expect_request("**/api/v1/generations") as sent:
        page.get_by_role("button", name="Run").click()
    expect_picture(page)
    response = shown_code(page, "Response")
    printed = {
        "curl": run(dev, ["bash", "-c", shown_code(page, "curl")]),
        "Python": run(dev, [sys.executable, "-c", shown_code(page, "Python")]),
    }

    assert sent.value.post_data_json == json.loads(body)
    assert f"Idempotency-Key: {sent.value.headers['idempotency-key']}" in head
    assert json.loads(response)["status"] == "completed"
    assert json.loads(printed["curl"])["data"]["status"] == "completed"
    assert printed["Python"].startswith(f"{dev.url}/files/")
    assert dev.user_token not in page.locator("main").inner_text()


def run(dev: Dev, command: list[str]) -> str:
    environ = {
        **os.environ,
        "WEARON_TOKEN": dev.user_token,
        "PYTHONPATH": str(ROOT / "clients" / "python" / "src"),
    }
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True, timeout=WAIT_MS / 1000
    ).stdout


def test_without_a_token_nothing_is_sent(pages: Pages, dev: Dev) -> None:
    """A wrong one is named, with what to do."""
    pages.expect_complaint("401 (Unauthorized)")
    page = pages.open(f"{dev.url}/playground")
    expect(page.get_by_role("button", name="Run")).to_be_disabled()
    expect(page.get_by_text("Paste a token to begin.")).to_be_visible()

    page.get_by_label("Token", exact=True).fill("not-a-token")
    page.get_by_label("Token", exact=True).press("Tab")

    expect(page.get_by_role("alert")).to_contain_text("INVALID_TOKEN")
    expect(page.get_by_role("alert")).to_contain_text("wearon dev prints a link")
    expect(page.get_by_role("alert")).to_contain_text("nothing was charged")


def test_polling_replaces_a_stream(pages: Pages, dev: Dev) -> None:
    """A proxy may not let streams through."""
    pages.expect_complaint("502 (Bad Gateway)")
    page = pages.open(dev.playground)
    page.route("**/events", lambda route: route.fulfill(status=502))

    page.get_by_role("button", name="Run").click()
    expect_picture(page)

    expect(page.locator("#transport")).to_have_text(re.compile(r"^polling, every \d\.\d s$"))


def test_refusal_counts_down(pages: Pages, dev: Dev) -> None:
    """Until then the button is out of use; then the next request is sent."""
    pages.expect_complaint("status of 429")
    page = pages.open(dev.playground)
    error = {"code": "TOO_MANY_ACTIVE", "message": "Too many sessions are unfinished"}
    page.route(
        "**/api/v1/generations",
        lambda route: route.fulfill(
            status=429, headers={"Retry-After": "2"}, json={"data": None, "error": error}
        ),
        times=1,
    )

    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text(re.compile("try again in [12] s"))
    expect(page.get_by_role("button", name="Run")).to_be_disabled()
    expect(page.get_by_role("alert")).not_to_contain_text("try again in")
    page.get_by_role("button", name="Run").click()

    expect_picture(page)


def test_page_without_scripts_says_so(pages: Pages, dev: Dev) -> None:
    page = pages.open(f"{dev.url}/playground", java_script_enabled=False)

    expect(page.locator(".notice")).to_contain_text("This page needs JavaScript.")
    expect(page.get_by_role("main")).to_be_hidden()


def test_root_leads_to_the_playground(pages: Pages, dev: Dev) -> None:
    page = pages.open(dev.url)

    expect(page).to_have_url(f"{dev.url}/playground")
