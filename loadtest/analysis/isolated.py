"""isolated (rule 8 of guarantees.py): what swaps do to those who are not swapped.

A bystander is an adapter without a swap in this run, or base. Its tokens must be its own. Where the scenario gives
budgets, two effects are judged as well, in the swaps' windows against the time outside of them:

- error rate: streams of outcome `fail` among bystander streams that overlap a window. FAIL when the budget lies below
  the exact 95 % interval and the rate outside explains it no better than chance (Fisher's test by its binomial form).
- stall: time-weighted gap, sum(overlap * gap) / sum(overlap): the gap that a random moment of a random stream falls
  into. Its ratio inside over outside; FAIL when the whole interval is over the budget, PASS when the ratio is within
  and no rare stall breaks it: swaps in whose windows a gap began that is longer than the budget times the longest one
  outside. Stalls that strike at any time begin inside with the windows' share of the time; FAIL when k of them all did
  with probability under RARE, UNKNOWN when there are fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from loadtest.analysis.case import Case, Finding, Witness, by_stream, first_streams, ids_around, overlapping, position
from loadtest.analysis.client import late, swap_lag_ms
from loadtest.analysis.gaps import Gaps, Windows, extent, median_length, outside, stalls, swap_windows
from loadtest.analysis.stats import F64, Interval, binomial_tail, clopper_pearson, mean_ratio
from loadtest.analysis.timeline import APART, TIMELESS
from loadtest.history import FAIL, Bool

Status = Literal["PASS", "FAIL", "UNKNOWN"]
BLAST = 1e-3  # chance that so many of the failures fell into swap windows without being the swaps' doing
RARE = 1e-2  # the same of stalls: two are enough where windows take up less than a tenth of the time
MIN_WINDOWS = 6  # the smallest sample whose extremes bound a median at 95 %


@dataclass(frozen=True, slots=True)
class Budget:
    """One figure against its limit."""

    name: str
    status: Status
    value: float  # NaN when not measured
    limit: float
    interval: Interval
    because: str


def bystanders(case: Case) -> Bool:
    """[S] streams of adapters without a swap, and of base; nobody is one where nothing is swapped."""
    if not len(case.swaps):
        return np.zeros(len(case.owner), bool)
    return ~np.isin(case.owner, np.unique(case.swaps.adapter))


def bystander_names(case: Case) -> list[str]:
    """Bystanders by name: those with traffic and those that were only loaded."""
    swapped = {op.adapter for op in case.swaps.ops}
    known = {*case.history.streams.adapters, *(op.adapter for op in case.history.ops)}
    return sorted(known - swapped) if swapped else []


def isolated(case: Case, found: Gaps, error_rate: float | None, stall: float | None) -> tuple[Finding, list[Budget]]:
    """The finding, and a budget for each limit given."""
    mine = bystanders(case)
    leaks = case.attribution.runs.pick(~case.attribution.own & mine[case.attribution.runs.stream])
    flagged = np.zeros(len(mine), bool)
    flagged[leaks.stream] = True
    exposed = mine & overlapping(case)
    budgets = []
    if error_rate is not None:
        budgets.append(_errors(case, mine, error_rate))
    if stall is not None:
        budgets.append(_stall(case, found.of(mine), stall))
    witnesses = [_leak(case, int(s)) for s in first_streams(case, flagged)]
    finding = by_stream(case, "isolated", flagged, exposed, {"leak": flagged}, witnesses)
    finding = replace(finding, unit="bystander streams")
    if case.epsilon >= APART:
        budgets = [replace(b, status="UNKNOWN", because=TIMELESS) for b in budgets]
    for b in budgets:
        if b.status == "FAIL":
            kinds = {**finding.kinds, b.name.removeprefix("isolated_"): 1}
            blast = Witness("isolated", b.name.removeprefix("isolated_"), b.because)
            count, seen = finding.violations + 1, (*finding.witnesses, blast)
            finding = replace(finding, violations=count, kinds=kinds, witnesses=seen)
        elif b.status == "UNKNOWN" and not finding.unknown:
            finding = replace(finding, unknown=b.because)
    return finding, budgets


def _leak(case: Case, s: int) -> Witness:
    runs = case.attribution.runs
    i = int(np.flatnonzero((runs.stream == s) & ~case.attribution.own)[0])
    t, at = case.history.streams, int(runs.begin[i])
    adapter = t.adapters[t.adapter[s]]
    owner, label = case.look.line.contents.labels[int(runs.content[i])]
    first, last = position(case, int(runs.first[i]), s), position(case, int(runs.last[i]), s)
    where = f"{int(runs.count[i])} tokens from {first} to {last} are" if last > first else f"token {first} is"
    text = f"stream {t.name[s]} of bystander {adapter}: {where} {owner}'s {label}"
    around = ids_around(case, s, first, min(last, first + 8))
    return Witness("isolated", "leak", text, t.name[s], adapter, "", (label,), (first, last), around, at, case.ms(at))


def _errors(case: Case, mine: Bool, limit: float) -> Budget:
    failed = case.history.streams.outcome == FAIL
    inside = mine & overlapping(case)
    n, x = int(inside.sum()), int((inside & failed).sum())
    m, y = int((mine & ~inside).sum()), int((mine & ~inside & failed).sum())
    interval = clopper_pearson(x, n)
    rate = x / n if n else math.nan
    words = f"{x} of {n} bystander streams failed in swap windows, {y} of {m} outside; the budget is {limit:g}"
    # Given x + y failures, each falls inside with probability n / (n + m) if swaps have nothing to do with them.
    chance = binomial_tail(x, x + y, n / (n + m)) if m else 0.0
    status: Status
    if not n:
        status, words = "UNKNOWN", "no bystander stream overlapped a swap"
    elif rate <= limit:
        status = "PASS"
    else:
        status = "FAIL" if interval[0] > limit and chance < BLAST else "UNKNOWN"
    return Budget("isolated_error_rate", status, rate, limit, interval, words)


def _stall(case: Case, found: Gaps, limit: float) -> Budget:
    windows = swap_windows(case.swaps, np.ones(len(case.swaps), bool))
    name = "isolated_stall"
    edges = extent(found)
    if edges is None or len(windows.start) < MIN_WINDOWS:
        why = f"{len(windows.start)} swap windows with bystander traffic; {MIN_WINDOWS} are needed"
        return Budget(name, "UNKNOWN", math.nan, limit, (0.0, math.inf), why)
    rest = outside(windows, *edges)
    a, b = stalls(found, windows), stalls(found, rest)
    kept, left = a.covered > 0, b.covered > 0
    if kept.sum() < MIN_WINDOWS or not left.any():
        why = f"bystanders streamed in {int(kept.sum())} swap windows and {int(left.sum())} times outside"
        return Budget(name, "UNKNOWN", math.nan, limit, (0.0, math.inf), why)
    inside, beyond = (a.weighted[kept], a.covered[kept]), (b.weighted[left], b.covered[left])
    ratio, (low, high) = mean_ratio(inside, beyond)
    excuse = late(swap_lag_ms(case))
    rare, chance, said = _rare(case, found, windows, limit, edges)
    bad = low > limit or chance < RARE
    status: Status = "FAIL" if bad and not excuse else "PASS" if ratio <= limit and not rare else "UNKNOWN"
    words = (
        f"a bystander's time-weighted gap is {_mean(a.weighted, a.covered):.1f} ms in swap windows and "
        f"{_mean(b.weighted, b.covered):.1f} ms outside: {ratio:.2f} times [{low:.2f}, {high:.2f}], budget {limit:g}"
        + (f"; {said}" if rare else "")
        + (f"; {excuse}" if excuse else "")
    )
    return Budget(name, status, ratio, limit, (low, high), words)


def _rare(case: Case, found: Gaps, windows: Windows, limit: float, edges: tuple[int, int]) -> tuple[int, float, str]:
    """(swaps with a stall beyond `limit` times the longest gap outside, its probability by chance, a sentence)."""
    usual = median_length(found)  # a gap that a swap stretches began up to a usual gap before it
    inside, longest = np.zeros(len(windows.start), np.int64), 0
    for some in found.blocks():
        length = some.end - some.start
        window = np.searchsorted(windows.start - usual, some.start, side="right") - 1
        within = (window >= 0) & (some.start < windows.end[np.maximum(window, 0)])
        np.maximum.at(inside, window[within], length[within])
        longest = max(longest, int(length[~within].max(initial=0)))
    hit = np.flatnonzero(inside > limit * longest)
    if not longest or not len(hit):
        return 0, 1.0, ""
    share = min(1.0, float((windows.end - windows.start + usual).sum()) / (edges[1] - edges[0]))
    names = ", ".join(case.swaps.ops[int(windows.swap[i])].name for i in hit[:5])
    words = (
        f"in the windows of {len(hit)} swaps ({names}) a bystander waited up to {inside.max() / 1e6:.1f} ms, "
        f"outside never over {longest / 1e6:.1f} ms"
    )
    return len(hit), share ** len(hit), words


def _mean(weighted: F64, covered: F64) -> float:
    return float(weighted.sum() / covered.sum())
