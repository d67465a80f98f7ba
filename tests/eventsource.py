"""An EventSource parser written sentence by sentence from the WHATWG HTML standard, section 9.2.6. Slow, and only here.

It shares no idea with loadtest.traffic.sse: it decodes first, walks over characters, and keeps the standard's buffers.
`parse` is the standard's, which drops what no empty line closed; `leftover` is what the end of the input left open.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Source:
    """The buffers of the standard, named as it names them, and what was dispatched."""

    data: str = ""
    event_type: str = ""
    last_event_id: str = ""
    reconnection_time: int | None = None
    dispatched: list[tuple[str, str]] = field(default_factory=list)  # (type, data)
    ignored: int = 0  # lines whose field the standard ignores by name

    def process_line(self, line: str) -> None:
        if line == "":  # "If the line is empty (a blank line)"
            self.dispatch()
        elif line[0] == ":":  # "If the line starts with a U+003A COLON character"
            return
        elif ":" in line:  # "If the line contains a U+003A COLON character"
            at = line.index(":")
            name, value = line[:at], line[at + 1 :]
            if value[:1] == " ":  # "If value starts with a U+0020 SPACE character, remove it from value."
                value = value[1:]
            self.process_field(name, value)
        else:  # "Otherwise, the string is not empty but does not contain a colon"
            self.process_field(line, "")

    def process_field(self, name: str, value: str) -> None:
        if name == "event":
            self.event_type = value
        elif name == "data":
            self.data += value + "\n"
        elif name == "id":
            if "\0" not in value:
                self.last_event_id = value
        elif name == "retry":
            if value and all(c in "0123456789" for c in value):
                self.reconnection_time = int(value[:18])
        else:
            self.ignored += 1

    def dispatch(self) -> None:
        if self.data == "":
            self.event_type = ""
            return
        if self.data[-1] == "\n":
            self.data = self.data[:-1]
        self.dispatched.append((self.event_type or "message", self.data))
        self.data = ""
        self.event_type = ""


def lines_of(text: str) -> tuple[list[str], str]:
    """(lines, what follows the last line end): end-of-line = ( cr lf / cr / lf )."""
    lines, line, i = [], "", 0
    while i < len(text):
        if text[i] == "\r":
            lines.append(line)
            line = ""
            i += 2 if text[i + 1 : i + 2] == "\n" else 1
        elif text[i] == "\n":
            lines.append(line)
            line = ""
            i += 1
        else:
            line += text[i]
            i += 1
    return lines, line


def source(data: bytes) -> tuple[Source, str]:
    """Everything but the incomplete last line processed, and that line."""
    text = data.decode("utf-8", "replace")
    if text[:1] == "\ufeff":  # "one leading U+FEFF BYTE ORDER MARK character must be ignored if any are present"
        text = text[1:]
    found = Source()
    lines, rest = lines_of(text)
    for line in lines:
        found.process_line(line)
    return found, rest


def parse(data: bytes) -> list[tuple[str, str]]:
    """(type, data) of each event the standard dispatches."""
    return source(data)[0].dispatched


def leftover(data: bytes) -> tuple[str, str] | None:
    """The event that would have been dispatched, had the input ended with the two line ends it lacks."""
    found, rest = source(data)
    before = len(found.dispatched)
    if rest:
        found.process_line(rest)
    found.dispatch()
    return found.dispatched[before] if len(found.dispatched) > before else None
