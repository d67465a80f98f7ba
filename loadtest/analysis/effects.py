"""What real swaps did beyond what sham swaps did: every effect is reported as real minus sham.

A sham swap loads the same bytes from a new path: it costs what any swap costs, and can break no version guarantee. An
arm without swaps, or without six values, leaves the interval infinite. `p` is the sign-flip test on per-swap
differences against a matched window, where there are such pairs.
"""

from __future__ import annotations

import math

import numpy as np

from loadtest.analysis.case import Case, Finding
from loadtest.analysis.ledger import Effect, Ledger, stall_effect
from loadtest.analysis.stats import clopper_pearson, cluster_rate, median_difference, rate_difference
from loadtest.history import INFO, Bool

ALARM_ARMS = ("aa", "sham")  # arms in which a version guarantee cannot be broken by a new content
Alarms = dict[str, dict[str, dict[str, object]]]


def effects(case: Case, book: Ledger) -> dict[str, Effect]:
    """Of stalls and acks in ms, and of each guarantee's share of violating streams among those a swap met."""
    arms = {arm: np.array([a == arm for a in case.swaps.arms], bool) for arm in ("real", "sham")}
    out = {"stall_ms": stall_effect(case, book), "ack_ms": _acks(case, book, arms)}
    return out | {name: _rates(book, name, arms) for name in book.flagged}


def _acks(case: Case, book: Ledger, arms: dict[str, Bool]) -> Effect:
    real, sham = (book.ack[arms[arm] & (case.swaps.outcome != INFO)] for arm in ("real", "sham"))
    value, interval = median_difference(real, sham)
    medians = [float(np.median(d)) if len(d) else math.nan for d in (real, sham)]
    return Effect(medians[0], medians[1], value, interval, math.nan)


def _rates(book: Ledger, name: str, arms: dict[str, Bool]) -> Effect:
    hits, met = book.flagged[name], book.exposed
    rates = [float(hits[mine].sum() / met[mine].sum()) if met[mine].any() else math.nan for mine in arms.values()]
    if any(math.isnan(rate) for rate in rates):
        return Effect(rates[0], rates[1], math.nan, (-math.inf, math.inf), math.nan)
    bounds = [cluster_rate(hits[mine], met[mine]) for mine in arms.values()]
    interval = rate_difference((rates[0], bounds[0]), (rates[1], bounds[1]))
    return Effect(rates[0], rates[1], rates[0] - rates[1], interval, math.nan)


def false_alarms(case: Case, findings: list[Finding]) -> Alarms:
    """arm -> guarantee -> what it accuses streams of that lived in aa and sham phases, before any real swap."""
    out: Alarms = {}
    sent, ended = case.history.streams.sent, case.ended
    real = [op.invoked for op, arm in zip(case.swaps.ops, case.swaps.arms, strict=True) if arm not in ALARM_ARMS]
    quiet = ended < min(real, default=np.iinfo(np.int64).max)
    for arm in ALARM_ARMS:
        inside = np.zeros(len(sent), bool)
        for p in case.history.phases:
            inside |= (sent >= p.start) & (ended <= p.end) & quiet if p.arm == arm else False
        n = int(inside.sum())
        if n:
            counts = {f.name: int((f.flagged & inside).sum()) for f in findings if "streams" in f.unit}
            out[arm] = {
                name: {"violations": x, "streams": n, "interval": clopper_pearson(x, n)} for name, x in counts.items()
            }
    return out


def told(alarms: Alarms, name: str) -> str:
    """ "of those in arms without a change: aa 0 of 12, sham 0 of 3", "" where there was none."""
    counts = [(arm, found[name]) for arm, found in alarms.items() if name in found]
    words = ", ".join(f"{arm} {c['violations']} of {c['streams']}" for arm, c in counts)
    return f"where nothing changed: {words}" if words else ""
