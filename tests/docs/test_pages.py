"""What the pages name exists, and they stay short enough to be read."""

import re
from pathlib import Path, PurePosixPath

import pytest

from config.reference import variables
from tests.docs.pages import ROOT, anchors, blocks, code_spans, links, pages, prose

README_LINES = 150
ARCHITECTURE_WORDS = 2_000
CODE = ("domain", "adapters", "config", "entrypoints")
FOLDERS = (*CODE, "tests", "docs")
TESTED = ("README.md", "docs/deployment.md")
"""Their commands are run by ``test_commands``."""

DRAIN = "WEARON_DRAIN_SECONDS"
HISTORY = "CHANGELOG.md"
"""It may name what is gone."""

_EVENT = re.compile(r"`([a-z]+(?:_[a-z]+)+)`")
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})(?:/[\w.]+)+/?")
_SETTING = re.compile(r"\b(?:WEARON_[A-Z0-9_]+|DATABASE_URL|REDIS_URL)\b")
_TARGET = re.compile(r"\bmake ([a-z][a-z-]*)\b")


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_files_and_headings(page: str) -> None:
    """Every relative link leads to a file of the repository, and to a heading if it names one."""
    broken = [target for target in links(pages()[page]) if not is_whole(page, target)]

    assert broken == []


def is_whole(page: str, target: str) -> bool:
    if target.startswith(("https://", "http://")):
        return True
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    if not file.exists():
        return False
    return not anchor or anchor in anchors(file.read_text("utf-8"))


def test_every_page_is_reachable_from_readme() -> None:
    """A reader who follows links from the README finds every page."""
    found, to_read = set[str](), ["README.md"]
    while to_read:
        page = to_read.pop()
        found.add(page)
        linked = {resolved(page, target) for target in links(pages()[page])}
        to_read += (linked & pages().keys()) - found - set(to_read)

    assert found == pages().keys()


def resolved(page: str, target: str) -> str:
    """The path of a link's file from the root of the repository."""
    path = (ROOT / page).parent / target.partition("#")[0]
    return str(PurePosixPath(path.resolve().relative_to(ROOT))) if path.exists() else target


@pytest.mark.parametrize("page", sorted(pages().keys() - {HISTORY}))
def test_named_files_exist(page: str) -> None:
    """A path in code type that begins with one of our folders is a file or a folder."""
    named = {span for span in code_spans(pages()[page]) if _PATH.fullmatch(span)}

    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", sorted(pages().keys() - {HISTORY}))
def test_named_settings_exist(page: str) -> None:
    """Every environment variable that a page names is a setting."""
    named = set(_SETTING.findall(pages()[page]))

    assert named - {"WEARON_"} <= {variable.name for variable in variables()}


@pytest.mark.parametrize("page", pages())
def test_named_make_targets_exist(page: str) -> None:
    """Every `make` command that a page names is in the Makefile."""
    text = pages()[page]
    code = "\n".join([*code_spans(text), *(block.text for block in blocks(text))])
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(_TARGET.findall(code)) <= targets


@pytest.mark.parametrize("page", sorted(pages().keys() - {HISTORY}))
def test_named_log_events_exist(page: str) -> None:
    """Every log event that a page tells to look for is logged by the code."""
    sentences = re.split(r"(?<=[.;|]) ", prose(pages()[page]))
    named = {
        event
        for sentence in sentences
        if re.search(r"\blogs\b|\blogged\b|\balert\b", sentence)
        for event in _EVENT.findall(sentence)
    }
    code = [path.read_text("utf-8") for part in CODE for path in (ROOT / part).rglob("*.py")]

    assert [event for event in named if not any(f'"{event}"' in text for text in code)] == []


def test_readme_is_short() -> None:
    """The README is an entry point; more belongs to docs/."""
    assert len(pages()["README.md"].splitlines()) <= README_LINES


def test_architecture_is_a_fifteen_minute_walk() -> None:
    """2,000 words leave time to open the files on the way."""
    assert len(pages()["ARCHITECTURE.md"].split()) <= ARCHITECTURE_WORDS


def test_decisions_are_numbered_and_listed() -> None:
    """The pages of docs/decisions are numbered without a gap, have the same three parts, and are
    listed under their own titles."""
    index = pages()["docs/decisions/README.md"]
    decisions = sorted(path for path in pages() if re.search(r"decisions/\d{4}-", path))

    for number, path in enumerate(decisions, 1):
        text = pages()[path]
        title = text.partition("\n")[0].removeprefix(f"# {number}. ")
        assert Path(path).name.startswith(f"{number:04}-")
        assert f"| {number} | [{title}]({Path(path).name}) |" in index
        assert re.findall(r"^\*\*(\w+)\.\*\*", prose(text), re.MULTILINE) == [
            "Context", "Decision", "Consequences"
        ]  # fmt: skip


@pytest.mark.parametrize("page", TESTED)
def test_every_block_is_accounted_for(page: str) -> None:
    """The two pages have commands to run and settings to load; a block of any other kind would be
    tested by nothing."""
    kinds = {block.language for block in blocks(pages()[page])}

    assert "console" in kinds
    assert kinds <= {"console", "ini"}


def test_commands_are_in_tested_pages_only() -> None:
    """A fenced command in any other page would not be run. Nor would a script: a test in a browser
    runs those of one page, and ``test_webhooks`` those of another."""
    kinds = {
        (page, block.language)
        for page, text in pages().items()
        if page not in TESTED
        for block in blocks(text)
    }

    assert {kind for _, kind in kinds} <= {"json", "sql", "mermaid", "text", "js", "python"}
    assert {page for page, kind in kinds if kind == "js"} == {
        "docs/browsers.md", "docs/webhooks.md"
    }  # fmt: skip


def test_unit_of_deployment_gives_time_to_drain() -> None:
    """The systemd unit starts a worker, with time to drain before it is killed."""
    (unit,) = (
        block.text for block in blocks(pages()["docs/deployment.md"]) if "[Service]" in block.text
    )
    drain_seconds = {setting.name: setting.default for setting in variables()}[DRAIN]

    assert "\nExecStart=/opt/wearon/.venv/bin/wearon worker\n" in unit
    stop_seconds = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop_seconds
    assert float(stop_seconds[1]) >= float(drain_seconds) + 10
