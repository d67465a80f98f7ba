"""The swap ledger and the witnesses of report.html: what the verdict rests on, with raw ids and times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadtest.history import History, Op
from loadtest.report import series, text, timeline
from loadtest.report.text import Doc
from loadtest.report.timeline import Contents, Segments

LEDGER_ROWS, WITNESSES, RAW_IDS = 500, 10, 400


def rows(verdict: Doc, recorded: History, known: Contents, parts: Segments) -> dict[str, Any]:
    """What the template shows of swaps and witnesses; every text cleaned."""
    ledger, left = _ledger(verdict, recorded)
    return {"ledger": ledger, "ledger_left": left, "witnesses": _witnesses(verdict, recorded, known, parts)}


def _map(value: object) -> Doc:
    return value if isinstance(value, Mapping) else {}


LEDGER = ("ack_ms", "effect_ms", "drain_ms", "stall_ms", "stall_matched_ms", "exposed", "torn", "stale")


def _ledger(verdict: Doc, recorded: History) -> tuple[list[dict[str, str]], int]:
    """One row per swap, and how many rows were left out."""
    ops = {o.name: o for o in recorded.ops}
    judged = [s for s in _map(verdict.get("swaps")).get("list") or [] if isinstance(s, Mapping)]
    rows = judged or [{"op": o.name} for o in recorded.ops if series.swap(o)]
    zero, _ = timeline.origin(recorded)
    shas = {(v.adapter, v.version): v.sha for v in recorded.versions}
    return [_swap(s, ops.get(str(s.get("op"))), zero, shas) for s in rows[:LEDGER_ROWS]], max(
        len(rows) - LEDGER_ROWS, 0
    )


def _swap(swap: Doc, op: Op | None, zero: int, shas: Mapping[tuple[str, str], str]) -> dict[str, str]:
    fields: dict[str, Any] = {"op": swap.get("op", "")}
    if op is not None:
        fields |= {k: getattr(op, k) for k in ("adapter", "version", "arm", "outcome", "mode", "path")}
        fields["at"] = text.number((op.invoked - zero) / 1e9)
        fields["answer"] = " ".join(str(x) for x in (op.status or "", op.reason, op.message) if x)
        if op.outcome == "ok":
            fields["answer"] = str(op.status or "")
        fields["ack_ms"] = (op.acked - op.invoked) / 1e6 if op.acked else None
        fields["sha"] = shas.get((op.adapter, op.version), "")[:12]
    broken = _map(swap.get("violations"))
    fields |= {"torn": broken.get("untorn"), "stale": broken.get("fresh")}
    fields |= {k: v for k, v in swap.items() if v is not None or k not in fields}
    rest = [f"{n} {k}" for k, n in broken.items() if n and k not in ("untorn", "fresh")]
    fields["also"] = ", ".join(rest)
    out = {k: text.clean(fields.get(k, ""), 160) for k in _SWAP_TEXTS}
    return out | {k: text.number(fields.get(k)) for k in LEDGER}


_SWAP_TEXTS = ("op", "adapter", "version", "arm", "outcome", "mode", "path", "at", "answer", "sha", "also")


def _witnesses(verdict: Doc, recorded: History, known: Contents, parts: Segments) -> list[dict[str, Any]]:
    """The first witnesses of each guarantee with the raw ids and times they rest on."""
    rows = {n: i for i, n in enumerate(recorded.streams.name)}
    ops = {o.name: o for o in recorded.ops}
    out = []
    for name, g in _map(verdict.get("guarantees")).items():
        found = [w if isinstance(w, Mapping) else {"text": w} for w in _map(g).get("witnesses") or []]
        shown = [_witness(w, rows.get(str(w.get("stream"))), ops, (recorded, known, parts)) for w in found[:WITNESSES]]
        if shown:
            out.append({"name": text.clean(name, 40), "shown": shown, "left": len(found) - len(shown)})
    return out


def _witness(
    w: Doc, row: int | None, ops: Mapping[str, Op], evidence: tuple[History, Contents, Segments]
) -> dict[str, Any]:
    op = ops.get(str(w.get("swap") or w.get("op")))
    facts = [
        (k, text.clean(v, 200)) for k, v in w.items() if k not in ("text", "stream", "swap") and v not in ("", [], None)
    ]
    if op is not None:
        facts.append((f"swap {text.clean(op.name, 40)}", f"invoked {op.invoked} ns, acked {op.acked or 'never'} ns"))
        facts.append(("path", text.clean(op.path, 200)))
    out: dict[str, Any] = {
        "text": text.clean(w.get("text", ""), 500),
        "stream": text.clean(w.get("stream", ""), 40),
        "facts": facts,
        "raw": "",
        "versions": "",
    }
    return out if row is None else out | _raw(row, *evidence)


def _raw(row: int, recorded: History, known: Contents, parts: Segments) -> dict[str, str]:
    """Ids of one stream as runs, with the arrival of each run's first and last token."""
    t, mine = recorded.streams, parts.of(row)
    zero, _ = timeline.origin(recorded)
    at = int(t.start[row])
    lines = [f"sent {t.sent[row]} ns ({(int(t.sent[row]) - zero) / 1e9:.4f} s), {t.tokens[row]} tokens"]
    for code, start, end, n in list(
        zip(*(c[mine].tolist() for c in (parts.code, parts.start, parts.end, parts.tokens)), strict=True)
    )[:40]:
        ids = recorded.ids[at : at + n].tolist()
        told = f"{ids[0]} ×{n}" if len(set(ids)) == 1 else " ".join(map(str, ids[:RAW_IDS]))
        when = f"{(start - zero) / 1e9:.4f}–{(end - zero) / 1e9:.4f} s"
        lines.append(f"{timeline.name(known, code):<10} {when}  {start}–{end} ns  ids {told}")
        at += n
    return {"raw": "\n".join(lines), "versions": timeline.told(parts, known, row)}
