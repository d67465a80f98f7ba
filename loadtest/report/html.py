"""report.html: one self-contained file that opens from disk.

Rules
1. All text passes `_printable`, then jinja2's autoescape; inside charts it passes `text.clean` and `escape`.
2. The embedded JSON holds no `<`, `>` or `&` outside escapes, so no text can end its element.
3. The policy (CSP) allows the two blocks below by their hashes and nothing else: no network, no inline handlers.
4. Nothing that verdict.json may lack is needed to render.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from loadtest.history import History, Op
from loadtest.report import charts, plots, series, text, timeline
from loadtest.report.text import Doc
from loadtest.report.timeline import Contents, Segments

ASSETS = Path(__file__).parent / "assets"
LEDGER_ROWS, TABLE_ROWS, WITNESSES, RAW_IDS = 500, 200, 10, 400
OUTCOMES = ("ok", "fail", "info")


def render(verdict: Doc, recorded: History, title: str, extra: Mapping[str, Any] | None = None) -> str:
    """The whole report. `extra`: "scenario" and "server_log_tail" (texts), "meta" (meta.json); all may be missing."""
    known = timeline.contents(recorded)
    parts = timeline.segments(recorded, known)
    why = timeline.flags(recorded, parts, known, _witness_streams(verdict))
    page = {
        **_verdict(verdict, title),
        **_evidence(verdict, recorded, known, parts),
        **_words(extra or {}, recorded),
        "data": embed(timeline.document(recorded, known, parts, why)),
        "stream_table": _stream_table(recorded, known, parts, why),
        "around": charts.around_swaps(recorded),
        "over_run": charts.over_run(recorded, verdict),
        "groups": [(w, _groups(verdict.get(k))) for w, k in (("Per adapter", "adapters"), ("Per arm", "arms"))],
    }
    return page_of("report.html.j2", page)


def page_of(template: str, context: Mapping[str, Any], script: str = "report.js", connect: str = "'none'") -> str:
    """A template of assets/ with its style, script and policy in place; `connect`: what its script may ask."""
    style, code = _asset("report.css"), _asset(script)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(code)}'; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    return _environment().get_template(template).render(style=style, script=code, policy=policy, **context)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def _printable(value: object) -> object:
    """Control and bidirectional characters shown, not sent, whichever way they came; markup of ours passes."""
    if isinstance(value, str) and not hasattr(value, "__html__") and not value.isprintable():
        return "\n".join(text.clean(line, 12 * len(line) + 1) for line in value.split("\n"))
    return value


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def embed(document: object) -> str:
    """JSON that may stand inside a <script> element."""
    out = json.dumps(document, separators=(",", ":"), ensure_ascii=True)
    return out.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _map(value: object) -> Doc:
    return value if isinstance(value, Mapping) else {}


def _verdict(verdict: Doc, title: str) -> dict[str, Any]:
    """What the first screen says."""
    safe = {"status": "UNKNOWN", "streams": {}, "swaps": {}, **verdict}
    return {
        "title": text.clean(title),
        "status": str(safe["status"]),
        "mark": text.MARKS.get(str(safe["status"]), "?"),
        "headline": text.headline(safe),
        "levels": [(w, text.clean(verdict.get(f"level_{w}") or "none")) for w in ("held", "broken")],
        "required": text.clean(verdict.get("required_level") or "none"),
        "guarantees": text.guarantee_rows(safe),
        "budgets": [
            (n, b.get("status", ""), text.number(b.get("value")), text.number(b.get("limit")), _because(b))
            for n, b in _map(verdict.get("budgets")).items()
        ],
        "latencies": [(*row, _median_interval(verdict, row[0])) for row in text.latency_rows(safe)],
        "by_arm": _by_arm(verdict),
        "effect": _effect(verdict),
        "alarms": [
            (arm, text.clean(name, 40), *(text.number(_map(c).get(k)) for k in ("violations", "streams")))
            for arm, found in _map(verdict.get("false_alarms")).items()
            for name, c in _map(found).items()
        ],
        "hangover": text.hangover_line(safe),
        "client": text.client_line(safe),
        "gates": [("not met", _gates(verdict, met=False)), ("passed", _gates(verdict, met=True))],
        "streams_line": text.stream_line(safe),
        "swaps_line": text.swap_line(safe),
        "marks": text.MARKS,
    }


def _median_interval(verdict: Doc, figure: str) -> str:
    return text.interval(_map(_map(verdict.get("swap_latency_ms")).get(figure)).get("interval"))


def _by_arm(verdict: Doc) -> list[tuple[str, ...]]:
    """Swap latencies of each arm, so that a real swap can be held against a sham one."""
    return [
        (arm, name, *(text.number(_map(figures.get(name)).get(p)) for p in ("p50", "p90", "p99", "n")))
        for arm, figures in _map(verdict.get("swap_latency_by_arm_ms")).items()
        for name in text.LATENCIES
        if isinstance(figures, Mapping)
    ]


def _effect(verdict: Doc) -> str:
    """What a real swap adds to the longest gap beyond a sham one."""
    e = _map(_map(verdict.get("effects")).get("stall_ms"))
    if e.get("real") is None:
        return ""
    alone = (
        f"Stall in the window of a real swap, less that of a matched window before it: {text.number(e['real'], 'ms')}"
    )
    if e.get("real_minus_sham") is None:
        return f"{alone} (median; there was no sham arm to compare with)."
    sham, both = text.number(e.get("sham"), "ms"), text.number(e["real_minus_sham"], "ms")
    return f"{alone}; a sham swap: {sham}; real − sham: {both} {text.interval(e.get('interval'))}."


def _gates(verdict: Doc, *, met: bool) -> list[tuple[str, ...]]:
    return [
        (
            str(g.get("name", "")),
            str(g.get("status", "")),
            *(text.number(g.get(k)) for k in ("value", "limit")),
            _because(g),
        )
        for g in verdict.get("gates") or []
        if (g.get("status") == "ok") == met
    ]


def _because(doc: Doc) -> str:
    return text.clean(doc.get("because", ""))


def _witness_streams(verdict: Doc) -> list[str]:
    return [
        str(w.get("stream", ""))
        for g in _map(verdict.get("guarantees")).values()
        for w in _map(g).get("witnesses") or []
        if isinstance(w, Mapping)
    ]


def _evidence(verdict: Doc, recorded: History, known: Contents, parts: Segments) -> dict[str, Any]:
    ledger, left = _ledger(verdict, recorded)
    lag = [h.lag_p99_ms for h in recorded.health]
    return {
        "ledger": ledger,
        "ledger_left": left,
        "witnesses": _witnesses(verdict, recorded, known, parts),
        "lag": plots.spark(lag, 10.0, "loop lag p99 of each second, ms; dashed: the limit of 10 ms"),
    }


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


def _stream_table(recorded: History, known: Contents, parts: Segments, why: Any) -> dict[str, Any]:
    """The timeline in words: streams with something to show first."""
    t = recorded.streams
    zero, _ = timeline.origin(recorded)
    order = np.concatenate([np.flatnonzero(why), np.flatnonzero(why == 0)])[:TABLE_ROWS]
    rows = []
    for i in order.tolist():
        first = (int(t.first[i]) - int(t.sent[i])) / 1e6 if t.first[i] else None
        outcome = " ".join(x for x in (OUTCOMES[t.outcome[i]], t.reasons[t.reason[i]], text.clean(t.detail[i])) if x)
        adapter = text.clean(t.adapters[t.adapter[i]], 80)
        sent = text.number((int(t.sent[i]) - zero) / 1e9)
        told = timeline.told(parts, known, i)
        rows.append((t.name[i], adapter, sent, text.number(first), str(t.tokens[i]), told, outcome))
    return {"rows": rows, "total": len(t)}


GROUP = ("streams", "ok", "fail", "info", "tokens", "tokens_per_s")
FIGURES = (("ttft_ms", "p50"), ("ttft_ms", "p99"), ("itl_ms", "p50"), ("itl_ms", "p99"), ("tpot_ms", "p50"))


def _groups(groups: object) -> list[tuple[str, ...]]:
    """Rows of the per-adapter or per-arm table."""
    return [
        (
            text.clean(g.get("name") or "outside any phase", 80),
            *(text.number(g.get(k)) for k in GROUP),
            *(text.number(_map(g.get(k)).get(q)) for k, q in (*FIGURES, ("e2el_ms", "p50"))),
        )
        for g in (groups if isinstance(groups, list) else [])
        if isinstance(g, Mapping)
    ]


def _words(extra: Mapping[str, Any], recorded: History) -> dict[str, Any]:
    """The scenario, the log, where and when it ran, what recovery had to drop."""
    meta = _map(extra.get("meta"))
    flat = [
        (f"{k}.{k2}" if k2 else k, text.clean(v))
        for k, value in meta.items()
        if k != "server_log_tail"
        for k2, v in (value.items() if isinstance(value, Mapping) else [("", value)])
    ]
    log = extra.get("server_log_tail") or meta.get("server_log_tail") or ""
    zero, _ = timeline.origin(recorded)
    return {
        "scenario": _lines(extra.get("scenario", "")),
        "server_log": _lines("\n".join(log) if isinstance(log, list) else log),
        "meta": flat,
        "problems": [text.clean(p) for p in recorded.problems],
        "events": [
            (text.number((e.at_ns - zero) / 1e9), text.clean(e.what), text.clean(e.detail)) for e in recorded.events
        ],
    }


def _lines(value: object) -> str:
    """Text of several lines, each cleaned."""
    return "\n".join(text.lines(str(value)))
