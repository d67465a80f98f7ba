"""What `loadtest hotfix` says: a picture, what became of the streams, four latencies, the verdict. From files alone."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.history import History, load
from loadtest.report import text
from loadtest.tools.picture import LEGEND, Line, draw

_MARGIN = 14  # beside the bars: the users' names
_WIDEST = 160


@dataclass(frozen=True)
class Result:
    """A judged run of `adapter`; everything else is read from its folder."""

    folder: Path
    adapter: str
    exit_code: int
    reason: str  # why it ended: "complete", "interrupted", ...

    @cached_property
    def verdict(self) -> dict[str, Any]:
        """verdict.json."""
        return dict(json.loads((self.folder / "verdict.json").read_text(encoding="utf-8")))

    @cached_property
    def recorded(self) -> History:
        """The history."""
        return load(self.folder)

    def as_json(self) -> str:
        """The verdict, with the folder and why the run ended."""
        return json.dumps({"folder": str(self.folder), "ended": self.reason, **self.verdict}, indent=1)

    def as_text(self, *, terminal: bool, colour: bool, width: int = 118) -> str:
        """The screen; the same in a pipe, without colours."""
        from rich.console import Console
        from rich.text import Text

        out = io.StringIO()
        wide = min(width, _WIDEST) if terminal else 118
        console = Console(file=out, force_terminal=colour, no_color=not colour, width=wide, highlight=False)
        lines = draw(self.recorded, self.adapter, width=max(wide - _MARGIN, 40))
        for line in lines:
            console.print(_styled(line), no_wrap=True, crop=True)
        console.print(Text(LEGEND if lines else "no stream was sent", "dim"))
        console.print()
        for sentence in self._sentences():
            console.print(Text(sentence), soft_wrap=True)
        console.print(_latencies(self.verdict))
        console.print(Text(text.headline(self.verdict), "bold"), soft_wrap=True)
        console.print(Text(f"results: {self.folder}"), soft_wrap=True)
        return out.getvalue().rstrip("\n")

    def _sentences(self) -> list[str]:
        told = [text.stream_line(self.verdict), f"swaps: {text.swap_line(self.verdict)}", self._by_version()]
        if self.reason != "complete":
            told.append(f"the run ended early: {self.reason}")
        return [*told, *(f"{name}: {sentence}" for name, sentence in text.witnesses(self.verdict, each=1))]

    def _by_version(self) -> str:
        """How many tokens of the adapter's streams each version made."""
        recorded = self.recorded
        table = recorded.streams
        owner = np.repeat(np.arange(len(table)), table.tokens)
        adapters = np.array(table.adapters, dtype=object)[table.adapter] if len(table) else np.array([], dtype=object)
        ids = recorded.ids[(adapters == self.adapter)[owner]] if len(owner) else recorded.ids
        made = {
            v.version: int(np.isin(ids, v.markers).sum())
            for v in recorded.versions
            if v.adapter == self.adapter and v.markers
        }
        if not made:
            return f"{len(ids):,} tokens; which version made them cannot be told: these are no marker adapters"
        told = [f"{n:,} by {version}" for version, n in made.items() if n]
        rest = len(ids) - sum(made.values())
        return f"tokens of {self.adapter}: " + ", ".join([*told, *([f"{rest:,} by no known version"] if rest else [])])


def _styled(line: Line) -> Any:
    from rich.text import Text

    styled = Text(line.name)
    for character, style in line.cells:
        styled.append(character, style)
    return styled


def _latencies(verdict: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("swap latency, ms", "", "p50", "p90", "p99", "n"):
        table.add_column(head, justify="left" if head in ("swap latency, ms", "") else "right")
    for row in text.latency_rows(verdict):
        table.add_row(*map(Text, row))
    return table
