"""Server-sent events, as the WHATWG's HTML standard defines them, from any split of the bytes."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_CHARACTERS = 2**20
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``id`` is None unless the event itself has one: here it is the revision of one
    session, which later events of other sessions must not inherit."""

    type: str
    data: str
    id: str | None


class EventTooLarge(ValueError):
    """An event has more than `MAX_EVENT_CHARACTERS` characters."""


class EventParser:
    """Parses one stream. ``retry_seconds`` is the reconnection time that the server asked for."""

    def __init__(self) -> None:
        self.retry_seconds: float | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._began = False
        self._after_cr = False
        self._rest = ""
        self._size = 0
        self._type = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that end in these bytes. Raises EventTooLarge."""
        text = self._decoder.decode(data)
        if text and not self._began:
            self._began, text = True, text.removeprefix("\ufeff")
        if text:  # a CR ends a line at once, so a LF that follows belongs to it
            text = text.removeprefix("\n") if self._after_cr else text
            self._after_cr = text.endswith("\r")
        *lines, self._rest = _LINE_END.split(self._rest + text)
        for line in lines:
            self._size += len(line)
            self._check(self._size)
            if line:
                self._field(line)
            else:
                yield from self._dispatch()
        self._check(self._size + len(self._rest))

    def _check(self, size: int) -> None:
        if size > MAX_EVENT_CHARACTERS:
            raise EventTooLarge(f"an event has more than {MAX_EVENT_CHARACTERS} characters")

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_seconds = int(value[:9]) / 1000

    def _dispatch(self) -> Iterator[Event]:
        if self._data:
            yield Event(self._type or "message", "\n".join(self._data), self._id)
        self._clear()

    def _clear(self) -> None:
        self._type, self._data, self._id, self._size = "", [], None, 0
