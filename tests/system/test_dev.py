"""The first commands that a new user runs: ``wearon demo`` and ``wearon dev``."""

import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from tests.support.processes import family, is_alive
from tests.support.provider import KEY, in_thread, provider_in_thread
from tests.support.replicate import TOKEN, FakeReplicate
from tests.support.started import Started
from tests.system.deployment import DEADLINE_SECONDS, eventually, free_port


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wearon-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_demo_ends_with_two_pictures(folder: Path) -> None:
    """One command without any setup: a try-on for each channel, two portraits, exit code 0."""
    demo = Started("demo", "--data-dir", str(folder / "demo"))
    output = demo.output_until(r"Done in")
    pictures = [Path(path) for path in re.findall(r"^  (/.+)$", output, re.MULTILINE)]

    assert demo.process.wait(DEADLINE_SECONDS) == 0
    assert demo.end() == 0
    assert output.count("   completed") == 2
    assert [path.parts[-3:-1] for path in pictures] == [
        ("generated", "0198c0de-0000-7000-8000-000000000001"),
        ("demo-store", "generated"),
    ]
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width * 4 == picture.height * 3


def test_demo_with_a_provider(folder: Path) -> None:
    """The provider makes both pictures, in one call each with all inputs. The usage is printed as
    stored, and the key is in no output and no log."""
    with provider_in_thread() as provider:
        demo = Started(
            *("demo", "--data-dir", str(folder / "demo")),
            *("--provider", "openai", "--base-url", f"{provider.url}/v1"),
            OPENAI_API_KEY=KEY,
        )
        output = demo.output_until(r"Done in|Error")
        code = demo.process.wait(DEADLINE_SECONDS)
        demo.end()
    pictures = [Path(path) for path in re.findall(r"^  (/.+)$", output, re.MULTILINE)]

    assert code == 0, output
    assert [len(call.uploads) for call in provider.calls] == [3, 4]
    assert output.count("used 1923 + 6240 tokens, about 0.215064 USD") == 2
    for path in pictures:
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("JPEG", (1024, 1536))
    assert len(pictures) == 2
    assert KEY not in output + (folder / "demo" / "demo.log").read_text()


def test_demo_with_a_provider_of_jobs(folder: Path) -> None:
    """The provider makes both pictures, in one job each with all inputs. The token is in no output
    and no log."""
    fake = FakeReplicate()
    fake.seconds = 0.3
    with in_thread(fake):
        demo = Started(
            *("demo", "--data-dir", str(folder / "demo")),
            *("--provider", "replicate", "--base-url", fake.url),
            REPLICATE_API_TOKEN=TOKEN,
        )
        output = demo.output_until(r"Done in|Error")
        code = demo.process.wait(DEADLINE_SECONDS)
        demo.end()
    pictures = [Path(path) for path in re.findall(r"^  (/.+)$", output, re.MULTILINE)]

    assert code == 0, output
    assert [len(job.pictures) for job in fake.jobs.values()] == [3, 4]
    assert fake.count("begin") == len(pictures) == 2
    for path in pictures:
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("PNG", (768, 1024))
    assert TOKEN not in output + (folder / "demo" / "demo.log").read_text()


def test_dev_keeps_its_data_and_leaves_no_process(folder: Path) -> None:
    """A second start of ``wearon dev`` has the balance of the first and accepts its token. Stopped
    by a signal, it exits with 0; ``kill -9`` of it alone also ends its servers, API, worker and
    console, to which its banner has a link."""
    arguments = ("dev", "--port", str(free_port()), "--data-dir", str(folder / "dev"))
    first = Started(*arguments)
    banner = first.output_until(r"Ctrl-C stops")
    submit = _submit(banner)
    (console,) = re.findall(r"http://[\d.]+:\d+/console/developer/[0-9a-f]{64}", banner)
    eventually(lambda: _says(console, "Signed in"))
    first_code = first.end()
    second = Started(*arguments)
    account = _credits(second.output_until(r"Ctrl-C stops"))
    processes = family(second.process.pid)

    second.process.kill()
    second.process.wait(DEADLINE_SECONDS)
    eventually(lambda: not any(is_alive(pid) for pid in processes))
    second.end()

    assert submit["data"]["credits_remaining"] == 99
    assert account["data"]["balance"] == 99
    assert first_code == 0
    assert len(processes) >= 6


def test_dev_in_memory(folder: Path) -> None:
    """``--in-memory`` completes a try-on without any server, and says that its data is lost."""
    dev = Started("dev", "--in-memory", "--port", str(free_port()))
    banner = dev.output_until(r"Ctrl-C stops")
    submitted = _submit(banner)["data"]
    headers = {"Authorization": f"Bearer {_token(banner)}"}
    url = _url(banner) + submitted["status_url"]

    def completed() -> bool:
        with urlopen(Request(url, headers=headers)) as response:
            return bool(json.load(response)["data"]["status"] == "completed")

    assert eventually(completed)
    assert "lost when it stops" in banner
    assert dev.end() == 0
    assert list(folder.iterdir()) == []


def _says(url: str, text: str) -> bool:
    try:
        with urlopen(url) as response:
            return text in response.read().decode()
    except OSError:
        return False


def _url(banner: str) -> str:
    return str(re.findall(r"http://127\.0\.0\.1:\d+", banner)[0])


def _token(banner: str) -> str:
    return str(re.findall(r"Bearer ([^']+)'", banner)[0])


def _submit(banner: str) -> dict[str, Any]:
    """Send the request of the banner's first curl command."""
    command = shlex.split(re.findall(r"  curl -s .*?\n.*?\n.*?\n", banner)[0])
    headers = [word for word, before in zip(command[1:], command, strict=False) if before == "-H"]
    body = command[command.index("-d") + 1].encode()
    request = Request(command[2], body, dict(header.split(": ") for header in headers))
    with urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _credits(banner: str) -> dict[str, Any]:
    request = Request(
        f"{_url(banner)}/api/v1/credits", headers={"Authorization": f"Bearer {_token(banner)}"}
    )
    with urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
