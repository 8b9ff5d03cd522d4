"""The API as the page of another origin sees it, in a real browser."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks
from tests.support.chromium import PROGRAM, Browser, Page, chromium
from tests.system.deployment import Deployment

DOCUMENT = ROOT / "docs" / "browsers.md"

CALL = """
async function call(method, url, token, body, headers = {}) {
    if (token) headers["Authorization"] = `Bearer ${token}`;
    if (body) headers["Content-Type"] ??= "application/json";
    const answer = await fetch(url, {method, headers, body: body && JSON.stringify(body)});
    const text = await answer.text();
    return {
        status: answer.status, headers: Object.fromEntries(answer.headers),
        json: text ? JSON.parse(text) : null,
    };
}
"""
FINISHED = (
    CALL
    + """
const [url, token] = args;
for (;;) {
    const {json} = await call("GET", url, token);
    if (["completed", "failed"].includes(json.data.status)) return json.data;
    await new Promise(done => setTimeout(done, 50));
}
"""
)
UPLOAD = (
    CALL
    + """
const [api, token] = args;
const canvas = Object.assign(document.createElement("canvas"), {width: 400, height: 400});
const brush = canvas.getContext("2d");
brush.fillStyle = "rgb(10, 200, 30)";
brush.fillRect(0, 0, 400, 400);
const picture = await new Promise(done => canvas.toBlob(done, "image/png"));
const {json} = await call("POST", `${api}/api/v1/uploads`, token, {content_type: "image/png"});
const {upload_url, method, headers, image_url} = json.data;
const sent = await fetch(upload_url, {method, headers, body: picture});
return {status: sent.status, answer: await sent.json(), image_url};
"""
)
DRAW = """
const image = new Image();
image.crossOrigin = "anonymous";
image.src = args[0];
await image.decode();
const canvas = Object.assign(document.createElement("canvas"), {
    width: image.naturalWidth, height: image.naturalHeight,
});
const brush = canvas.getContext("2d");
brush.drawImage(image, 0, 0);
document.body.append(image);
const {data} = brush.getImageData(0, 0, canvas.width, canvas.height);
const near = (i, ...colour) => colour.every((part, n) => Math.abs(data[i + n] - part) < 8);
return {
    green: Array.from({length: data.length / 4}, (_, n) => near(4 * n, 10, 200, 30))
        .filter(Boolean).length,
    bytes: (await new Promise(done => canvas.toBlob(done, "image/jpeg"))).size,
};
"""


class _EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><link rel=icon href=data:,><title>A shop</title>")

    def log_message(self, *_: object) -> None:
        """It says nothing."""


@contextmanager
def shop() -> Iterator[int]:
    """The port of a web server with one page. ``localhost`` and ``127.0.0.1`` are two origins."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage)
    thread = Thread(target=partial(server.serve_forever, poll_interval=0.05))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if PROGRAM is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no chromium: apt-get install chromium")
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with shop() as port:
        yield port


@pytest.fixture(scope="module")
def api(browser: Browser, port: int, deployed: Deployment) -> Iterator[Deployment]:  # noqa: ARG001
    """Another API on the same servers, which users may use from ``localhost`` and from no other
    page, and a worker."""
    api = Deployment(deployed.folder)
    api.tokens = deployed.tokens
    api.valkey = deployed.valkey
    api.environ = deployed.environ | {
        "WEARON_ORIGINS": f"http://localhost:{port}",
        "WEARON_PORT": str(api.port),
        "WEARON_PUBLIC_URL": api.url,
    }
    with api.started():
        api.start("serve")
        api.start("worker")
        api.wait_until_ready()
        yield api


@pytest.fixture
def page(browser: Browser, port: int) -> Page:
    """Of the allowed origin."""
    return browser.open(f"http://localhost:{port}/")


@pytest.fixture
def wrong_page(browser: Browser, port: int) -> Page:
    return browser.open(f"http://127.0.0.1:{port}/")


def called(page: Page, method: str, url: str, *more: Any) -> Any:
    """What a script of the page sees of a response."""
    return page.run(CALL + "return await call(...args)", method, url, *more)


def error(answer: Any) -> tuple[int, str]:
    return answer["status"], answer["json"]["error"]["code"]


def test_page_submits_and_polls(api: Deployment, page: Page) -> None:
    """A script reads the headers that it needs. Repeating the request charges nothing."""
    token = api.tokens["b2c"]
    body = {"model_image_url": f"{api.url}/samples/model.png"}
    own = {"Idempotency-Key": "k-1", "X-Request-Id": "from-a-page"}

    first = called(page, "POST", f"{api.url}/api/v1/generations", token, body, own)
    again = called(page, "POST", f"{api.url}/api/v1/generations", token, body, own)
    session = page.run(FINISHED, api.url + first["headers"]["location"], token)

    assert (first["status"], again["status"]) == (202, 202)
    assert first["headers"]["x-request-id"] == "from-a-page"
    assert first["headers"]["location"] == first["json"]["data"]["status_url"]
    assert again["headers"]["idempotency-replayed"] == "true"
    assert session["status"] == "completed"
    assert page.console == []


def test_page_uploads_and_reads_pixels(api: Deployment, page: Page) -> None:
    """Its own picture goes in by a signed link, and the result comes out on a canvas that is not
    tainted."""
    token = api.tokens["b2c"]

    upload = page.run(UPLOAD, api.url, token)
    body = {"model_image_url": upload["image_url"]}
    submitted = called(page, "POST", f"{api.url}/api/v1/generations", token, body)
    session = page.run(FINISHED, api.url + submitted["json"]["data"]["status_url"], token)
    drawn = page.run(DRAW, session["generated_image_url"])

    assert (upload["status"], upload["answer"]["data"]["content_type"]) == (200, "image/png")
    assert session["status"] == "completed"
    assert drawn["green"] > 1_000
    assert drawn["bytes"] > 0
    assert page.console == []


def test_documented_code_runs(api: Deployment, page: Page) -> None:
    """That of docs/browsers.md, from an upload to a canvas."""
    code = "".join(block.text for block in blocks(DOCUMENT.read_text()) if block.language == "js")
    code = code.replace("https://api.example", api.url).replace("TOKEN", api.tokens["b2c"])

    size, problem = page.run(
        code
        + """
        const canvas = Object.assign(document.createElement("canvas"), {width: 400, height: 400});
        canvas.getContext("2d").fillRect(0, 0, 400, 400);
        const picture = await new Promise(done => canvas.toBlob(done, "image/png"));
        await draw(await tryOn({model_image_url: await upload(picture)}), canvas);
        const result = await new Promise(done => canvas.toBlob(done, "image/jpeg"));
        return [result.size, await call("GET", "/nowhere").catch(error => error.code)];
        """
    )

    assert size > 0
    assert problem == "NOT_FOUND"


def test_wrong_page_is_told_so(api: Deployment, wrong_page: Page) -> None:
    """Its script reads the code, and nothing was charged. A store's key is for no page that its
    store has not named."""
    url = f"{api.url}/api/v1/generations"
    body = {"model_image_url": f"{api.url}/samples/model.png"}
    before = api.balance(), api.balance("b2b")

    user = called(wrong_page, "POST", url, api.tokens["b2c"], body)
    store = called(wrong_page, "POST", url, api.tokens["b2b"], body)

    assert error(user) == error(store) == (403, "DOMAIN_MISMATCH")
    assert user["headers"]["x-request-id"].startswith("req_")
    assert (api.balance(), api.balance("b2b")) == before


def test_page_in_a_sandbox_is_told_so(api: Deployment, page: Page) -> None:
    """Its origin is ``null``, which no credential is for."""
    script = f"""
        {CALL}
        call("GET", "{api.url}/api/v1/credits", "{api.tokens["b2c"]}")
            .then(answer => parent.postMessage(answer, "*"));
    """
    answer = page.run(
        """
        const frame = document.createElement("iframe");
        frame.sandbox = "allow-scripts";
        frame.srcdoc = `<script>${args[0]}<${"/"}script>`;
        const told = new Promise(done => onmessage = event => done(event.data));
        document.body.append(frame);
        return await told;
        """,
        script,
    )

    assert error(answer) == (403, "DOMAIN_MISMATCH")


def test_page_reads_every_error(api: Deployment, page: Page) -> None:
    """No preflight fails, so a script always learns what is wrong, and when to try again."""
    token = api.tokens["b2c"]
    big = {"model_image_url": "x" * 70_000}

    answers = [
        called(page, "GET", f"{api.url}/api/v1/credits"),
        called(page, "GET", f"{api.url}/api/v1/credits", "wk_" + "0" * 32),
        called(page, "GET", f"{api.url}/api/v1/generations/no-such-id", token),
        called(page, "PATCH", f"{api.url}/nowhere", token, {}),
        called(page, "DELETE", f"{api.url}/api/v1/credits", token),
        called(page, "PUT", f"{api.url}/uploads/a.png", "", {}),
        called(page, "GET", f"{api.url}/files/a.png"),
        called(page, "POST", f"{api.url}/api/v1/generations", token, {"colour": "red"}),
        called(page, "POST", f"{api.url}/api/v1/generations", token, big),
        called(page, "GET", f"{api.url}/health/live", "", None, {"X-Request-Id": "a" * 70_000}),
    ]

    assert [error(answer) for answer in answers] == [
        (401, "INVALID_TOKEN"),
        (401, "INVALID_API_KEY"),
        (404, "NOT_FOUND"),
        (404, "NOT_FOUND"),
        (405, "METHOD_NOT_ALLOWED"),
        (404, "NOT_FOUND"),
        (404, "NOT_FOUND"),
        (400, "VALIDATION_ERROR"),
        (413, "PAYLOAD_TOO_LARGE"),
        (431, "VALIDATION_ERROR"),
    ]


def test_page_reads_when_to_try_again(api: Deployment, page: Page) -> None:
    """The ``Retry-After`` of a 503, while Redis is away."""
    token = api.tokens["b2c"]
    body = {"model_image_url": f"{api.url}/samples/model.png"}
    api.valkey.stop()
    try:
        answer = called(page, "POST", f"{api.url}/api/v1/generations", token, body)
    finally:
        api.valkey.start()

    assert error(answer) == (503, "SERVICE_UNAVAILABLE")
    assert int(answer["headers"]["retry-after"]) > 0


def test_api_documentation_can_call_the_api(api: Deployment, browser: Browser) -> None:
    """With its content security policy, and from its own origin, which is always allowed. Nothing
    is blocked and nothing is loaded from elsewhere: the console stays empty."""
    page = browser.open(f"{api.url}/schema#/Uploads/offer_upload")

    page.until("document.querySelector('.try-out__btn')")
    page.run(
        """
        document.querySelector(".btn.authorize").click();
        await new Promise(done => setTimeout(done, 100));
        const input = document.querySelector(".auth-container input");
        const {set} = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value");
        set.call(input, args[0]);
        input.dispatchEvent(new Event("input", {bubbles: true}));
        document.querySelector(".auth-btn-wrapper .authorize").click();
        document.querySelector(".auth-btn-wrapper .btn-done").click();
        document.querySelector(".try-out__btn").click();
        """,
        api.tokens["b2c"],
    )
    page.until("document.querySelector('.execute')")
    page.run("document.querySelector('.execute').click()")
    status = "document.querySelector('.live-responses-table tbody .response-col_status')"
    page.until(status)

    assert page.run(f"return {status}.innerText").split() == ["201"]
    assert [line for line in page.console if "deep link whitespace" not in line] == []


def test_nothing_of_the_api_is_shown_in_a_frame(api: Deployment, page: Page) -> None:
    """Neither its page, where someone could be made to click unseen, nor a response."""
    for path in ("/schema", "/health/live"):
        page.run(
            """
            const frame = document.createElement("iframe");
            frame.src = args[0];
            document.body.append(frame);
            """,
            api.url + path,
        )
        page.until_logged("frame-ancestors")
        page.console.clear()
