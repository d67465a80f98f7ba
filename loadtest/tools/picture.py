"""Streams as bars of versions, one line per user, on one screen.

    swaps     ▼2                ▼3
    user 1    [··111111122222]  [··22222223333]

A cell is a slice of time. A digit is the version that the tokens in it came from (its place among the adapter's
versions, coloured on a terminal), `·` waiting, `?` tokens that no version's marker claims, `x` a version of an adapter
that was not asked for. `[` and `]` are a stream's first and last cell, `!` the end of one that failed. Streams that
asked for another adapter than the hotfixed one, or for the base model, are `o` and `b`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.analysis.noise import SUPPORT
from loadtest.history import OK, History
from loadtest.report.timeline import BASE, Contents, Segments, contents, segments

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta", "bright_green")
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LEGEND = "0 1 2 versions  · waiting  o other adapter  b base  x not what was asked for  ? unknown  ! failed  ▼ swap"
_SWAPS = ("scenario", "operator")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name and its cells, each a character and a rich style."""

    name: str
    cells: Sequence[tuple[str, str]]

    @property
    def text(self) -> str:
        """Without colours."""
        return f"{self.name}{''.join(c for c, _ in self.cells)}".rstrip()


@dataclass(frozen=True, slots=True)
class _Scale:
    """Time to cells."""

    start: int  # ns
    end: int
    width: int

    def cell(self, at: int) -> int:
        share = (at - self.start) / max(self.end - self.start, 1)
        return min(max(int(share * self.width), 0), self.width - 1)


def draw(recorded: History, adapter: str, *, width: int = 96, lanes: int = 16) -> list[Line]:
    """The line of swaps and one line per user that streamed; `width` cells. Empty without streams.

    Above `lanes` users those are shown that streamed from `adapter`.
    """
    table = recorded.streams
    if not len(table):
        return []
    scale = _Scale(int(table.sent.min()), int(max(table.ended.max(), table.last.max())), width)
    known, painter = contents(recorded), _Painter(recorded, adapter, scale)
    users = sorted(set(table.user), key=lambda user: (adapter not in painter.adapters_of(user), _natural(user)))[:lanes]
    margin = max(len("swaps"), *(len(user) for user in users)) + 2
    lines = [Line("swaps".ljust(margin), painter.swaps(known))]
    lines += [Line(user.ljust(margin), painter.lane(user, known)) for user in sorted(users, key=_natural)]
    return lines


def _natural(user: str) -> tuple[str, int]:
    head = user.rstrip("0123456789")
    return head, int(user[len(head) :] or 0)


class _Painter:
    def __init__(self, recorded: History, adapter: str, scale: _Scale) -> None:
        self._recorded, self._adapter, self._scale = recorded, adapter, scale
        self._parts: Segments = segments(recorded, contents(recorded))

    def adapters_of(self, user: str) -> set[str]:
        table = self._recorded.streams
        return {table.adapters[table.adapter[i]] for i, name in enumerate(table.user) if name == user}

    def swaps(self, known: Contents) -> list[tuple[str, str]]:
        """Where swaps of the adapter were invoked, and to which version."""
        cells = [(" ", "")] * self._scale.width
        for op in self._recorded.ops:
            if op.adapter != self._adapter or op.by not in _SWAPS:
                continue
            at = self._scale.cell(op.invoked)
            cells[at] = ("▼", "bold")
            if at + 1 < len(cells):
                cells[at + 1] = self._mark(known, op.adapter, op.version)
        return cells

    def lane(self, user: str, known: Contents) -> list[tuple[str, str]]:
        """All streams of one user."""
        cells = [(" ", "")] * self._scale.width
        for i, name in enumerate(self._recorded.streams.user):
            if name == user:
                self._stream(i, known, cells)
        return cells

    def _stream(self, i: int, known: Contents, cells: list[tuple[str, str]]) -> None:
        table, cell = self._recorded.streams, self._scale.cell
        first, last = cell(int(table.sent[i])), cell(int(max(table.ended[i], table.last[i], table.sent[i])))
        for at in range(first, last + 1):
            cells[at] = ("·", "dim")
        mine = self._parts.of(i)
        own = table.adapters[table.adapter[i]]
        columns = (self._parts.code, self._parts.start, self._parts.end, self._parts.tokens)
        for code, start, end, tokens in zip(*(column[mine].tolist() for column in columns), strict=True):
            # A base model says a marker's token by itself now and then, but not several in a row.
            told = BASE if own == "base" and tokens < SUPPORT else code
            for at in range(cell(start), cell(end) + 1):
                cells[at] = self._version(known, own, told)
        if last > first:
            cells[first] = ("[", "dim")
            cells[last] = ("]", "dim") if table.outcome[i] == OK else ("!", "bold red")

    def _version(self, known: Contents, own: str, code: int) -> tuple[str, str]:
        if code == BASE:
            return "b", "dim"
        if code < 0:
            return "?", "bold red"
        adapter, version = known.labels[code]
        if adapter != own:
            return "x", "bold red"
        return self._mark(known, adapter, version) if adapter == self._adapter else ("o", "dim")

    def _mark(self, known: Contents, adapter: str, version: str) -> tuple[str, str]:
        own = [label for name, label in known.labels if name == adapter]
        if version not in own:
            return "?", "bold red"
        place = own.index(version)
        return DIGITS[place % len(DIGITS)], f"reverse {COLOURS[place % len(COLOURS)]}"
