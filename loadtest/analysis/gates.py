"""Gates: conditions without which a run proves nothing. A failed gate turns PASS into UNKNOWN, never into FAIL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loadtest.analysis.case import Case, overlapping
from loadtest.analysis.client import LAG_LIMIT_MS, STANDSTILL_MS, swap_lag_ms, worst_ms
from loadtest.analysis.isolated import bystander_names, bystanders
from loadtest.analysis.ledger import Ledger
from loadtest.analysis.noise import ALPHA, DRIFT
from loadtest.analysis.stats import binomial_tail
from loadtest.analysis.timeline import NEVER, clock_domains
from loadtest.analysis.trust import trust
from loadtest.analysis.versions import floors
from loadtest.history import OK, Bool, History

ATTRIBUTABLE = 0.5
NOISE_LIMIT = 2 * DRIFT  # a share that drift at the rate of DRIFT does not reach by chance in a run worth judging
IN_ORDER = ("complete", "run_time")


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition. `value` and `limit` in the unit that `because` names."""

    name: str
    ok: bool
    value: float
    limit: float
    because: str


def gates(case: Case, book: Ledger, min_swaps: int) -> tuple[Gate, ...]:
    """All gates, in the order in which they should be read."""
    return (*_coverage(case, book, min_swaps), *_client(case), *_record(case))


def _coverage(case: Case, book: Ledger, min_swaps: int) -> Iterator[Gate]:
    real = np.array([a == "real" for a in case.swaps.arms], bool) & (case.swaps.outcome == OK)
    exposed = int((real & (book.attributable > 0)).sum())
    words = f"{exposed} real swaps were acked ok with an attributable stream in flight, {min_swaps} are required"
    yield Gate("exposed_swaps", exposed >= min_swaps, exposed, min_swaps, words)
    across = int((real & (book.across > 0)).sum())
    words = f"{across} real swaps met an attributable stream in mid-flight, {min_swaps} are required"
    yield Gate("overlap", across >= min_swaps, across, min_swaps, words)
    met = np.zeros(len(case.owner), bool)
    for adapter in np.unique(case.swaps.adapter):
        met |= (case.owner == adapter) & overlapping(case, int(adapter))
    share = float(case.attribution.judged[met].mean()) if met.any() else 0.0
    words = f"{100 * share:.0f} % of {int(met.sum())} exposed streams are attributable, 50 % are required"
    yield Gate("attributable", share >= ATTRIBUTABLE, share, ATTRIBUTABLE, words)
    yield from _scored(case)
    yield from _bystanders(case)
    yield _noise(case)
    yield from _replicas(case, met & case.attribution.judged)
    if any(op.mode == "unload" and op.outcome == "ok" for op in case.history.ops):
        served = int(_served_unloaded(case).sum())
        words = (
            f"{served} streams were served after the unload of their adapter was acked, and before it was loaded again"
        )
        yield Gate("unloaded", served == 0, served, 0, words)
    bad = np.array([a == "bad" for a in case.swaps.arms], bool)
    if bad.any():
        taken = int((bad & (case.swaps.outcome == OK)).sum())
        words = f"{taken} of {int(bad.sum())} loads that must be refused were accepted; what they serve is unknown"
        yield Gate("bad_refused", taken == 0, taken, 0, words)


def _replicas(case: Case, told: Bool) -> Iterator[Gate]:
    """A fleet's: all of it took what one took, and all of it was looked at. `told`: exposed attributable streams."""
    answered = {a.replica for op in case.history.ops for a in op.answers}
    if not answered:
        return
    split = sum(len({a.outcome for a in op.answers}) > 1 for op in case.history.ops)
    words = f"{split} operations were answered differently by the replicas; what the fleet serves then is unknown"
    yield Gate("replicas_agree", split == 0, split, 0, words)
    idle = sorted(answered - set(case.history.streams.replica[told].tolist()))
    words = f"replicas without an attributable stream during a swap: {', '.join(map(str, idle)) or 'none'}"
    yield Gate("replicas_met", not idle, len(idle), 0, words)


def _served_unloaded(case: Case) -> Bool:
    """[S] streams that were sent after an acked bare unload of their adapter and got tokens before a load."""
    table, ops, clock = case.history.streams, case.history.ops, case.epsilon
    out = np.zeros(len(table), bool)
    for op in ops:
        if op.mode == "unload" and op.outcome == "ok" and op.acked and op.adapter in table.adapters:
            loads = [o for o in ops if o.adapter == op.adapter and o.mode != "unload" and o.outcome != "fail"]
            late = (o.invoked for o in loads if o.outcome != "ok" or not o.acked or o.acked + clock >= op.invoked)
            again = min(late, default=NEVER)
            mine = table.adapter == table.adapters.index(op.adapter)
            out |= mine & (table.sent > op.acked + clock) & (table.first > 0) & (table.first + clock < again)
    return out


def _scored(case: Case) -> Iterator[Gate]:
    """Adapters without markers: the scores were made, and the run itself shows that they can be trusted."""
    scores = case.history.scores
    if not scores.adapters:
        return
    proof = trust(case.history)
    words = proof.because if not scores.incomplete else f"not all streams were scored: {scores.incomplete}"
    good = bool(proof.method) and not scores.incomplete
    yield Gate("scored", good, len(scores.margins) + len(scores.references), 0, words)


def _bystanders(case: Case) -> Iterator[Gate]:
    names = bystander_names(case)
    if not names:
        return
    met, table = bystanders(case) & overlapping(case), case.history.streams
    idle = [n for n in names if n not in table.adapters or not (met & (table.adapter == table.adapters.index(n))).any()]
    words = f"bystanders without a stream during a swap: {', '.join(idle)}" if idle else f"{len(names)} had streams"
    yield Gate("bystanders", not idle, len(idle), 0, words)


def _noise(case: Case) -> Gate:
    """Noise beyond what the tests of attribution assume, or odd tokens that are neither noise nor evidence."""
    noise = case.attribution.noise
    share = noise.plain / noise.tokens if noise.plain else 0.0
    words = f"{100 * share:.2f} % of the tokens of marker adapters are no marker, {100 * NOISE_LIMIT:g} % are tolerated"
    if noise.unexplained:
        words += (
            f"; {noise.strays} tokens carry another content's marker, which chance explains with probability "
            f"{noise.chance:.1g} and which accuses nobody beside {noise.plain} plain ones"
        )
    doubts = [*case.attribution.doubts, *_silenced(case)]
    good = share <= NOISE_LIMIT and not noise.unexplained and not doubts
    return Gate("noise", good, share, NOISE_LIMIT, "; ".join([words, *doubts]))


def _silenced(case: Case) -> list[str]:
    """Streams of one or two tokens that a guarantee would accuse, had no plain token been seen: too many for drift."""
    runs = case.attribution.silent
    if not len(runs):
        return []
    start, _ = floors(case, runs)
    end = case.look.latest(runs.content, runs.begin)
    odd = (case.look.line.contents.adapter[runs.content] != case.owner[runs.stream]) | (end + case.epsilon < start)
    x, n = int(odd.sum()), len(runs)
    if not x or binomial_tail(x, n, DRIFT) >= ALPHA:
        return []
    return [
        f"{x} of {n} streams of one or two tokens show a superseded version or another adapter's, too many for drift"
    ]


def _client(case: Case) -> Iterator[Gate]:
    lag = swap_lag_ms(case)
    if lag is None:
        yield Gate("client_lag", False, 0, LAG_LIMIT_MS, "the client's event loop lag during swaps was not recorded")
    else:
        words = f"event loop lag p99 in swap windows: {lag:.1f} ms, at most {LAG_LIMIT_MS:g} ms"
        worst = float(worst_ms(case, case.swaps.invoked, case.swaps.end).max(initial=0.0))
        if worst >= STANDSTILL_MS:  # one sample among hundreds, which no p99 shows
            words = f"the client stood still for {worst / 1000:.1f} s in a swap's window"
            lag = worst
        yield Gate("client_lag", lag <= LAG_LIMIT_MS, lag, LAG_LIMIT_MS, words)
    dropped = max((h.dropped for h in case.history.health), default=0)
    yield Gate("dropped", dropped == 0, dropped, 0, f"{dropped} records could not be written")


def _record(case: Case) -> Iterator[Gate]:
    history = case.history
    domains = len(clock_domains(history))
    words = f"{domains} clock domains: times of different machines do not compare" if domains != 1 else "one clock"
    yield Gate("clock", domains == 1, domains, 1, words)
    ended = {e.reason for e in history.ends}
    open_files = max(len(history.runs) - len(history.ends), 0)
    missing = [e.detail for e in history.events if e.what == "worker_missing"]
    good = open_files == 0 and bool(ended) and ended <= set(IN_ORDER) and not missing
    how = ", ".join(sorted(ended - set(IN_ORDER))) or f"{open_files} of {len(history.runs)} files have no end"
    how = f"missing: {', '.join(missing[:3])}" if missing and not open_files else how
    words = "the run ended in order" if good else f"the run did not end in order: {how}"
    yield Gate("closed", good, open_files, 0, words)
    died = [e.detail or e.what for e in history.events if e.what == "target_died"]
    gone = bool(died) or "target_died" in ended
    words = f"the target died: {' '.join(died[:1])}" if gone else "the target stayed up"
    yield Gate("target_alive", not gone, len(died), 0, words)
    stalled = sum(history.streams.reasons[i] in ("stalled", "unfinished") for i in history.streams.reason.tolist())
    share = stalled / len(history.streams) if len(history.streams) else 0.0
    yield Gate("stalled", stalled == 0, share, 0, f"{stalled} streams stalled or were never seen to end")
    lost = len(history.problems)
    words = f"{lost} problems reading the history, first: {history.problems[0]}" if lost else "every line was readable"
    yield Gate("readable", lost == 0, lost, 0, words)
    left = _left_behind(history)
    if left:  # said only then: a run that swaps nothing has nothing to undo
        yield Gate("undone", False, len(left), 0, f"left hotfixed, for the rollback failed: {', '.join(left[:5])}")
    last = {op.adapter: op for op in history.ops if op.by == "setup"}  # a name already loaded is taken over by a second
    refused = [op.name for op in last.values() if op.outcome != "ok"]
    words = f"setup loads that were not acked: {', '.join(refused[:5])}" if refused else "every adapter was set up"
    yield Gate("setup", not refused, len(refused), 0, words)


def _left_behind(history: History) -> list[str]:
    """Adapters whose undo was tried and did not succeed in the end, here or by the next run's start."""
    undo = {(u.adapter, u.url): u.state for u in history.undo}
    rollback = {op.adapter: op.outcome for op in history.ops if op.by == "rollback"}
    found = {name for (name, _), state in undo.items() if state == "failed"}
    played = {name for (name, _), state in undo.items() if state == "played"}
    return sorted(found | {name for name, outcome in rollback.items() if outcome != "ok"} - played)
