"""What a command found, once: a JSON document for scripts, a table and sentences for people, an exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.errors import EXIT_PASS

Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; `right` names the columns whose cells are numbers. In a pipe a title is each row's first cell."""

    columns: Sequence[str]
    rows: Sequence[Row]
    right: frozenset[str] = frozenset()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A command's result."""

    document: Mapping[str, Any] | Sequence[Any]
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()
    exit_code: int = EXIT_PASS
    heading: str = ""  # above all, for people only
    styles: Mapping[str, str] = field(default_factory=dict)  # cell text -> rich style

    def as_json(self) -> str:
        """The document."""
        return json.dumps(self.document, indent=2)

    def as_text(self, *, terminal: bool, colour: bool, width: int = 118) -> str:
        """Aligned tables for a terminal; one tab-separated line per row for a pipe, without headings."""
        if not terminal:
            rows = [((t.title, *row) if t.title else row) for t in self.tables for row in t.rows]
            return "\n".join(["\t".join(map(_plain, row)) for row in rows] + [_plain(line) for line in self.lines])
        return self._pretty(colour, width)

    def _pretty(self, colour: bool, width: int) -> str:
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        out = io.StringIO()
        console = Console(file=out, force_terminal=colour, no_color=not colour, width=width, highlight=False)
        if self.heading:
            console.print(Text(_plain(self.heading)), soft_wrap=True)
        for table in self.tables:
            if table.title:
                console.print(Text(_plain(table.title), "bold"))
            drawn = RichTable(box=None, pad_edge=False, header_style="dim")
            for column in table.columns:
                drawn.add_column(column, justify="right" if column in table.right else "left", overflow="fold")
            for row in table.rows:
                drawn.add_row(*(Text(_plain(cell), self.styles.get(cell, "")) for cell in row))
            console.print(drawn)
        for line in self.lines:
            console.print(Text(_plain(line)), soft_wrap=True)
        return out.getvalue().rstrip("\n")


def _plain(text: str) -> str:
    """Without control characters: a server's words must not steer a terminal or split a row."""
    return "".join(c if c.isprintable() else " " for c in text)


def size(number: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
