"""report.md: the verdict as it fits a pull request comment."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.report import text
from loadtest.report.text import Doc

LIMIT = 65_536  # characters of a comment on GitHub


def escape(value: str) -> str:
    """Text that Markdown and the HTML inside it leave as it is."""
    for a, b in (
        ("\\", "\\\\"),
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("*", "\\*"),
    ):
        value = value.replace(a, b)
    return value.replace("_", "\\_").replace("[", "\\[").replace("@", "&#64;")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table; cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(escape(c) for c in row) + " |" for row in rows]
    return "\n".join(lines)


def render(verdict: Doc, title: str, log: str = "") -> str:
    """The whole report. `verdict` as in verdict.json; `log`: the last lines of a server that died."""
    parts = [
        f"# {escape(text.clean(title))}: {verdict['status']}",
        escape(text.headline(verdict)),
        table(
            ("guarantee", "status", "violations", "exposed", "95 % interval", "because"), text.guarantee_rows(verdict)
        ),
        f"Level required: **{verdict.get('required_level')}** · held: **{verdict.get('level_held') or 'none'}** · "
        f"broken: **{verdict.get('level_broken') or 'none'}**",
        "## Streams and swaps",
        escape(text.stream_line(verdict)),
        "Swaps: " + escape(text.swap_line(verdict)),
        "## Swap latency, ms",
        table(("figure", "from → to", "p50", "p90", "p99", "n"), text.latency_rows(verdict)),
        escape(text.hangover_line(verdict)),
    ]
    parts += _budgets(verdict) + _gates(verdict) + [escape(text.client_line(verdict))]
    parts += _witnesses(verdict)
    if log:
        parts += ["## The server's last words", "\n".join("    " + line for line in text.lines(log))]
    return fit(parts)


def fit(parts: Sequence[str]) -> str:
    """The parts as one text that fits a comment; what comes last is left out first, and said to be."""
    kept, size = list[str](), len(_REST) + 1
    for part in parts:
        if size + len(part) + 2 > LIMIT:
            return "\n\n".join([*kept, _REST]) + "\n"
        kept.append(part)
        size += len(part) + 2
    return "\n\n".join(kept) + "\n"


_REST = "The rest does not fit here; it is in report.html and verdict.json."


def _budgets(verdict: Doc) -> list[str]:
    budgets = verdict.get("budgets") or {}
    if not budgets:
        return []
    rows = [
        (n, b["status"], text.number(b.get("value")), text.number(b.get("limit")), text.clean(b.get("because", "")))
        for n, b in budgets.items()
    ]
    return ["## Budgets", table(("budget", "status", "value", "limit", "because"), rows)]


def _gates(verdict: Doc) -> list[str]:
    rows = [(g["name"], text.clean(g.get("because", ""))) for g in text.failed_gates(verdict)]
    return ["## Gates that keep a PASS from being said", table(("gate", "because"), rows)] if rows else []


def _witnesses(verdict: Doc) -> list[str]:
    found = text.witnesses(verdict, each=5)
    if not found:
        return []
    return ["## Witnesses", "\n".join(f"- **{name}**: {escape(sentence)}" for name, sentence in found)]
