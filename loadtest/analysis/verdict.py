"""The verdict: one function that orders statuses, one that judges a history."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from loadtest.analysis import latency
from loadtest.analysis.case import Case, Finding, Witness, open_case, with_unknown
from loadtest.analysis.client import F64, late, swap_lag_ms, worst_ms
from loadtest.analysis.durable import durable
from loadtest.analysis.effects import effects, false_alarms, told
from loadtest.analysis.export import to_json as to_json
from loadtest.analysis.gaps import Gaps, gaps
from loadtest.analysis.gates import gates
from loadtest.analysis.guarantees import LEVELS, complete, valid
from loadtest.analysis.isolated import Budget, bystander_names, isolated
from loadtest.analysis.latency import Hangover, hangover
from loadtest.analysis.ledger import Ledger, ledger
from loadtest.analysis.monotonic import monotonic
from loadtest.analysis.result import Guarantee as Guarantee
from loadtest.analysis.result import Require as Require
from loadtest.analysis.result import Status
from loadtest.analysis.result import Verdict as Verdict
from loadtest.analysis.stats import quantile, quantile_interval
from loadtest.analysis.timeline import ANOTHER
from loadtest.analysis.versions import fresh, ordered, untorn
from loadtest.history import INFO, OK, Bool, History

DEFAULT_HANGOVER = 1.2  # `steady` is reported against this where the scenario sets no budget
ALL_TOKENS = ("valid", "fresh", "ordered", "monotonic")


def combine(statuses: Iterable[Status]) -> Status:
    """FAIL beats UNKNOWN beats PASS; nothing at all is UNKNOWN."""
    found = set(statuses)
    if "FAIL" in found:
        return "FAIL"
    return "PASS" if found == {"PASS"} else "UNKNOWN"


def judge(history: History, require: Require) -> Verdict:
    """Judge a history; pure, deterministic, linear in its tokens. Raises ValueError for an unknown level."""
    if require.level not in LEVELS:
        raise ValueError(f"level {require.level!r} is none of {', '.join(LEVELS)}")
    case = open_case(history, require.clock_error_ns)
    found = gaps(case)
    findings, budgets, after = _findings(case, found, require)
    book = ledger(case, found, findings)
    thinned = found.every(latency.SAMPLED)
    budgets += _ack_budget(case, book, require)
    needed = _required(case, require)
    alarms = false_alarms(case, findings)
    stated = tuple(_state(f, f.name in needed, told(alarms, f.name)) for f in findings)
    passed = gates(case, book, require.min_swaps)
    statuses: list[Status] = [g.status for g in stated if g.required]
    statuses += [b.status for b in budgets]
    if not all(g.ok for g in passed):
        statuses.append("UNKNOWN")
    by_name = {g.name: g.status for g in stated}
    held = [level for level, names in LEVELS.items() if all(by_name[n] == "PASS" for n in names)]
    broken = [level for level, names in LEVELS.items() if any(by_name[n] == "FAIL" for n in names)]
    return Verdict(
        combine(statuses),
        require,
        held[-1] if held else None,
        broken[0] if broken else None,
        stated,
        tuple(budgets),
        passed,
        case,
        book,
        effects(case, book),
        after,
        tuple(latency.by_arm(case, thinned)),
        tuple(latency.by_adapter(case, thinned)),
        alarms,
    )


def _findings(case: Case, found: Gaps, require: Require) -> tuple[list[Finding], list[Budget], Hangover]:
    """Every guarantee's finding, the budgets that came with them, and the hangover."""
    alone, budgets = isolated(case, found, require.isolated_error_rate, require.isolated_stall)
    after = hangover(case, require.seed)
    steady, limit = _steady(case, after, require.hangover)
    budgets += [limit] if require.hangover is not None else []
    judged = [complete(case), valid(case), fresh(case), untorn(case), ordered(case), monotonic(case)]
    return [*_less_blind(case, judged), alone, durable(case), steady], budgets, after


def _less_blind(case: Case, judged: list[Finding]) -> list[Finding]:
    """Guarantees over all tokens cannot PASS where a torn stream went on with tokens of nobody knows which version."""
    names = case.look.line.contents.labels
    lost = np.isin(case.own.content, [i for i, (_, label) in enumerate(names) if label == ANOTHER])
    count = len(np.unique(case.own.stream[lost]))
    if not count:
        return judged
    words = f"{count} streams go on, after a tear, with tokens that no version explains alone"
    return [with_unknown(f, words) if f.name in ALL_TOKENS else f for f in judged]


def _required(case: Case, require: Require) -> set[str]:
    """The level's guarantees, durable, isolated where somebody can be disturbed, steady where it has a budget."""
    needed = {*LEVELS[require.level], "durable"}
    if bystander_names(case):
        needed.add("isolated")
    if require.hangover is not None:
        needed.add("steady")
    return needed


def _state(finding: Finding, required: bool, alarms: str) -> Guarantee:
    status: Status = "FAIL" if finding.violations else "UNKNOWN" if finding.unknown else "PASS"
    kinds = ", ".join(f"{n} {kind}" for kind, n in finding.kinds.items())
    if status == "FAIL":
        because = f"{finding.violations} of {finding.exposed} {finding.unit} violate it ({kinds})"
        because += f"; {alarms}" if alarms else ""
    elif status == "UNKNOWN":
        because = finding.unknown
    else:
        because = f"none of {finding.exposed} {finding.unit} violates it"
    return Guarantee(
        finding.name,
        status,
        required,
        finding.violations,
        finding.exposed,
        finding.unit,
        finding.interval,
        because,
        finding.kinds,
        finding.witnesses,
    )


def _steady(case: Case, after: Hangover, budget: float | None) -> tuple[Finding, Budget]:
    """Rule 10 of guarantees.py."""
    limit = DEFAULT_HANGOVER if budget is None else budget
    low, high = after.interval
    told = f"ITL {after.before_ms:.2f} ms before, {after.after_ms:.2f} ms after: {after.ratio:.2f} times"
    words = f"{told} [{low:.2f}, {high:.2f}], {'budget' if budget is not None else 'default budget'} {limit:g}"
    status: Status = "UNKNOWN"
    if after.because:
        words = after.because
    elif low > limit:
        status = "FAIL"
    elif high <= limit:
        status = "PASS"
    bad = status == "FAIL"
    measured = not math.isnan(after.ratio)
    finding = Finding(
        "steady",
        int(bad),
        int(measured),
        (0.0, 1.0),
        {"hangover": 1} if bad else {},
        (Witness("steady", "hangover", words),) if bad else (),
        words if status == "UNKNOWN" else "",
        "runs",
        np.zeros(len(case.owner), bool),
    )
    return finding, Budget("hangover", status, after.ratio, limit, after.interval, words)


def _ack_budget(case: Case, book: Ledger, require: Require) -> list[Budget]:
    """The run's own p99: a budget is about the swaps that were made; the interval says what they tell of others.

    A time-out counts as never answered; a swap that the tester's own end cut short within the budget says nothing.
    """
    limit = require.swap_ack_p99_ms
    if limit is None:
        return []
    real = np.array([a == "real" for a in case.swaps.arms], bool) & np.isin(case.swaps.outcome, (OK, INFO))
    cut = _cut_short(case, limit)
    lost, real = int((real & cut).sum()), real & ~cut
    acks = book.ack[real]
    value, interval = quantile(acks, 0.99), quantile_interval(acks, 0.99)
    told = "∞ (more than one in a hundred was never answered)" if math.isinf(value) else f"{value:.1f} ms"
    words = f"p99 of {len(acks)} real swaps: {told}, budget {limit:g} ms"
    status: Status = "PASS" if value <= limit else "FAIL"
    if not len(acks):
        status, words = "UNKNOWN", "no real swap"
    elif status == "FAIL" and (excuse := _ack_excuse(case, real, acks, limit)):
        status, words = "UNKNOWN", f"{words}; {excuse}"
    if lost:
        status = "UNKNOWN" if status == "PASS" else status
        words += f"; {lost} more cut short by our own end"
    return [Budget("swap_ack_p99", status, value, limit, interval, words)]


def _cut_short(case: Case, limit: float) -> Bool:
    """[N] swaps whose answer we did not await as long as the budget allows: given up, or without an end on record."""
    reasons = np.array([op.reason for op in case.swaps.ops], str)
    start, end = case.swaps.invoked, case.swaps.end
    waited = (end - start) / 1e6 - worst_ms(case, start, end)
    cut: Bool = (reasons == "unfinished") | ((reasons == "cancelled") & (waited <= limit))
    return cut


def _ack_excuse(case: Case, real: Bool, acks: F64, limit: float) -> str:
    """Why acks over the budget may be the client's own lateness, "" when they cannot."""
    lag = swap_lag_ms(case)
    if late(lag) and quantile(acks, 0.99) - (lag or 0.0) <= limit:
        return late(lag)
    own = worst_ms(case, case.swaps.invoked[real], case.swaps.end[real])
    return late(float(own[acks > limit].max())) if quantile(acks - own, 0.99) <= limit else ""
