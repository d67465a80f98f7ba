"""Words and figures shared by every report: how a number, an interval and a foreign text are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Doc = Mapping[str, Any]

MARKS = {"PASS": "✓", "FAIL": "✗", "UNKNOWN": "?"}
LATENCIES = {
    "ack": "invoked → acked",
    "effect": "invoked → first token of the new version",
    "drain": "acked → last token of the old version",
    "stall": "longest gap of a stream in the swap's window",
}


def clean(text: object, limit: int = 300) -> str:
    """Foreign text made safe for a terminal: control characters (ANSI codes too) shown as `\\x1b`, cut at `limit`."""
    out = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return out if len(out) <= limit else out[: limit - 1] + "…"


def lines(log: str) -> list[str]:
    """Foreign text of several lines, each made safe."""
    return [clean(line.expandtabs(4), 400) for line in log.split("\n")]


def number(value: object, unit: str = "") -> str:
    """A figure with three significant digits; "–" for none, "∞" where the sample is too small for the quantile."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return {"inf": "∞", "Infinity": "∞", "-inf": "−∞", "-Infinity": "−∞"}.get(value) or clean(value, 40)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(value, 40)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if math.isnan(value):
        return "–"
    text = f"{value:,}" if isinstance(value, int) else _digits(value)
    return f"{text} {unit}" if unit else text


def _digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.3g}"


def interval(pair: object, unit: str = "") -> str:
    """`[low, high]` or "" without one."""
    if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] is None:
        return ""
    return f"[{number(pair[0])}, {number(pair[1], unit)}]"


def percent(pair: object) -> str:
    """An interval of rates in percent."""
    if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] is None or pair[1] is None:
        return ""
    return f"{_digits(100 * float(pair[0]))}–{_digits(100 * float(pair[1]))} %"


def headline(verdict: Doc) -> str:
    """The verdict in one sentence."""
    held = clean(verdict.get("level_held") or "no level", 40)
    required = clean(verdict.get("required_level") or "no level", 40)
    broken = [
        clean(n, 40)
        for n, g in verdict.get("guarantees", {}).items()
        if g.get("status") == "FAIL" and g.get("required")
    ]
    status = verdict["status"]
    if status == "FAIL":
        budgets = [clean(n, 40) for n, b in verdict.get("budgets", {}).items() if b.get("status") == "FAIL"]
        what = ", ".join([*broken, *budgets]) or "a requirement"
        return f"FAIL: {required} is required, {what} broken; what held: {held}."
    if status == "UNKNOWN":
        because = [clean(g.get("because", g["name"]), 160) for g in failed_gates(verdict)]
        unknown = [
            n for n, g in verdict.get("guarantees", {}).items() if g["status"] == "UNKNOWN" and g.get("required")
        ]
        why = "; ".join(because) or "not enough evidence for " + ", ".join(unknown)
        return f"UNKNOWN: {required} is required and was not broken, but this run cannot prove it: {why}."
    return f"PASS: {required} is required and held."


def failed_gates(verdict: Doc) -> list[Doc]:
    """Gates that keep a PASS from being said."""
    return [g for g in verdict.get("gates", []) if g.get("status") != "ok"]


def guarantee_rows(verdict: Doc) -> list[tuple[str, ...]]:
    """Name, status, violations, exposed, 95 % interval of the rate, because."""
    return [
        (
            clean(name, 40) + ("" if g.get("required") else " (not required)"),
            g["status"],
            number(g.get("violations")),
            number(g.get("exposed")),
            percent(g.get("interval")),
            clean(g.get("because", "")),
        )
        for name, g in verdict.get("guarantees", {}).items()
    ]


def latency_rows(verdict: Doc) -> list[tuple[str, ...]]:
    """Figure, what it measures, p50, p90, p99, n."""
    rows = []
    for name, meaning in LATENCIES.items():
        q = verdict.get("swap_latency_ms", {}).get(name) or {}
        rows.append((name, meaning, *(number(q.get(p)) for p in ("p50", "p90", "p99", "n"))))
    return rows


def stream_line(verdict: Doc) -> str:
    """Counts that add up: attempted = ok + fail + info."""
    s = {"attempted": 0, "ok": 0, "fail": 0, "info": 0, **(verdict.get("streams") or {})}
    reasons = ", ".join(f"{n} {k}" for k, n in sorted(s.get("by_reason", {}).items()) if n)
    tail = f" ({reasons})" if reasons else ""
    return f"{s['attempted']:,} streams: {s['ok']:,} ok, {s['fail']:,} fail, {s['info']:,} info{tail}"


def swap_line(verdict: Doc) -> str:
    """Swaps by outcome and arm."""
    s = {"ok": 0, "fail": 0, "info": 0, **(verdict.get("swaps") or {})}
    arms = ", ".join(f"{a}: {_arm(c)}" for a, c in s.get("by_arm", {}).items() if a)
    return f"{s['ok']} ok, {s['fail']} fail, {s['info']} info" + (f" ({arms})" if arms else "")


def _arm(counts: object) -> str:
    if isinstance(counts, Mapping):
        return " ".join(f"{n} {k}" for k, n in counts.items() if n) or "0"
    return str(counts)


def witnesses(verdict: Doc, each: int) -> list[tuple[str, str]]:
    """(guarantee, sentence) of the first `each` witnesses of every broken guarantee."""
    return [
        (name, clean(w.get("text", w), 500))
        for name, g in verdict.get("guarantees", {}).items()
        for w in list(g.get("witnesses", []))[:each]
    ]


def client_line(verdict: Doc) -> str:
    """How late the tester itself was: the error bar of every latency above it."""
    c = verdict.get("client", {})
    lag, late = c.get("loop_lag_ms") or {}, c.get("schedule_delay_ms") or {}
    error = c.get("stamp_error_ms") or {}
    known = c.get("calibration") or {}
    how = f"calibrated at {number(known.get('streams'))} streams" if known else "by its own word: not calibrated"
    bars = (
        f"; TTFT is at most {number(error['p99'], 'ms')} too long, ITL exact to as much (p99, {how})"
        if "p99" in error
        else ""
    )
    again = f", {number(c['resent'])} requests sent again" if c.get("resent") else ""
    return (
        f"client: loop lag p99 {number(lag.get('p99'), 'ms')} (max {number(lag.get('max'), 'ms')}), "
        f"schedule delay p99 {number(late.get('p99'), 'ms')}, CPU {number(c.get('cpu'))} of a core, "
        f"dropped records {number(c.get('dropped', 0))}{again}{bars}"
    )


def hangover_line(verdict: Doc) -> str:
    """ITL after the last swap over ITL before the first."""
    h = verdict.get("hangover") or {}
    if not isinstance(h, Mapping) or h.get("ratio") is None:
        told = h.get("because") if isinstance(h, Mapping) else ""
        why = clean(told or "it needs traffic before the first and after the last swap")
        return f"hangover: not measured ({why})"
    before, after = number(h.get("before_ms")), number(h.get("after_ms"), "ms")
    return f"hangover: {number(h['ratio'])} {interval(h.get('interval'))} (ITL {before} → {after})"
