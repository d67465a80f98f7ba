"""Guarantees, decided from the history: the rules, the levels, and the two guarantees that need no order.

Loads k of one adapter are intervals [start, end] = [invoked, acked]; equal labels are equal content. A load that was
refused is no candidate; one without a readable answer (`info`) may apply at any time from its invocation on, for
ever. x ≺ y: x.end + clock error < y.start. What is concurrent accuses nobody.

Rules
1. Candidates of a token: the loads of its content that were not refused and not invoked after the token was read.
   They depend on the token only through its content and its arrival; a token that says nothing has no say.
2. complete: a stream of outcome `fail` violates, and so does an `ok` one that its own figures contradict (no finish,
   no [DONE], ids ≠ usage, ids ≠ max_tokens under ignore_eos). `info` streams never violate; stalled and unfinished
   ones keep it UNKNOWN, cancelled ones do not.
3. valid: every informative token has a candidate of the stream's own adapter. Kinds: `prophetic` (all its loads are
   invoked later), `aborted` (the loads begun by then were refused), `leak` (another adapter's content), `fallback` (the
   base's tokens), `alien` (this adapter's content that this run never loads). What a stream shows that was sent before
   the run's own setup of the adapter was acked may have been there before: only a leak is held against it.
4. fresh: not every candidate of a token is superseded. A load is superseded for stream r when an ok load k' of the
   adapter was acked ≺ send(r) and load ≺ k'. An `info` load is never superseded.
5. untorn: all informative tokens of the stream's own adapter have one content.
6. ordered: loads can be chosen for the tokens of a stream so that no later token's load ≺ an earlier token's load.
   Tokens with an `info` candidate constrain nothing.
7. monotonic: loads can be chosen for the tokens of all streams of an adapter so that for tokens x of r and y of r'
   with x read ≺ send(r'), not load(y) ≺ load(x). The least such choice is computed as a fixed point; a stream
   violates when even the least choice leaves one of its tokens without a load. Tokens with an `info` candidate and
   violating tokens constrain nothing.
8. isolated: no token of a bystander (an adapter without swaps, or base) is another adapter's; its error rate and
   time-weighted stall in swap windows stay within their budgets, where budgets are given.
9. durable: judged per load, see `durable.py`: `lost`, `reverted`, `wiped`.
10. steady: hangover = median ITL of streams after the last swap over that of streams before the first, at the same
   load and by a client that was not late. FAIL only when the whole 95 % interval is over the budget, PASS when the
   whole interval is within.
11. A guarantee with a violation is FAIL; else UNKNOWN when nothing was exposed to it or evidence is missing; else
   PASS. The same order holds for the run (`verdict.combine`).
12. Joint claims (say, fresh and ordered by the same choice of loads) are not checked jointly: each guarantee is
   judged alone, and can only be violated less often than the conjunction.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loadtest.analysis.attribution import Runs
from loadtest.analysis.case import (
    Case,
    Finding,
    Witness,
    by_stream,
    first_streams,
    ids_around,
    is_ok,
    position,
    swap_of,
    told,
    versions_of,
    who,
    with_unknown,
)
from loadtest.analysis.timeline import NEVER, UNEXPLAINED
from loadtest.history import FAIL, INFO, Op

GUARANTEES = (
    "complete",
    "valid",
    "fresh",
    "untorn",
    "ordered",
    "monotonic",
    "isolated",
    "durable",
    "steady",
)
_SAFE = ("valid", "complete")
_REGULAR = (*_SAFE, "fresh")
LEVELS: dict[str, tuple[str, ...]] = {  # weakest first
    "safe": _SAFE,
    "token-regular": _REGULAR,
    "token-atomic": (*_REGULAR, "ordered", "monotonic"),
    "stream-regular": (*_REGULAR, "untorn"),
    "stream-atomic": (*_REGULAR, "untorn", "monotonic"),
}
_OPEN = ("stalled", "unfinished")  # streams of which nobody can say whether they would have completed


def complete(case: Case) -> Finding:
    """Rule 2."""
    table = case.history.streams
    reasons = np.array(table.reasons, dtype=object)[table.reason] if len(table) else np.empty(0, object)
    found = np.where(table.outcome == FAIL, reasons, _contradiction(case))
    found[(table.outcome == FAIL) & (found == "")] = "unexplained"
    flagged = found != ""
    kinds = {str(kind): found == kind for kind in sorted(set(found[flagged]))}
    witnesses = [_incomplete(case, int(s), str(found[s])) for s in first_streams(case, flagged)]
    finding = by_stream(case, "complete", flagged, table.outcome != INFO, kinds, witnesses)
    waiting = int(np.isin(reasons.astype(str), _OPEN).sum())
    return with_unknown(finding, f"{waiting} streams stalled or were never seen to end" if waiting else "")


def _contradiction(case: Case) -> npt.NDArray[np.object_]:
    """Why a stream that the client called ok is not, "" otherwise: [S]."""
    t = case.history.streams
    ok = is_ok(case)
    counted, exact = ok & ~t.text_only & (t.usage >= 0), ok & ~t.text_only & t.ignore_eos
    unfinished = np.array([f == "" for f in t.finish], bool)
    found = np.full(len(t), "", dtype=object)
    found[(counted & (t.tokens > t.usage)) | (ok & ~t.text_only & (t.tokens > t.max_tokens))] = "duplicated"
    found[(counted & (t.tokens < t.usage)) | (exact & (t.tokens < t.max_tokens))] = "truncated"
    found[ok & (unfinished | ~t.done)] = "truncated"
    found[ok & (t.status != 200)] = "rejected"
    return found


def _incomplete(case: Case, s: int, kind: str) -> Witness:
    t = case.history.streams
    adapter, at = t.adapters[t.adapter[s]], int(case.ended[s])
    words = f": {t.detail[s]}" if t.detail[s] else ""
    usage = f", usage says {int(t.usage[s])}" if t.usage[s] >= 0 else ""
    around = case.swaps.ops[int(case.cluster[s])] if case.cluster[s] >= 0 else None
    after = f"; last {told(case, around, at)}" if around else ""
    text = (
        f"{who(case, s)}: {kind} after {int(t.tokens[s])} of {int(t.max_tokens[s])} tokens, "
        f"{(at - int(t.sent[s])) / 1e6:.1f} ms after it was sent{usage}{words}{after}"
    )
    return Witness(
        "complete",
        kind,
        text,
        t.name[s],
        adapter,
        around.name if around else "",
        at_ns=at,
        at_ms=case.ms(at),
    )


def valid(case: Case) -> Finding:
    """Rule 3."""
    runs, own = case.attribution.runs, case.attribution.own
    line = case.look.line
    where = run_kinds(case)
    size = len(case.history.streams)
    kinds = {name: np.zeros(size, bool) for name in ("prophetic", "aborted", "leak", "fallback", "alien")}
    for name, mask in kinds.items():
        mask[runs.stream[where == name]] = True
    kinds["fallback"][case.attribution.fallback.stream] = True
    flagged = np.logical_or.reduce(list(kinds.values()))
    chosen = first_streams(case, flagged)
    bad = runs.pick(where != "")
    labels = where[where != ""]
    witnesses = [_invalid(case, int(s), bad, labels) for s in chosen]
    finding = by_stream(case, "valid", flagged, case.attribution.judged, kinds, witnesses)
    mute = not own.any() and not line.contents.marked.any()
    return with_unknown(finding, "no adapter has markers: no token can be attributed" if mute else "")


def run_kinds(case: Case) -> npt.NDArray[np.object_]:
    """What is wrong with each run, "" for nothing: [R]."""
    runs, own, line = case.attribution.runs, case.attribution.own, case.look.line
    out = np.full(len(runs), "", dtype=object)
    out[~own] = "leak"
    orphan = own & (case.look.newest(runs.content, runs.begin) < 0)
    mine = line.contents.adapter[runs.content]
    explained = line.unknown_from[mine] <= runs.begin + case.epsilon
    explained |= case.history.streams.sent[runs.stream] <= line.ours_from[mine] + case.epsilon
    orphan &= ~explained
    refused = np.full(len(line.contents.labels), NEVER, np.int64)
    no = line.outcome == FAIL
    np.minimum.at(refused, line.content[no], line.start[no])
    aborted = orphan & (refused[runs.content] <= runs.begin + case.epsilon)
    unknown = orphan & ~aborted & (case.look.first_start[runs.content] == NEVER) & (refused[runs.content] == NEVER)
    out[orphan] = "prophetic"
    out[aborted] = "aborted"
    out[unknown] = "alien"
    return out


def _invalid(case: Case, s: int, bad: Runs, labels: npt.NDArray[np.object_]) -> Witness:
    """Witness of a stream's earliest invalid token."""
    t, falls = case.history.streams, case.attribution.fallback
    adapter = t.adapters[t.adapter[s]]
    mine, base = np.flatnonzero(bad.stream == s), np.flatnonzero(falls.stream == s)
    if len(base) and (not len(mine) or falls.first[base[0]] < bad.first[mine[0]]):
        run, i, kind = falls, int(base[0]), "fallback"
        said, op = "no version's markers, so the base's", None
    else:
        run, i, kind = bad, int(mine[0]), str(labels[mine[0]])
        said, op = _accusation(case, kind, int(bad.content[i]), int(bad.begin[i]))
    first, last, at = position(case, int(run.first[i]), s), position(case, int(run.last[i]), s), int(run.begin[i])
    where = f"token {first} is" if first == last else f"tokens {first}..{last} are"
    text = f"{who(case, s)}: {where} {said} ({kind})"
    name, versions = op.name if op else "", () if kind == "fallback" else versions_of(case, bad.content[i : i + 1])
    around = ids_around(case, s, first, min(last, first + 8))
    return Witness("valid", kind, text, t.name[s], adapter, name, versions, (first, last), around, at, case.ms(at))


def _accusation(case: Case, kind: str, content: int, at: int) -> tuple[str, Op | None]:
    """What a run of a content is accused of, and the operation that shows it."""
    line = case.look.line
    owner, label = line.contents.labels[content]
    if kind == "leak":
        return f"{owner}'s {label}", swap_of(case, content, at)
    if kind == "alien":
        return label if label == UNEXPLAINED else f"{label}, which this run never loads", None
    if kind == "aborted":
        begun = [i for i in line.of(content, refused=True) if line.start[i] <= at + case.epsilon]
        op = line.ops[begun[-1]]
        return f"{label}, which the server had refused: {told(case, op, at)}", op
    later = [int(i) for i in line.of(content)] or [int(i) for i in line.of(content, refused=True)]
    op = line.ops[later[0]]
    wait = f"{(op.invoked - at) / 1e6:.1f} ms after it was read" if op else ""
    return f"{label}, invoked as {op.name if op else '?'} {wait}", op
