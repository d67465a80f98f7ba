"""Latencies as serving benchmarks spell them, per arm and adapter, and the hangover.

TTFT: sent → first token read. E2EL: sent → last token read. TPOT: (last - first) / (tokens - 1) of a stream. ITL: the
gap between two reads, over all gaps of a group. All in ms. Streams that did not complete are left out of all four and
counted beside them. Tokens per second: tokens read over the time from the first send of a stream that got one to the
group's last token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from loadtest.analysis.case import Case, is_ok
from loadtest.analysis.client import lag_ms, late
from loadtest.analysis.gaps import Some
from loadtest.analysis.stats import F64, Interval, median_ratio, quantile
from loadtest.analysis.timeline import APART, TIMELESS
from loadtest.history import FAIL, INFO, OK, Bool

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SAMPLED = 1_000_000  # gaps beyond that are thinned to every n-th: a p99 of a million gaps is sharp to about 1 %
SAME_LOAD = 1.25  # two loads count as the same up to this factor; guessed
MIN_TOKENS = 8  # of a stream, for its ITL to mean something


@dataclass(frozen=True, slots=True)
class Group:
    """Streams of one arm or adapter."""

    name: str
    streams: int
    ok: int
    fail: int
    info: int
    tokens: int
    tokens_per_s: float
    figures: dict[str, dict[str, float]]  # "ttft_ms" | "itl_ms" | "tpot_ms" | "e2el_ms" -> p50, p90, p99, n


def quantiles(values: F64) -> dict[str, float]:
    """p50, p90, p99 and n; NaN without values."""
    return {**{name: quantile(values, q) for name, q in QUANTILES.items()}, "n": float(len(values))}


def tpot_ms(case: Case) -> F64:
    """[S] mean time per output token after the first, NaN where there is none."""
    t = case.history.streams
    enough = (t.tokens > 1) & ~t.text_only
    span = np.where(enough, (t.last - t.first) / 1e6, np.nan)
    out: F64 = span / np.maximum(t.tokens - 1, 1)
    return out


def group(case: Case, name: str, mine: Bool, thinned: Some) -> Group:
    """Figures of the masked streams; `thinned` from `Gaps.every`."""
    t = case.history.streams
    done = mine & is_ok(case) & (t.first > 0)
    seen = mine & (t.last > 0)
    span = (int(t.last[seen].max()) - int(t.sent[seen].min())) / 1e9 if seen.any() else math.nan
    tokens = int(t.tokens[mine].sum())
    itl, tpot = thinned.of(done), tpot_ms(case)[done]
    figures = {
        "ttft_ms": quantiles((t.first[done] - t.sent[done]) / 1e6),
        "itl_ms": quantiles((itl.end - itl.start) / 1e6),
        "tpot_ms": quantiles(tpot[~np.isnan(tpot)]),
        "e2el_ms": quantiles((t.last[done] - t.sent[done]) / 1e6),
    }
    ok, fail, info = (int((mine & (t.outcome == outcome)).sum()) for outcome in (OK, FAIL, INFO))
    rate = tokens / span if span > 0 else math.nan
    return Group(name, int(mine.sum()), ok, fail, info, tokens, rate, figures)


def by_arm(case: Case, thinned: Some) -> list[Group]:
    """One group per arm of the phases, in order of first appearance; "" is outside of any phase."""
    arms = {p.index: p.arm for p in case.history.phases}
    of = {i: arms.get(i, "") for i in np.unique(case.history.streams.phase).tolist()}
    arm = np.array([of[i] for i in case.history.streams.phase.tolist()], dtype=object)
    return [group(case, name, arm == name, thinned) for name in dict.fromkeys(of.values())]


def by_adapter(case: Case, thinned: Some) -> list[Group]:
    """One group per adapter with traffic."""
    t = case.history.streams
    return [group(case, name, t.adapter == i, thinned) for i, name in enumerate(t.adapters)]


@dataclass(frozen=True, slots=True)
class Hangover:
    """ITL after the last swap over ITL before the first; NaN where not measured."""

    ratio: float
    interval: Interval
    before_ms: float
    after_ms: float
    before: int  # streams
    after: int
    because: str  # why it could not be measured, "" when it was


def hangover(case: Case, seed: int = 0) -> Hangover:
    """Rule 10 of guarantees.py, over streams that ended before the first swap or were sent after the last."""
    nothing = (math.nan, (0.0, math.inf), math.nan, math.nan, 0, 0)
    if not len(case.swaps):
        return Hangover(*nothing, "no swap")
    if case.epsilon >= APART:
        return Hangover(*nothing, TIMELESS)
    t = case.history.streams
    itl = tpot_ms(case)
    good = is_ok(case) & (t.tokens >= MIN_TOKENS) & ~t.text_only
    rolled = [op.invoked for op in case.history.ops if op.by == "rollback"]
    before = good & (case.ended < int(case.swaps.invoked.min()))
    after = good & (t.sent > int(case.swaps.end.max())) & (case.ended < min(rolled, default=np.iinfo(np.int64).max))
    if min(before.sum(), after.sum()) < 6:
        why = f"{int(before.sum())} streams ended before the first swap, {int(after.sum())} began after the last"
        return Hangover(*nothing, why)
    before, after, same = _same_load(case, before, after)
    ratio, interval = median_ratio(itl[before], itl[after], seed)
    sides = np.array([(t.sent[side].min(), case.ended[side].max()) for side in (before, after)], np.int64)
    lag = lag_ms(case, *sides.T)
    why = late(lag) if same else "the load after the last swap was another than before the first"
    return Hangover(
        ratio,
        interval,
        float(np.median(itl[before])),
        float(np.median(itl[after])),
        int(before.sum()),
        int(after.sum()),
        why,
    )


def _same_load(case: Case, before: Bool, after: Bool) -> tuple[Bool, Bool, bool]:
    """Streams on both sides that had about as many others beside them; or all, if as many arrived per second.

    A closed loop keeps its number of open streams whatever the server does. An open loop keeps its arrivals: there a
    slower server has more streams open, and that is the effect, not another load.
    """
    t = case.history.streams
    middle = (t.sent + case.ended) // 2
    beside = np.searchsorted(t.sent, middle, side="right") - np.searchsorted(np.sort(case.ended), middle, side="left")
    usual = float(np.median(beside[after]))
    near = np.abs(beside - usual) <= max((SAME_LOAD - 1) * usual, 1.0)  # one stream more or less is no other load
    if min((before & near).sum(), (after & near).sum()) >= 6:
        return before & near, after & near, True
    rates = [_arrivals(t.sent[side]) for side in (before, after)]
    return before, after, max(rates) <= SAME_LOAD * min(rates)


def _arrivals(sent: np.typing.NDArray[np.int64]) -> float:
    span = int(sent.max()) - int(sent.min())
    return (len(sent) - 1) / span if span > 0 else math.inf
