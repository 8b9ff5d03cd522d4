"""The clients' parts: event streams, Retry-After, types and packages."""

import json
import random
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clients.drivers import PYTHON, TYPESCRIPT, NodeDriver
from tests.docs.pages import ROOT
from tests.support.http import Api
from wearon_client import models
from wearon_client.retries import Retries, retry_after_seconds
from wearon_client.sse import Event, EventParser

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
VALUES = st.text("ab: \u2028é👗\x85\x0b", max_size=6)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["generation", ""]), VALUES, st.none() | st.integers(0, 99))
)


@settings(max_examples=50)
@given(EVENTS, st.sampled_from(["\n", "\r\n", "\r"]), st.randoms(use_true_random=False))
def test_events_survive_any_split(
    events: list[tuple[str, str, int | None]], line_end: str, randomness: random.Random
) -> None:
    """However the bytes are cut, and whichever line ends are used, the events are the same."""
    lines = [line for event in events for line in lines_of(*event)]
    whole = "".join(f"{line}{line_end}" for line in lines).encode()
    parser = EventParser()
    parsed: list[Event] = []
    for piece in pieces_of(whole, randomness):
        parsed += parser.feed(piece)

    assert parsed == [
        Event(kind or "message", data, None if number is None else str(number))
        for kind, data, number in events
    ]


def lines_of(kind: str, data: str, number: int | None) -> list[str]:
    named = [f"event: {kind}"] if kind else []
    numbered = [] if number is None else [f"id:{number}"]
    return [": a comment", *named, *numbered, f"data: {data}", ""]


def pieces_of(whole: bytes, randomness: random.Random) -> list[bytes]:
    cuts = sorted(randomness.randint(0, len(whole)) for _ in range(4))
    return [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


STREAMS = [
    b"\xef\xbb\xbfdata: 1\n\n",
    b"data: 1\ndata:2\r\ndata\rdata:  3\n\n",
    b"data:\n\n\n\nid: 7\n\ndata: after an id alone\n\n",
    b"id: 1\0\ndata: x\n\nid\ndata: y\n\n",
    b"retry: 1500\nretry: x\nevent: a\ndata: b\n\ndata: c\n\n",
    b"data: \xff\xc3\xa9\n\nnot a field\n:\n: comment\ndata: half",
    "data: \u2028\x85\x0b\x0c\n\n".encode(),
]


@pytest.mark.parametrize("whole", STREAMS)
def test_languages_parse_alike(node: NodeDriver, whole: bytes) -> None:
    """Byte by byte and at once, both parsers find the same."""
    for pieces in ([whole], [bytes([byte]) for byte in whole]):
        parser = EventParser()
        events = [event for piece in pieces for event in parser.feed(piece)]
        outcome = node.ask(method="parse", args=[pieces])

        assert outcome.result["events"] == [
            {"type": event.type, "data": event.data, "id": event.id} for event in events
        ]
        assert outcome.result["retry_seconds"] == parser.retry_seconds
        assert events


RETRY_AFTERS = [
    ("0", 0), ("120", 120), (" 7 ", 7), ("-1", None), ("1.5", None), ("", None), ("soon", None),
    ("Fri, 02 Jan 2026 03:05:05 GMT", 60), ("Friday, 02-Jan-26 03:05:05 GMT", 60),
    ("Fri, 02 Jan 2026 03:04:00 GMT", 0), ("Fri, 99 Jan 2026 03:04:00 GMT", None),
]  # fmt: skip


@pytest.mark.parametrize(("value", "seconds"), RETRY_AFTERS)
def test_retry_after_is_seconds_or_a_date(
    node: NodeDriver, value: str, seconds: float | None
) -> None:
    """In both languages; anything else counts as missing."""
    in_node = node.ask(method="retry_after", args=[value, NOW.timestamp() * 1000]).result

    assert retry_after_seconds(value, NOW) == seconds
    assert in_node == seconds


def test_waits_grow_with_full_jitter() -> None:
    """A wait is anything from 0 to twice as much as before, up to a limit, after Retry-After."""
    ranges: list[tuple[float, float]] = []

    def draw(least: float, most: float) -> float:
        ranges.append((least, most))
        return most

    retries = Retries(base_seconds=1, max_seconds=5, draw=draw)
    delays = [retries.delay(retry, after) for retry, after in enumerate((None, None, 30.0, None))]

    assert ranges == [(0, 1), (0, 2), (0, 4), (0, 5)]
    assert delays == [1, 2, 34, 5]


def test_lock_file_names_no_registry() -> None:
    """The packages come from the registry that the machine is set up for."""
    lock = (TYPESCRIPT / "package-lock.json").read_text()
    packages = json.loads(lock)["packages"]

    assert "resolved" not in lock
    assert "://" not in lock
    assert all("integrity" in package for name, package in packages.items() if name)


def test_typescript_client_has_no_dependency() -> None:
    package = json.loads((TYPESCRIPT / "package.json").read_text())

    assert package.keys() & {"dependencies", "peerDependencies", "optionalDependencies"} == set()


def test_python_client_is_typed() -> None:
    """It passes `mypy --strict`, with the settings of this repository, and says so (PEP 561)."""
    command = [sys.executable, "-m", "mypy", "-p", "wearon_client"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
    assert (PYTHON / "src" / "wearon_client" / "py.typed").exists()


SCHEMAS = {
    "Session": "Session",
    "Submitted": "Submitted",
    "NewGeneration": "NewGeneration",
    "SessionPage": "SessionPage",
    "AccessoryItem": "Accessory",
    "ErrorBody": "ErrorBody",
    "BatchItem": "BatchItem",
    "ItemAnswer": "BatchResult",
}
"""The types of the OpenAPI document, and of the clients."""


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    found: dict[str, Any] = Api().document["components"]["schemas"]
    return found


@pytest.mark.parametrize(("documented", "ours"), SCHEMAS.items())
def test_types_are_those_of_the_document(
    schemas: dict[str, Any], documented: str, ours: str
) -> None:
    """Each field that the service documents is in the types of both languages, and may be null in
    them if it may be null in the service."""
    properties = schemas[documented]["properties"]
    nullable = {name: is_nullable(schema) for name, schema in properties.items()}

    assert python_fields(ours) == nullable
    assert typescript_fields(ours) == nullable


def is_nullable(schema: dict[str, Any]) -> bool:
    either = [schema, *schema.get("oneOf", ()), *schema.get("anyOf", ())]
    return any("null" in one.get("type", ()) for one in either)


def python_fields(name: str) -> dict[str, bool]:
    hints = get_type_hints(getattr(models, name))
    return {field: type(None) in getattr(hint, "__args__", ()) for field, hint in hints.items()}


def typescript_fields(name: str) -> dict[str, bool]:
    text = (TYPESCRIPT / "src" / "models.ts").read_text()
    declared = rf"^export interface {name} (?:extends (\w+) )?\{{\n(.*?)^\}}"
    body = re.search(declared, text, re.MULTILINE | re.DOTALL)
    assert body
    fields = re.findall(r"^  (\w+)\??: (.+);$", body[2], re.MULTILINE)
    inherited = typescript_fields(body[1]) if body[1] else {}
    return {**inherited, **{field: "null" in kind for field, kind in fields}}


def test_application_does_not_contain_the_clients() -> None:
    """They are packages of their own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    modules = project["tool"]["uv"]["build-backend"]["module-name"]

    assert modules == ["domain", "adapters", "entrypoints", "config"]
