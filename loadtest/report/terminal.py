"""The verdict as a table on a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtest.report import text
from loadtest.report.text import Doc

COLOURS = {"PASS": "green", "FAIL": "bold red", "UNKNOWN": "yellow"}


def render(verdict: Doc, title: str, folder: str, *, log: str = "", colour: bool = False, width: int = 118) -> str:
    """The table, the witnesses and where the results are; plain text unless `colour`. `log`: of a server that died."""
    console = Console(
        file=io.StringIO(), force_terminal=colour, no_color=not colour, width=width, highlight=False, emoji=False
    )
    console.print(Text(text.clean(title), style="bold"))
    console.print(_guarantees(verdict))
    console.print(_latencies(verdict))
    if log:
        console.print(Text("the server's last words:", style="yellow"))
        for words in text.lines(log):
            console.print(Text("  " + words, style="dim"), soft_wrap=True)
    for line in _lines(verdict, folder):
        console.print(line, soft_wrap=True)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def _status(status: str) -> Text:
    return Text(f"{text.MARKS.get(status, '?')} {status}", style=COLOURS.get(status, ""))


def _guarantees(verdict: Doc) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("guarantee", "status", "violations", "exposed", "95 % interval", "because"):
        table.add_column(head, justify="right" if head in ("violations", "exposed") else "left")
    for name, status, *rest in text.guarantee_rows(verdict):
        table.add_row(Text(name), _status(status), *map(Text, rest))
    for name, b in (verdict.get("budgets") or {}).items():
        table.add_row(
            Text(f"{name} (budget)"), _status(b["status"]), "", "", "", Text(text.clean(b.get("because", "")))
        )
    return table


def _latencies(verdict: Doc) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("swap latency, ms", "", "p50", "p90", "p99", "n"):
        table.add_column(head, justify="left" if head in ("swap latency, ms", "") else "right")
    for row in text.latency_rows(verdict):
        table.add_row(*map(Text, row))
    return table


def _lines(verdict: Doc, folder: str) -> list[Text]:
    lines = [
        Text(text.stream_line(verdict)),
        Text("swaps: " + text.swap_line(verdict)),
        Text(text.hangover_line(verdict)),
        Text(text.client_line(verdict), style="dim"),
    ]
    lines += [
        Text(f"gate {g['name']}: {text.clean(g.get('because', ''))}", "yellow") for g in text.failed_gates(verdict)
    ]
    lines += [Text(f"witness, {name}: {sentence}", style="red") for name, sentence in text.witnesses(verdict, each=2)]
    lines.append(Text(text.headline(verdict), style=COLOURS.get(str(verdict["status"]), "")))
    lines.append(Text(f"results: {folder}"))
    return lines
