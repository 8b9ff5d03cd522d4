"""Debian's chromium, driven by its DevTools protocol over a pipe: no driver, no port, and it ends
with this process. Each message is JSON and ends with NUL.
(https://chromedevtools.github.io/devtools-protocol)"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium")
SECONDS = 20.0
"""How long anything in the browser may take."""

_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


class Browser:
    """``send`` calls one method of the protocol. Events of pages arrive meanwhile."""

    def __init__(self, commands: int, replies: int) -> None:
        self._to_browser = commands
        self._from_browser = replies
        self._received = b""
        self._last_id = 0
        self._replies: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}

    def open(self, url: str) -> "Page":
        """A new page at ``url``, loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        page.go_to(url)
        return page

    def send(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        number = self._last_id
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self._replies)
        reply = self._replies.pop(number)
        assert "error" not in reply, f"{method}: {reply['error']}"
        result: dict[str, Any] = reply["result"]
        return result

    def wait(self, done: Callable[[], bool]) -> None:
        """Read until ``done``."""
        deadline = time.monotonic() + SECONDS
        while not done():
            message = self._next(deadline)
            if "id" in message:
                self._replies[message["id"]] = message
            elif page := self._pages.get(message.get("sessionId", "")):
                page.note(message["method"], message["params"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._from_browser], [], [], left)[0]
            assert ready, "the browser does not answer"
            piece = os.read(self._from_browser, 1 << 20)
            assert piece, "the browser has ended"
            self._received += piece
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Page:
    """``console`` has what a person would see in the browser's console: messages and errors."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self._is_loaded = False
        self.console: list[str] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.send(method, session=self._session, **parameters)

    def go_to(self, url: str) -> None:
        self._is_loaded = False
        self.send("Page.navigate", url=url)
        self._browser.wait(lambda: self._is_loaded)

    def run(self, script: str, *arguments: object) -> Any:
        """The result of an asynchronous function's body. The arguments are in ``args``."""
        expression = f"(async (...args) => {{ {script} }})(...{json.dumps(arguments)})"
        answer = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        problem = answer.get("exceptionDetails", {})
        assert not problem, (problem["exception"].get("description"), self.console)
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < deadline, f"never: {condition}"
            time.sleep(0.02)

    def until_logged(self, text: str) -> None:
        """Wait until a line of the console contains ``text``."""
        self._browser.wait(lambda: any(text in line for line in self.console))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def note(self, event: str, details: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._is_loaded = True
            case "Log.entryAdded":
                self.console.append(f"{details['entry']['level']}: {details['entry']['text']}")
            case "Runtime.consoleAPICalled":
                words = (str(word.get("value", "")) for word in details["args"])
                self.console.append(f"{details['type']}: {' '.join(words)}")
            case "Runtime.exceptionThrown":
                thrown = details["exceptionDetails"]
                self.console.append(f"error: {thrown.get('exception', thrown)}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window and without a profile."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        commands_in, commands = os.pipe()
        replies, replies_out = os.pipe()
        options = [*_OPTIONS, f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")
        # It reads from descriptor 3 and writes to 4.
        redirected = f'exec "$@" 3<&{commands_in} 4>&{replies_out}'
        process = subprocess.Popen(
            ["/bin/bash", "-c", redirected, "bash", PROGRAM, *options],
            pass_fds=(commands_in, replies_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_in)
        os.close(replies_out)
        try:
            yield Browser(commands, replies)
        finally:
            os.close(commands)  # It ends by itself.
            os.close(replies)
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
