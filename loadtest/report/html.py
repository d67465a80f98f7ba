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

from loadtest.history import History
from loadtest.report import charts, evidence, plots, text, timeline
from loadtest.report.text import Doc
from loadtest.report.timeline import Contents, Segments

ASSETS = Path(__file__).parent / "assets"
TABLE_ROWS = 200
OUTCOMES = ("ok", "fail", "info")


def render(verdict: Doc, recorded: History, title: str, extra: Mapping[str, Any] | None = None) -> str:
    """The whole report. `extra`: "scenario" and "server_log_tail" (texts), "meta" (meta.json), "attributed" (labels and
    codes as timeline.attributed takes them); all may be missing.
    """
    known = timeline.contents(recorded)
    told = (extra or {}).get("attributed")
    parts = timeline.segments(recorded, known, timeline.attributed(recorded, known, *told) if told else None)
    why = timeline.flags(recorded, parts, known, _witness_streams(verdict))
    page = {
        **_verdict(verdict, title),
        **evidence.rows(verdict, recorded, known, parts),
        "lag": _lag(recorded),
        **_words(extra or {}, recorded),
        "data": embed(timeline.document(recorded, known, parts, why)),
        "stream_table": _stream_table(recorded, known, parts, why),
        "around": [*charts.around_swaps(recorded), *charts.per_swap(recorded, verdict)],
        "over_run": charts.over_run(recorded, verdict),
        "target": charts.target(recorded),
        "facts": _facts(extra or {}, recorded),
        "first_witness": next((s for _, s in text.witnesses(verdict, 1)), ""),
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
    status = str(safe["status"])

    def level(word: str) -> str:
        return text.clean(verdict.get(f"level_{word}") or "none")

    return {
        "title": text.clean(title),
        "status": status,
        "mark": text.MARKS.get(status, "?"),
        "headline": text.headline(safe),
        "levels": [("held" if status != "UNKNOWN" else "held, unproven", level("held")), ("broken", level("broken"))],
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
            (
                text.clean(arm, 40),
                text.clean(name, 40),
                *(text.number(_map(c).get(k)) for k in ("violations", "streams")),
            )
            for arm, found in _map(verdict.get("false_alarms")).items()
            for name, c in _map(found).items()
            if _map(c).get("violations")
        ],
        "no_alarms": _no_alarms(verdict),
        "hangover": text.hangover_line(safe),
        "client": text.client_line(safe),
        "gates": [("not met", _gates(verdict, met=False)), ("passed", _gates(verdict, met=True))],
        "streams_line": text.stream_line(safe),
        "swaps_line": text.swap_line(safe),
        "marks": text.MARKS,
    }


def _facts(extra: Mapping[str, Any], recorded: History) -> str:
    """One line under the title: which run this is."""
    meta, (zero, end) = _map(extra.get("meta")), timeline.origin(recorded)
    about = _map(meta.get("target"))
    server = f"server {about['server_version']}" if about.get("server_version") else ""
    engine = " at ".join(str(w) for w in (server, meta.get("url")) if w)
    seed = f"seed {meta['seed']}" if meta.get("seed") is not None else ""
    length = f"{(end - zero) / 1e9:.0f} s" if zero else ""
    parts = (meta.get("run"), str(meta.get("wall_time") or "")[:16].replace("T", " "), engine, length, seed)
    return " · ".join(text.clean(p, 120) for p in parts if p)


def _median_interval(verdict: Doc, figure: str) -> str:
    return text.interval(_map(_map(verdict.get("swap_latency_ms")).get(figure)).get("interval"))


def _by_arm(verdict: Doc) -> list[tuple[str, ...]]:
    """Swap latencies of each arm, so that a real swap can be held against a sham one."""
    return [
        (arm, name, *(text.number(_map(figures.get(name)).get(p)) for p in ("p50", "p90", "p99", "n")))
        for arm, figures in _map(verdict.get("swap_latency_by_arm_ms")).items()
        for name in text.LATENCIES
        if isinstance(figures, Mapping) and _map(figures.get(name)).get("n")
    ]


def _no_alarms(verdict: Doc) -> str:
    """What the arms without a change show, when they show nothing: the checker's own false-alarm rate."""
    arms = {a: _map(f) for a, f in _map(verdict.get("false_alarms")).items() if f}
    if not arms or any(_map(c).get("violations") for found in arms.values() for c in found.values()):
        return ""
    most = {a: max(int(_map(c).get("streams") or 0) for c in found.values()) for a, found in arms.items()}
    told = ", ".join(f"{n} streams of arm {text.clean(a, 40)}" for a, n in most.items())
    return f"No guarantee was broken where nothing changes: {told}."


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


def _lag(recorded: History) -> str:
    lag = [h.lag_p99_ms for h in recorded.health]
    return plots.spark(lag, 10.0, "loop lag p99 of each second, ms; dashed: the limit of 10 ms")


def _because(doc: Doc) -> str:
    return text.clean(doc.get("because", ""))


def _witness_streams(verdict: Doc) -> list[str]:
    return [
        str(w.get("stream", ""))
        for g in _map(verdict.get("guarantees")).values()
        for w in _map(g).get("witnesses") or []
        if isinstance(w, Mapping)
    ]


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
