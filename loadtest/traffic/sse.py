"""Server-sent events: bytes in, events out, no socket and no clock.

Rules (WHATWG "Server-sent events", section 9.2.6, for a reader that never reconnects)
1. Lines end with CR LF, LF or CR, and with nothing else: U+2028, U+0085 and the like are text. A CR LF pair split
   across two reads is one line end; its line is complete with the CR.
2. One byte order mark before the first line is skipped.
3. A line that starts with ":" is a comment. Else the field's name is what precedes the first ":", and one space after
   it belongs to neither; without ":" the whole line is the name and the value is empty.
4. "data" values are joined by LF; "event" names the kind; "id" and "retry" serve reconnection and are skipped.
   A line with any other name is skipped too, but counted in `ignored`, so that a reader can tell an HTML page from SSE.
5. An empty line dispatches the event; without data it only forgets the kind.
6. Nothing is decoded here: a value is the bytes between its delimiters, so UTF-8 split across reads is never seen.
7. At the end of the input the standard drops an event that no empty line closed. Servers do end with a bare
   "data: [DONE]", so `eof` hands that event out, marked `partial`: the caller knows that it may be a fragment.
8. Memory is bounded: a line over `max_line` or data over `max_event` bytes is an SseError, whatever the reads were.
   After an error the parser is spent: every later call raises the same error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_LINE = 8 * 1024 * 1024  # a first chunk repeats the prompt's ids: about 8 bytes for each of a million tokens
MAX_EVENT = 8 * 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One dispatched event."""

    data: bytes
    kind: bytes = b"message"
    ignored: int = 0  # lines with unknown field names before this event, since the stream began
    partial: bool = False  # the input ended before the empty line


class SseError(ValueError):
    """The stream is not SSE that can be held in memory; `events` are those the same read completed before it."""

    def __init__(self, message: str, events: list[Event]) -> None:
        super().__init__(message)
        self.events = events


def usual(chunk: bytes) -> bool:
    """Whether a read is one event of one line of data, with its empty line, and nothing else."""
    whole = chunk.startswith(b"data: ") and chunk.find(b"\n") == len(chunk) - 2
    return whole and chunk[-1] == 0x0A and b"\r" not in chunk


class Parser:
    """Incremental parser of one stream."""

    def __init__(self, *, max_line: int = MAX_LINE, max_event: int = MAX_EVENT) -> None:
        self.ignored = 0
        self._max_line = max_line
        self._max_event = max_event
        self._max_chunk = min(max_line, max_event)
        self._tail: list[bytes] = []  # pieces of the line that has not ended
        self._tail_size = 0
        self._first_line = True
        self._after_cr = False  # the last byte was a CR: a LF that follows belongs to it
        self._data: list[bytes] = []
        self._data_size = 0
        self._kind = b""
        self._error: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Events completed by `chunk`. Raises SseError at a broken bound."""
        events: list[Event] = []
        if self._error is not None:
            raise SseError(self._error, events)
        # "data: ...\n\n" with nothing pending is the usual read, and goes at a third of the cost.
        if usual(chunk) and len(chunk) <= self._max_chunk and self.idle:
            self._first_line = False
            return [Event(chunk[6:-2], b"message", self.ignored)]
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        if not chunk:
            return events
        lines = _LINE_END.split(chunk) if b"\r" in chunk else chunk.split(b"\n")
        self._after_cr = chunk[-1] == 0x0D
        rest = lines.pop()
        if lines and self._tail:
            lines[0] = b"".join((*self._tail, lines[0]))
            self._tail.clear()
            self._tail_size = 0
        for line in lines:
            self._line(line, events)
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            if self._tail_size > self._max_line:
                self._fail(f"a line is longer than {self._max_line} bytes", events)
        return events

    @property
    def idle(self) -> bool:
        """Nothing is pending: what comes next begins an event."""
        return not (self._tail or self._data or self._kind or self._error)

    def eof(self) -> list[Event]:
        """The event that the end of the input left open, if it has data. Raises SseError at a broken bound."""
        events: list[Event] = []
        if self._error is not None:
            raise SseError(self._error, events)
        if self._tail:
            line = b"".join(self._tail)
            self._tail.clear()
            self._line(line, events)
        if self._data:
            events.append(Event(b"\n".join(self._data), self._kind or b"message", self.ignored, True))
            self._data = []
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if len(line) > self._max_line:
            self._fail(f"a line is longer than {self._max_line} bytes", events)
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        name, colon, value = line.partition(b":")
        if colon and not name:
            return  # a comment
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._data_size += len(value) + 1
            if self._data_size > self._max_event:
                self._fail(f"the data of an event is longer than {self._max_event} bytes", events)
        elif name == b"event":
            self._kind = value
        elif name not in (b"id", b"retry"):
            self.ignored += 1

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(Event(data, self._kind or b"message", self.ignored))
            self._data = []
            self._data_size = 0
        self._kind = b""

    def _fail(self, message: str, events: list[Event]) -> None:
        self._error = message
        raise SseError(message, events)


def parse_reads(reads: Iterable[tuple[int, bytes]], parser: Parser) -> Iterator[tuple[int, list[Event]]]:
    """For each read, and once more for the end, its stamp and the events that it completed, if any.

    `reads` are (stamp, bytes) in order; a `partial` event at the end has the last read's stamp. Raises SseError after
    the events that precede the error.
    """
    stamp = 0
    try:
        for stamp, chunk in reads:
            yield stamp, parser.feed(chunk)
        yield stamp, parser.eof()
    except SseError as error:
        yield stamp, error.events
        raise
