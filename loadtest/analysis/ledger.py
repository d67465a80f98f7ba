"""The swap ledger: what each swap did and how long it took.

Four latencies per swap, in ms, NaN where they mean nothing:

    ack     invoked → acked; infinite for a swap that was never answered (it counts, or time-outs would hide)
    effect  invoked → first token of the new content read after it; NaN when the content was already served (sham)
    drain   acked → last token of the old content, 0 when that was read before the ack; NaN when nothing showed it
    stall   longest gap of the adapter's streams in the swap's window; `matched` is the same in an equally long window
            just before it
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from loadtest.analysis.attribution import Runs
from loadtest.analysis.case import Case, Finding, in_flight
from loadtest.analysis.gaps import Gaps, matched_windows, stalls, swap_windows
from loadtest.analysis.latency import QUANTILES
from loadtest.analysis.stats import F64, Interval, median_difference, quantile, quantile_interval, sign_flip
from loadtest.analysis.timeline import NEVER
from loadtest.history import FAIL, I64, INFO, OK, Bool, Op


@dataclass(frozen=True, slots=True)
class Ledger:
    """One row per swap, [N]."""

    ack: F64
    effect: F64
    drain: F64
    stall: F64
    matched: F64
    exposed: I64  # streams of the adapter alive during the swap
    attributable: I64  # those of them with an informative token
    across: I64  # those already in flight when it was invoked
    flagged: dict[str, I64]  # guarantee -> violating streams alive during the swap


def ledger(case: Case, found: Gaps, findings: list[Finding]) -> Ledger:
    """Every figure of every swap."""
    n = len(case.swaps)
    effect, drain = np.full(n, np.nan), np.full(n, np.nan)
    stall, matched = np.full(n, np.nan), np.full(n, np.nan)
    exposed, attributable, across = (np.zeros(n, np.int64) for _ in range(3))
    flagged = {f.name: np.zeros(n, np.int64) for f in findings if f.unit == "streams"}
    runs = case.own
    for adapter in np.unique(case.swaps.adapter):
        rows = np.flatnonzero(case.swaps.adapter == adapter)
        streams = case.owner == adapter
        start, end = case.swaps.invoked[rows], case.swaps.end[rows]
        exposed[rows] = in_flight(case, streams, start, end)
        attributable[rows] = in_flight(case, streams & case.attribution.judged, start, end)
        across[rows] = _across(case, streams & case.attribution.judged, start)
        for f in findings:
            if f.name in flagged:
                flagged[f.name][rows] = in_flight(case, streams & f.flagged, start, end)
        _stalls(case, found.of(streams), case.swaps.adapter == adapter, stall, matched)
        mine = runs.pick(streams[runs.stream])
        effect[rows], drain[rows] = _visible(case, mine, rows)
    lost = case.swaps.outcome == INFO
    ack = np.where(lost, np.inf, (case.swaps.end - case.swaps.invoked) / 1e6)
    return Ledger(ack, effect, drain, stall, matched, exposed, attributable, across, flagged)


def _across(case: Case, streams: Bool, start: I64) -> I64:
    """Streams that began before `start[i]` and ended after it: the users whom the swap met in the middle.

    Not "and ended after the ack": a server that drains acks only when they have ended, and has met them all the same.
    """
    sent, ended = case.history.streams.sent[streams], case.ended[streams]
    return np.array([int(((sent < a) & (ended > a)).sum()) for a in start], np.int64)


def _stalls(case: Case, found: Gaps, which: Bool, stall: F64, matched: F64) -> None:
    """Fill the stall columns of one adapter's swaps."""
    windows = swap_windows(case.swaps, which)
    quiet = matched_windows(case.swaps, windows)
    stall[windows.swap] = stalls(found, windows).longest_ms
    matched[quiet.swap] = stalls(found, quiet).longest_ms


def _visible(case: Case, runs: Runs, rows: I64) -> tuple[F64, F64]:
    """(effect, drain) of one adapter's swaps, in the order of `rows`."""
    order = np.argsort(runs.content, kind="stable")
    content = runs.content[order]
    codes = {key: i for i, key in enumerate(case.look.line.contents.labels)}
    effect, drain = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for n, row in enumerate(rows.tolist()):
        op = case.swaps.ops[row]
        old, again = _neighbours(case, op)
        if case.swaps.outcome[row] == FAIL or old == op.version:
            continue
        new = _rows_of(order, content, codes[op.adapter, op.version])
        new = new[(runs.begin[new] >= op.invoked) & (runs.begin[new] < again)]
        if len(new):
            effect[n] = (int(runs.begin[new].min()) - op.invoked) / 1e6
        if case.swaps.outcome[row] == OK and old:
            drain[n] = _drain(case, runs, _rows_of(order, content, codes[op.adapter, old]), op, old)
    return effect, drain


def _rows_of(order: I64, content: np.typing.NDArray[np.int32], code: int) -> I64:
    """Runs of one content."""
    a, b = np.searchsorted(content, code, side="left"), np.searchsorted(content, code, side="right")
    return order[a:b].astype(np.int64)


def _neighbours(case: Case, op: Op) -> tuple[str, int]:
    """(label in service before the swap, "" for unknown; when its own content is next loaded)."""
    before = [o.version for o in _loads(case, op.adapter) if o.invoked < op.invoked]
    return (before[-1] if before else ""), _again(case, op, op.version)


def _loads(case: Case, adapter: str) -> list[Op]:
    """Loads of one adapter that may have applied."""
    return [o for o in case.history.ops if o.adapter == adapter and o.mode != "unload" and o.outcome != "fail"]


def _again(case: Case, op: Op, label: str) -> int:
    """When a content of the swap's adapter is next loaded after the swap; NEVER if it is not."""
    at = (o.invoked for o in _loads(case, op.adapter) if o.version == label and o.invoked > op.invoked)
    return min(at, default=NEVER)


def _drain(case: Case, runs: Runs, old: I64, op: Op, label: str) -> float:
    """From the ack of `op` to the last token of the runs `old` of content `label`, before that is loaded again."""
    limit = _again(case, op, label)
    old = old[runs.begin[old] < limit]
    if not len(old):
        return math.nan
    return max(0.0, (min(int(runs.until[old].max()), limit) - op.acked) / 1e6)


def figure(values: F64) -> dict[str, float | Interval]:
    """p50, p90, p99 of the sample, n, and `interval`: order statistics that hold the median of all such swaps.

    `interval_p90`, `interval_p99` likewise; their upper ends are infinite where n is too small to tell.
    """
    kept = values[~np.isnan(values)]
    out: dict[str, float | Interval] = {name: quantile(kept, q) for name, q in QUANTILES.items()}
    out["n"] = float(len(kept))
    for name, q in QUANTILES.items():
        low, high = quantile_interval(kept, q)
        out["interval" if name == "p50" else f"interval_{name}"] = (max(low, 0.0), high)
    return out


@dataclass(frozen=True, slots=True)
class Effect:
    """Stall in the swap's window minus stall in the matched one, real swaps against sham swaps, ms."""

    real: float  # median of the differences; NaN without any
    sham: float
    real_minus_sham: float
    interval: Interval
    p: float  # sign-flip test that real swaps do not stall


def stall_effect(case: Case, book: Ledger) -> Effect:
    """What a real swap adds to the longest gap beyond what a sham swap does."""
    arm = np.array(case.swaps.arms, dtype=object)
    difference = book.stall - book.matched
    known = ~np.isnan(difference)
    real, sham = (difference[known & (arm == a)] if len(arm) else difference for a in ("real", "sham"))
    value, interval = median_difference(real, sham)
    medians = [float(np.median(d)) if len(d) else math.nan for d in (real, sham)]
    return Effect(medians[0], medians[1], value, interval, sign_flip(real))
