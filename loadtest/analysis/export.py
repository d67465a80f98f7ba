"""verdict.json: a verdict as plain JSON values.

Not measured is `null`; infinite is the string "inf" (or "-inf"): JSON has no word for either. Floats carry six
significant digits. Times are ms, `at_ns` is the monotonic clock's nanoseconds.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from loadtest.analysis import ledger
from loadtest.analysis.case import Case, Witness
from loadtest.analysis.client import samples_ms
from loadtest.analysis.latency import Group, quantiles
from loadtest.analysis.result import Verdict
from loadtest.history import FAIL, INFO, OK, Bool
from loadtest.records import ReplicaAck

EXIT_CODES = {"PASS": 0, "FAIL": 1, "UNKNOWN": 2}
_OUTCOMES = {"ok": OK, "fail": FAIL, "info": INFO}


def plain(value: Any) -> Any:
    """JSON-safe copy: NaN → None, ±inf → "inf" / "-inf", tuples → lists, numpy scalars → Python's."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.6g}")


def to_json(verdict: Verdict) -> dict[str, Any]:
    """The document: DESIGN's keys and what stands behind them."""
    document = {
        "status": verdict.status,
        "required_level": verdict.require.level,
        "level_held": verdict.level_held,
        "level_broken": verdict.level_broken,
        "exit_code": EXIT_CODES[verdict.status],
        "guarantees": _guarantees(verdict),
        "gates": [
            {
                "name": g.name,
                "status": "ok" if g.ok else "failed",
                "value": float(g.value),
                "limit": float(g.limit),
                "because": g.because,
            }
            for g in verdict.gates
        ],
        "budgets": {
            b.name: {
                "status": b.status,
                "value": b.value,
                "limit": float(b.limit),
                "interval": b.interval,
                "because": b.because,
            }
            for b in verdict.budgets
        },
        "streams": _streams(verdict),
        "swaps": _swaps(verdict),
        "swap_latency_ms": _latency(verdict, "real"),
        "swap_latency_by_arm_ms": {arm: _latency(verdict, arm) for arm in sorted(set(verdict.case.swaps.arms))},
        "effects": {name: _effect(e) for name, e in verdict.effects.items()},
        "hangover": {
            "ratio": verdict.hangover.ratio,
            "interval": verdict.hangover.interval,
            "before_ms": verdict.hangover.before_ms,
            "after_ms": verdict.hangover.after_ms,
            "streams_before": verdict.hangover.before,
            "streams_after": verdict.hangover.after,
            "because": verdict.hangover.because,
        },
        "arms": [_group(g) for g in verdict.arms],
        "adapters": [_group(g) for g in verdict.adapters],
        "tokens": _tokens(verdict),
        "client": _client(verdict),
        "false_alarms": verdict.false_alarms,
    }
    return dict(plain(document))


def _guarantees(verdict: Verdict) -> dict[str, Any]:
    return {
        g.name: {
            "status": g.status,
            "required": g.required,
            "violations": g.violations,
            "exposed": g.exposed,
            "unit": g.unit,
            "interval": g.interval,
            "because": g.because,
            "kinds": g.kinds,
            "false_alarms": {arm: found[g.name] for arm, found in verdict.false_alarms.items() if g.name in found},
            "witnesses": [_witness(w) for w in g.witnesses],
        }
        for g in verdict.guarantees
    }


def _witness(w: Witness) -> dict[str, Any]:
    return {
        "text": w.text,
        "kind": w.kind,
        "stream": w.stream,
        "adapter": w.adapter,
        "swap": w.swap,
        "versions": w.versions,
        "tokens": w.tokens,
        "ids": w.ids,
        "at_ms": round(w.at_ms, 3),
        "at_ns": w.at_ns,
    }


def _streams(verdict: Verdict) -> dict[str, Any]:
    t = verdict.case.history.streams
    counts = np.bincount(t.reason, minlength=len(t.reasons)).tolist()
    fleet = next((run.replicas for run in verdict.case.history.runs if run.replicas), ())
    served = [_served(verdict, i, url) for i, url in enumerate(fleet)]
    served += [_served(verdict, i, "unknown") for i in np.unique(t.replica).tolist() if not 0 <= i < len(fleet)]
    return {
        "attempted": len(t),
        **{name: int((t.outcome == code).sum()) for name, code in _OUTCOMES.items()},
        "by_reason": {name: n for name, n in zip(t.reasons, counts, strict=True) if name and n},
        **({"by_replica": served} if fleet else {}),
    }


def _served(verdict: Verdict, replica: int, url: str) -> dict[str, Any]:
    t = verdict.case.history.streams
    mine = t.replica == replica
    counts = {name: int((mine & (t.outcome == code)).sum()) for name, code in _OUTCOMES.items()}
    return {"url": url, "attempted": int(mine.sum()), **counts}


def _swaps(verdict: Verdict) -> dict[str, Any]:
    swaps = verdict.case.swaps
    arms = np.array(swaps.arms, dtype=object)

    def counts(mask: Bool) -> dict[str, int]:
        return {name: int((mask & (swaps.outcome == code)).sum()) for name, code in _OUTCOMES.items()}

    everything = np.ones(len(swaps), bool)
    return {
        **counts(everything),
        "by_arm": {arm: counts(arms == arm) for arm in sorted(set(swaps.arms))},
        "list": [_row(verdict, i) for i in range(len(swaps))],
    }


def _row(verdict: Verdict, i: int) -> dict[str, Any]:
    case, book = verdict.case, verdict.book
    op = case.swaps.ops[i]
    return {
        "op": op.name,
        "adapter": op.adapter,
        "mode": op.mode,
        "version": op.version,
        "arm": case.swaps.arms[i],
        "by": op.by,
        "phase": op.phase,
        "outcome": {code: name for name, code in _OUTCOMES.items()}[int(case.swaps.outcome[i])],
        "status": op.status,
        "reason": op.reason,
        "message": op.message,
        "invoked_ms": round(case.ms(op.invoked), 3),
        "acked_ms": round(case.ms(op.acked), 3) if op.acked else None,
        "ack_ms": book.ack[i],
        "effect_ms": book.effect[i],
        "drain_ms": book.drain[i],
        "stall_ms": book.stall[i],
        "stall_matched_ms": book.matched[i],
        "exposed": book.exposed[i],
        "attributable": book.attributable[i],
        "across": book.across[i],
        "violations": {name: int(column[i]) for name, column in book.flagged.items()},
        **({"replicas": [_answer(case, a) for a in op.answers]} if op.answers else {}),
    }


def _answer(case: Case, a: ReplicaAck) -> dict[str, Any]:
    where = {"replica": a.replica, "outcome": a.outcome, "acked_ms": round(case.ms(a.acked_ns), 3)}
    return {**where, "status": a.status, "reason": a.reason, "message": a.message}


def _latency(verdict: Verdict, arm: str) -> dict[str, Any]:
    swaps, book = verdict.case.swaps, verdict.book
    mine = np.array([a == arm for a in swaps.arms], bool)
    mine &= swaps.outcome != FAIL if arm != "bad" else True
    columns = {"ack": book.ack, "effect": book.effect, "drain": book.drain, "stall": book.stall}
    return {name: _counted(ledger.figure(column[mine])) for name, column in columns.items()}


def _counted(figure: dict[str, Any]) -> dict[str, Any]:
    return {**figure, "n": int(figure["n"])}


def _effect(e: ledger.Effect) -> dict[str, Any]:
    return {
        "real": e.real,
        "sham": e.sham,
        "real_minus_sham": e.real_minus_sham,
        "interval": e.interval,
        "p": e.p,
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "streams": group.streams,
        "ok": group.ok,
        "fail": group.fail,
        "info": group.info,
        "tokens": group.tokens,
        "tokens_per_s": group.tokens_per_s,
        **{name: _counted(figure) for name, figure in group.figures.items()},
    }


def _tokens(verdict: Verdict) -> dict[str, Any]:
    case = verdict.case
    total = len(case.history.ids)
    return {
        "total": total,
        "attributed": case.attribution.informative,
        "share": case.attribution.informative / total if total else math.nan,
        "streams_attributed": int(case.attribution.judged.sum()),
        "method": {a: m for a, m in case.attribution.method.items() if a in case.history.streams.adapters},
        "unexplained": case.attribution.plain,
    }


def _client(verdict: Verdict) -> dict[str, Any]:
    history = verdict.case.history
    lag = samples_ms(history.health)
    if not len(lag):
        lag = np.array([h.lag_p99_ms for h in history.health], np.float64)
    late = (history.streams.sent - history.streams.intended) / 1e6
    span = sum(h.at_ns - h.from_ns for h in history.health) / 1e9
    delays, lags = quantiles(late.astype(np.float64)), quantiles(lag)
    known = history.calibration
    error = {q: lags[q] for q in ("p50", "p99")}
    if known is not None:  # the worse of what the run says of itself and what was measured from outside
        error = {"p50": np.fmax(error["p50"], known.lag_p50_ms), "p99": np.fmax(error["p99"], known.lag_p99_ms)}
    return {
        "loop_lag_ms": {
            "p50": lags["p50"],
            "p99": lags["p99"],
            "max": max((h.lag_max_ms for h in history.health), default=math.nan),
        },
        "cpu": sum(h.cpu_s for h in history.health) / span if span > 0 else math.nan,
        "schedule_delay_ms": {"p50": delays["p50"], "p99": delays["p99"]},
        # A stamp is as late as the loop was: TTFT and E2EL read that much too long, an ITL that much either way.
        "stamp_error_ms": error,
        "calibration": None if known is None else asdict(known),
        "cpu_us_per_token": 1e6 * sum(h.cpu_s for h in history.health) / len(history.ids)
        if len(history.ids)
        else math.nan,
        "open_streams": max((h.open_streams for h in history.health), default=0),
        "dropped": max((h.dropped for h in history.health), default=0),
        "resent": sum(e.what == "resent" for e in history.events),  # requests that met a closed connection
    }
