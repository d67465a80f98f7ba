"""Planted faults of what leaves the engine: tokens and ends of streams. Victims include streams of the base."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.server.faults import Fault
from loadtest.server.state import Emission, Stream


@dataclass(slots=True)
class DropToken(Fault):
    """A token is computed and counted but never sent. Opportunity: a token."""

    def emit(self, emission: Emission) -> None:
        if self.adapter in ("", emission.stream.adapter) and self.hit():
            emission.ids = []


@dataclass(slots=True)
class DupToken(Fault):
    """A token is sent twice and counted once. Opportunity: a token."""

    def emit(self, emission: Emission) -> None:
        if self.adapter in ("", emission.stream.adapter) and self.hit():
            emission.ids = emission.ids * 2


@dataclass(slots=True)
class Reorder(Fault):
    """A token is sent after its successor. Opportunity: a token that is not the last."""

    def emit(self, emission: Emission) -> None:
        marks = emission.stream.marks
        if id(self) in marks:
            emission.ids = emission.ids + marks.pop(id(self))
        elif not emission.finish and self.adapter in ("", emission.stream.adapter) and self.hit():
            marks[id(self)], emission.ids = emission.ids, []


@dataclass(slots=True)
class AtToken(Fault):
    """Base of faults that happen once per stream, when it is about to send token number `at`. Opportunity: a stream."""

    at: int = 3

    def due(self, stream: Stream) -> bool:
        """Is this the moment, and does it hit?"""
        return len(stream.ids) == self.at + 1 and self.adapter in ("", stream.adapter) and self.hit()


@dataclass(slots=True)
class Cut(AtToken):
    """The connection closes in the middle, without [DONE]."""

    def emit(self, emission: Emission) -> None:
        if self.due(emission.stream):
            emission.ids, emission.end = [], "cut"


@dataclass(slots=True)
class ErrorFrame(AtToken):
    """An error frame, then [DONE], under HTTP 200."""

    def emit(self, emission: Emission) -> None:
        if self.due(emission.stream):
            emission.ids, emission.end = [], "error"


@dataclass(slots=True)
class Short(AtToken):
    """The stream finishes early, and usage says it did not."""

    def emit(self, emission: Emission) -> None:
        if self.due(emission.stream):
            emission.finish, emission.usage = "length", emission.stream.params.max_tokens
