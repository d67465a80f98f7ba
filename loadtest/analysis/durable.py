"""durable: an acked load becomes visible and stays so; a refused load changes nothing. Judged per load.

Window of load k: the streams sent after k was acked and before the next operation on the adapter that was not refused
was invoked. A stream is *older* when every token's loads all ended before k began, *newer* otherwise (so an `info`
load that overwrites k accuses nobody). At least MIN_STREAMS informative streams must lie in a window for it to count.

1. lost: k is ok, no stream of its window is newer, and no token of its content was read since k was invoked, until the
   next load of that content. Where streams went on showing older versions for a while after loads that were seen in the
   end, k is given as long before it is called lost: a server ten seconds behind is stale, and loses nothing.
2. reverted: newer streams, then only older ones up to the window's end, so many that the share of older ones among
   the streams sent in between (plus one of each kind) explains them with probability under REVERT_ERROR. A server of
   which one replica lags mixes old and new all the time: that is stale, not reverted.
3. wiped: after a refused load, streams are rejected as unknown (HTTP 400, 404) or served by the base, at least two
   and from the first of them on all of them, while one was served between the operation answered before it and the
   refused load. A reload that was refused after its unload succeeded has removed the adapter by itself; that is not
   counted here (`complete` counts the streams). Nor is anything after an unload or reload without an answer, for it may
   remove the adapter at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loadtest.analysis.case import MAX_WITNESSES, Case, Finding, Witness, told
from loadtest.analysis.stats import clopper_pearson, none_seen
from loadtest.analysis.timeline import NEVER, interval
from loadtest.history import FAIL, I32, I64, INFO, OK, Bool, Op
from loadtest.records import BAD

MIN_STREAMS = 3  # guessed: fewer could all be unlucky in how they were scheduled
REVERT_ERROR = 1e-6
UNKNOWN_MODEL = (400, 404)


@dataclass(frozen=True, slots=True)
class _Adapter:
    """One adapter's streams in order of sending, [n], and its operations."""

    name: str
    ops: tuple[Op, ...]
    rows: I64  # index into the stream table
    sent: I64
    end: I64  # latest end among all candidates of all tokens; -NEVER when the stream says nothing
    served: Bool  # completed, or said something
    gone: Bool  # rejected as unknown, or served by the base
    run_content: I32  # runs of this adapter that have a candidate
    run_begin: I64


@dataclass(frozen=True, slots=True)
class _Charge:
    """One accusation."""

    op: Op
    kind: str
    stream: int  # row of the stream that shows it
    words: str


def durable(case: Case) -> Finding:
    """Rules 1 to 3 above."""
    charges: list[_Charge] = []
    judged = 0
    for adapter in sorted({op.adapter for op in case.history.ops}):
        view = _view(case, adapter)
        patience = _patience(case, view)
        for i in range(len(view.ops)):
            verdict = _judge(case, view, i, patience)
            judged += verdict is not None
            charges += [verdict] if verdict is not None and verdict.kind else []
    charges.sort(key=lambda c: (c.op.invoked, c.op.name))
    n = len(charges)
    kinds = {k: sum(c.kind == k for c in charges) for k in sorted({c.kind for c in charges})}
    return Finding(
        "durable",
        n,
        judged,
        clopper_pearson(n, judged) if n else (0.0, none_seen(judged)),
        kinds,
        tuple(_witnesses(case, charges)),
        "" if judged else f"no load was followed by {MIN_STREAMS} streams that show a version",
        "loads",
        np.zeros(len(case.history.streams), bool),
    )


def _view(case: Case, adapter: str) -> _Adapter:
    table = case.history.streams
    code = case.look.line.contents.adapters.index(adapter)
    rows = np.flatnonzero(case.owner == code).astype(np.int64)
    runs = case.dated
    dated = case.look.newest(runs.content, runs.begin) >= 0
    runs = runs.pick(dated & (case.owner[runs.stream] == code))
    end = np.full(len(table), -NEVER, np.int64)
    np.maximum.at(end, runs.stream, case.look.latest(runs.content, runs.begin))
    base = np.zeros(len(table), bool)
    base[case.attribution.fallback.stream] = True
    unknown = (table.outcome == FAIL) & np.isin(table.status, UNKNOWN_MODEL)
    served = (table.outcome == OK) & ~base | (end > -NEVER)
    return _Adapter(
        adapter,
        tuple(op for op in case.history.ops if op.adapter == adapter),
        rows,
        table.sent[rows],
        end[rows],
        served[rows],
        (unknown | base)[rows],
        runs.content,
        runs.begin,
    )


def _patience(case: Case, view: _Adapter) -> int:
    """The longest that streams went on showing older versions after a load was acked that was seen in the end."""
    codes = {label: i for i, label in enumerate(case.look.line.contents.labels)}
    first = np.full(len(codes), NEVER, np.int64)
    np.minimum.at(first, view.run_content, view.run_begin)
    longest = 0
    for op in view.ops:
        seen = NEVER if op.mode == "unload" or op.outcome != "ok" else int(first[codes[op.adapter, op.version]])
        if seen < NEVER:
            a, b = np.searchsorted(view.sent, [op.acked, seen], side="right")
            end = view.end[a:b]
            old = view.sent[a:b][(end > -NEVER) & (end < op.invoked)]
            longest = max(longest, int(old.max(initial=op.acked)) - op.acked)
    return longest


def _judge(case: Case, view: _Adapter, i: int, patience: int) -> _Charge | None:
    """None when the load cannot be judged; a charge of kind "" when it is innocent."""
    op = view.ops[i]
    outcome = interval(op)[2]
    if op.mode == "unload" or outcome == INFO:
        return None
    window = _window(case, view, i)
    if outcome == FAIL:
        return _wiped(view, i, window)
    if op.version.startswith(BAD):
        return None
    return _kept(case, view, op, window, patience)


@dataclass(frozen=True, slots=True)
class _Window:
    """Streams of an adapter in order of sending: those surely in a load's window accuse, those maybe in it excuse."""

    sure: slice
    maybe: slice


def _window(case: Case, view: _Adapter, i: int) -> _Window:
    acked = view.ops[i].acked
    following = min((o.invoked for o in view.ops[i + 1 :] if o.outcome != "fail"), default=NEVER)
    a, b = np.searchsorted(view.sent, [acked + case.epsilon, following + case.epsilon], side="right").tolist()
    c, d = np.searchsorted(view.sent, [acked - case.epsilon, following - case.epsilon], side="left").tolist()
    return _Window(slice(a, max(a, d)), slice(c, b))


def _kept(case: Case, view: _Adapter, op: Op, window: _Window, patience: int) -> _Charge | None:
    """lost, reverted or innocent."""
    end = view.end[window.sure]
    known = end > -NEVER
    rows, newer = view.rows[window.sure][known], (end + case.epsilon >= op.invoked)[known]
    if len(rows) < MIN_STREAMS:
        return None
    if not newer.any():
        seen = (view.end[window.maybe] + case.epsilon >= op.invoked).any() or _content_seen(case, view, op)
        seen |= int(view.sent[-1]) - op.acked <= patience
        words = f"none of the {len(rows)} streams sent between its ack and the next load shows {op.version}"
        return _Charge(op, "" if seen else "lost", int(rows[0]), words)
    first, last = int(np.argmax(newer)), len(newer) - 1 - int(np.argmax(newer[::-1]))
    after = len(newer) - 1 - last
    between = newer[first : last + 1]
    share = (int((~between).sum()) + 1) / (len(between) + 2)
    if after < MIN_STREAMS or share**after >= REVERT_ERROR:
        return _Charge(op, "", -1, "")
    name = case.history.streams.name
    words = (
        f"stream {name[rows[last]]} still shows {op.version} or newer, all {after} streams from {name[rows[last + 1]]} "
        f"on show only older versions"
    )
    return _Charge(op, "reverted", int(rows[last + 1]), words)


def _content_seen(case: Case, view: _Adapter, op: Op) -> bool:
    """Was a token of the load's content read since the load was invoked, and before it was loaded again?"""
    again = [o.invoked for o in view.ops if o.version == op.version and o.invoked > op.invoked]
    code = case.look.line.contents.labels.index((op.adapter, op.version))
    until = min(again, default=NEVER) + case.epsilon
    own = case.own.pick(
        (case.own.content == code) & (case.own.until + case.epsilon >= op.invoked) & (case.own.begin <= until)
    )
    for first, last in zip(own.first.tolist(), own.last.tolist(), strict=True):
        read = case.history.at[first : last + 1][case.attribution.code[first : last + 1] == code]
        if ((read + case.epsilon >= op.invoked) & (read <= until)).any():
            return True
    return False


def _wiped(view: _Adapter, i: int, window: _Window) -> _Charge | None:
    op = view.ops[i]
    if (op.mode == "reload" and op.gone) or any(_may_remove(o) for o in view.ops[:i]):
        return None
    gone, served = view.gone[window.maybe], view.served[window.maybe] & ~view.gone[window.maybe]
    surely = int(view.gone[window.sure].sum())
    if surely + int((view.served & ~view.gone)[window.sure].sum()) < 2:
        return None
    since = max((o.acked for o in view.ops[:i] if o.outcome != "info"), default=0)
    before = view.served[(view.sent > since) & (view.sent < op.invoked)]
    first = int(np.argmax(gone)) if gone.any() else 0
    # A stream may show the old version before the base takes over, so `gone` outweighs `served`.
    wiped = before.any() and surely >= 2 and not served[first:].any()
    row = int(view.rows[window.maybe][first])
    words = f"before it the adapter was served, after it {surely} streams found no adapter"
    return _Charge(op, "wiped" if wiped else "", row, words)


def _may_remove(op: Op) -> bool:
    """Whether an operation without an answer may take the adapter away, now or later."""
    return op.mode in ("unload", "reload") and interval(op)[2] == INFO


def _witnesses(case: Case, charges: list[_Charge]) -> Iterator[Witness]:
    table = case.history.streams
    for c in charges[:MAX_WITNESSES]:
        at = int(table.sent[c.stream])
        yield Witness(
            "durable",
            c.kind,
            f"{told(case, c.op, at)} stream {table.name[c.stream]} was sent, is {c.kind}: {c.words}",
            table.name[c.stream],
            c.op.adapter,
            c.op.name,
            (c.op.version,),
            at_ns=at,
            at_ms=case.ms(at),
        )
