"""The report's charts: which figures of a history go into which drawing, and the sentence under each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadtest.history import I64, History
from loadtest.report import series, text, timeline
from loadtest.report.plots import Chart, Level, Region, Series, draw
from loadtest.report.series import F64, Curve, Samples
from loadtest.report.text import Doc

BEFORE, AFTER = 1.0, 2.0  # seconds around an ack
COUNTS = ("requests", "adapters")  # y axes that know no halves
ARMS = {"real": "s0", "sham": "s1", "bad": "s3"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing and its words."""

    title: str
    svg: str
    note: str


def around_swaps(recorded: History) -> list[Figure]:
    """ITL, longest gap and TTFT around the ack, per arm, against windows without a swap."""
    itl, ttft = series.gaps(recorded), series.first_tokens(recorded)
    plans = (
        ("ITL around a swap", "ITL p50, ms", itl, 0.1, 0.5),
        ("Longest gap around a swap", "longest ITL of all streams, ms", itl, 0.1, 1.0),
        ("TTFT around a swap", "TTFT p50 of streams sent then, ms", ttft, 0.25, 0.5),
    )
    quiet = series.quiet_instants(recorded, BEFORE, AFTER)
    out = [_around(recorded, quiet, *plan) for plan in plans]
    return [f for f in out if f is not None]


def _around(
    recorded: History, quiet: list[int], title: str, label: str, samples: Samples, *how: float
) -> Figure | None:
    step, q = how
    edges = np.arange(-BEFORE, AFTER + step / 2, step)
    curves = {arm: series.around(samples, series.acks(recorded, arm), edges, q) for arm in ARMS}
    curves["no swap"] = series.around(samples, quiet, edges, q)
    lines = [_curve(arm, c) for arm, c in curves.items() if not c.empty]
    if not lines or all(line.name.startswith("no swap") for line in lines):
        return None
    note = "Median over the swaps of each arm, aligned on the ack at 0 s; shaded: 95 % interval of that median"
    few = [arm for arm, c in curves.items() if not c.empty and not np.isfinite(c.low).any()]
    note += f" (none for {', '.join(few)}: fewer than six)." if few else "."
    note += (
        f" Baseline: {curves['no swap'].n} windows of this run without a swap."
        if not curves["no swap"].empty
        else " No window of this run was free of swaps for three seconds, so there is no baseline."
    )
    chart = Chart(title, note, "seconds after the ack", label, lines, (-BEFORE, AFTER), marks=[(0.0, "ack")])
    return Figure(title, draw(chart), note)


def _curve(arm: str, c: Curve) -> Series:
    name = f"{arm} (n = {c.n})"
    return Series(name, c.x, c.mid, ARMS.get(arm, "s2"), c.low, c.high)


def per_swap(recorded: History, verdict: Doc) -> list[Figure]:
    """The four latencies of every real swap, at the time of its invocation."""
    found = [
        s for s in (verdict.get("swaps") or {}).get("list") or [] if isinstance(s, dict) and s.get("arm") == "real"
    ]
    invoked = {o.name: o.invoked for o in recorded.ops}
    zero, end = timeline.origin(recorded)
    rows = [s for s in found if s.get("op") in invoked]
    x = np.array([(invoked[s["op"]] - zero) / 1e9 for s in rows])
    lines = []
    for style, name in enumerate(text.LATENCIES):
        y = np.array([_number(s.get(f"{name}_ms")) for s in rows], float)
        if np.isfinite(y).any():
            lines.append(Series(name, x, y, f"s{style}"))
    if len(rows) < 2 or not lines:
        return []
    note = "One point per real swap. " + "; ".join(f"{k}: {v}" for k, v in text.LATENCIES.items()) + "."
    span = (0.0, (end - zero) / 1e9)
    chart = Chart("Latency of each swap", note, "seconds since the start", "ms", lines, span)
    return [Figure("Latency of each swap", draw(chart), note)]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else float("nan")


def over_run(recorded: History, verdict: Doc) -> list[Figure]:
    """Token rate and ITL over the run's time axis, with phases and swaps, and the levels before and after."""
    if not len(recorded.ids):
        return []
    zero, end = timeline.origin(recorded)
    edges = series.bin_edges(zero, end)
    x = (edges[:-1] - zero + (edges[1] - edges[0]) / 2) / 1e9
    return [_rate(recorded, edges, x), _itl(recorded, verdict, edges, x)]


def _frame(
    recorded: History, words: tuple[str, str, str], lines: list[Series], levels: list[Level], height: int = 250
) -> Figure:
    """`words`: title, label of the y axis, note."""
    title, label, note = words
    zero, end = timeline.origin(recorded)
    regions = [
        Region((p.start - zero) / 1e9, (p.end - zero) / 1e9, text.clean(p.arm, 20), f"arm{p.index % 2}")
        for p in recorded.phases
    ]
    marks = [((o.invoked - zero) / 1e9, o.outcome) for o in recorded.ops if series.swap(o)]
    kept = marks[:: max(1, len(marks) // 500)]
    span = (0.0, (end - zero) / 1e9)
    chart = Chart(
        title, note, "seconds since the start", label, lines, span, regions, kept, levels, 1000, height, label in COUNTS
    )
    return Figure(title, draw(chart), note)


def _rate(recorded: History, edges: I64, x: F64) -> Figure:
    y = series.rate(recorded.at, edges)
    width = (edges[1] - edges[0]) / 1e9
    line = Series("tokens per second", x[: len(y)], y, "s0")
    levels = [
        Level(a, b, v, f"{word}: {text.number(v)} tokens/s")
        for word, a, b in _sides(recorded)
        if np.isfinite(v := _median_between(x[: len(y)], y, a, b))
    ]
    note = f"Ids read per second, in bins of {text.number(width, 's')}. Thin vertical lines: swaps invoked."
    if len(levels) == 2 and levels[0].y:
        note += f" After the last swap the rate is {text.number(levels[1].y / levels[0].y)} of that before the first."
    return _frame(recorded, ("Token rate over the run", "tokens/s", note), [line], levels)


def _sides(recorded: History) -> list[tuple[str, float, float]]:
    """("before", start, first swap) and ("after", last swap, end of sending), seconds since the start."""
    swaps = [o for o in recorded.ops if series.swap(o)]
    if not swaps:
        return []
    zero, _ = timeline.origin(recorded)
    t = recorded.streams
    start, end = int(t.sent.min(initial=2**62)), int(t.sent.max(initial=0))
    first, last = min(o.invoked for o in swaps), max(o.acked or o.invoked for o in swaps)
    sides = (("before", start, first), ("after", last, end))
    return [(word, (a - zero) / 1e9, (b - zero) / 1e9) for word, a, b in sides if b > a]


def _median_between(x: F64, y: F64, start: float, end: float) -> float:
    inside = y[(x > start) & (x < end) & np.isfinite(y)]
    return float(np.median(inside)) if len(inside) else float("nan")


def _itl(recorded: History, verdict: Doc, edges: I64, x: F64) -> Figure:
    samples = series.gaps(recorded)
    lines = [
        Series("ITL p50", x, series.over_time(samples, edges, 0.5), "s0"),
        Series("ITL p99", x, series.over_time(samples, edges, 0.99), "s1"),
    ]
    levels = [
        Level(a, b, v, f"p50 {word}: {text.number(v, 'ms')}")
        for word, a, b in _sides(recorded)
        if np.isfinite(v := _median_between(x, lines[0].y, a, b))
    ]
    note = f"Gap between two reads of one stream that brought tokens. Verdict: {text.hangover_line(verdict)}."
    return _frame(recorded, ("ITL over the run", "ms", note), lines, levels)


def target(recorded: History) -> list[Figure]:
    """What the target's own /metrics said, under the run's time axis."""
    if len(recorded.scrapes) < 2:
        return []
    t = series.scrapes(recorded)
    slots = max(r.lora_slots for r in recorded.scrapes)
    room = f"Of {slots} that fit at once." if slots > 0 else "How many fit at once is not said."
    room += " vLLM names under waiting every adapter that has a request at all."
    hits, looked = t.rates("cache_hits"), t.rates("cache_queries")
    share = np.where(looked > 0, 100 * hits / np.where(looked > 0, looked, 1.0), np.nan)
    server, client = t.rates("generation_tokens"), _client_rate(recorded, t)
    both = {"target says": server, "tokens read here": client} if np.isfinite(server).any() else {}
    plans: tuple[tuple[tuple[str, str, str], dict[str, F64]], ...] = (
        (("Requests in the target", "requests", "In the batch, and queued."), _named(t, "running", "waiting")),
        (("LoRA adapters in the target", "adapters", room), _named(t, "lora_running", "lora_waiting")),
        (("KV cache in use", "%", "Share of its blocks."), {"in use": 100 * t.gauge("kv_usage")}),
        (("Prefix cache hits", "%", "Of the prompt tokens looked up since the read before."), {"hits": share}),
        (("Token rate, as the target counts it", "tokens/s", "Beside the ids read here, in the same seconds."), both),
    )
    out = []
    for words, columns in plans:
        shown = [Series(k, t.x, y, f"s{i}") for i, (k, y) in enumerate(columns.items()) if np.isfinite(y).any()]
        if shown:
            out.append(_frame(recorded, words, shown, [], 180))
    return out


def _named(t: series.Scrapes, *names: str) -> dict[str, F64]:
    return {name.removeprefix("lora_"): t.gauge(name) for name in names}


def _client_rate(recorded: History, t: series.Scrapes) -> F64:
    """Ids read here per second between two scrapes: [n], NaN at the first."""
    counts = np.searchsorted(np.sort(recorded.at), t.at)
    return np.concatenate([[np.nan], np.diff(counts) / np.maximum(np.diff(t.at), 1) * 1e9])
