"""What every guarantee is judged from, and what a judgement is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from loadtest.analysis.attribution import Attribution, Runs, adapter_codes, attribute
from loadtest.analysis.stats import Interval, cluster_rate
from loadtest.analysis.timeline import Lookup, interval, lookup, timeline
from loadtest.history import I8, I32, I64, INFO, OK, Bool, History, Op
from loadtest.records import BAD

MAX_WITNESSES = 20  # per guarantee; counts are always complete
AROUND = 2  # token ids shown on either side of an interval


@dataclass(frozen=True, slots=True)
class Swaps:
    """Hotfixes by the scenario or an operator, sorted by invocation; [N] each. Setup and rollback are none."""

    ops: tuple[Op, ...]
    arms: tuple[str, ...]  # "real" | "sham" | "bad"
    adapter: I32  # code into Contents.adapters
    invoked: I64
    end: I64  # when acked; when invoked for an operation that never was
    outcome: I8

    def __len__(self) -> int:
        return len(self.ops)


@dataclass(frozen=True, slots=True)
class Case:
    """A history with everything derived from it once."""

    history: History
    look: Lookup
    attribution: Attribution
    owner: I32  # [S] adapter code of each stream
    swaps: Swaps
    ended: I64  # [S] end of the stream; its last sign of life when the end was not recorded
    cluster: I64  # [S] the newest swap invoked before the stream ended, -1 for none
    own: Runs  # runs of the stream's own adapter
    dated: Runs  # the same, each beginning at its first token that has a candidate (see `_dated`)
    origin: int  # ns; all relative times count from here

    @property
    def epsilon(self) -> int:
        """Clock error in ns."""
        return self.look.line.epsilon

    def ms(self, at: int) -> float:
        """Milliseconds since the run began."""
        return (int(at) - self.origin) / 1e6


@dataclass(frozen=True, slots=True)
class Witness:
    """The smallest evidence of one violation. Empty strings, () and -1 stand for "does not apply"."""

    guarantee: str
    kind: str
    text: str  # one sentence
    stream: str = ""
    adapter: str = ""
    swap: str = ""
    versions: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()  # 0-based positions in the stream: (last old, first new), or the token
    ids: tuple[int, ...] = ()  # ids from AROUND before tokens[0] to AROUND after tokens[-1]
    at_ns: int = 0  # when the deciding token, or answer, was read
    at_ms: float = 0.0  # the same since the run began


@dataclass(frozen=True, slots=True)
class Finding:
    """A guarantee before levels and requirements are applied. FAIL iff violations > 0; else UNKNOWN iff `unknown`."""

    name: str
    violations: int
    exposed: int
    interval: Interval  # of violations per exposed
    kinds: dict[str, int]
    witnesses: tuple[Witness, ...]
    unknown: str  # why it cannot be PASS, "" if it can
    unit: str  # what is counted: "streams", "bystander streams", "loads", "runs"
    flagged: Bool  # [S] streams that violate; all False where streams are not the unit


def open_case(history: History, epsilon: int = 0) -> Case:
    """Derive everything the guarantees share."""
    look = lookup(timeline(history, epsilon))
    swaps = _swaps(history, look)
    table = history.streams
    ended = np.where(table.ended > 0, table.ended, np.maximum(table.sent, table.last))
    starts = [r.started_ns for r in history.runs if r.started_ns > 0]
    first = [int(table.sent[0])] if len(table) else []
    attribution = attribute(history, look)
    own = attribution.runs.pick(attribution.own)
    return Case(
        history,
        look,
        attribution,
        adapter_codes(history, look.line.contents),
        swaps,
        ended,
        np.searchsorted(swaps.invoked, ended, side="right") - 1,
        own,
        _dated(history, look, attribution.code, own),
        min(starts or first or [0]),
    )


def _dated(history: History, look: Lookup, code: I32, own: Runs) -> Runs:
    """Runs as they count for order. The candidates of a run can only grow, so its first token is the one that can be
    accused; but a run that begins before its content was invoked has its first candidate later, or never.
    """
    early = np.flatnonzero(look.newest(own.content, own.begin) < 0)
    first, begin = own.first.copy(), own.begin.copy()
    for i in early.tolist():
        tokens = np.arange(own.first[i], own.last[i] + 1)
        known = (code[tokens] == own.content[i]) & (
            history.at[tokens] + look.line.epsilon >= look.first_start[own.content[i]]
        )
        if known.any():
            first[i] = tokens[int(np.argmax(known))]
            begin[i] = history.at[first[i]]
    return replace(own, first=first, begin=begin)


def _swaps(history: History, look: Lookup) -> Swaps:
    ops = tuple(op for op in history.ops if op.by in ("scenario", "operator") and op.mode != "unload")
    names = look.line.contents.adapters
    return Swaps(
        ops,
        tuple(arm_of(op) for op in ops),
        np.array([names.index(op.adapter) for op in ops], np.int32),
        np.array([op.invoked for op in ops], np.int64),
        np.array([max(op.acked, op.invoked) for op in ops], np.int64),
        np.array([interval(op)[2] for op in ops], np.int8),
    )


def arm_of(op: Op) -> str:
    """Arm of a swap; an operator's has none of its own."""
    return op.arm or ("bad" if op.version.startswith(BAD) else "real")


def in_flight(case: Case, streams: Bool, start: I64, end: I64) -> I64:
    """How many of the masked streams live at some time of [start[i], end[i]]: [N]."""
    sent, ended = np.sort(case.history.streams.sent[streams]), np.sort(case.ended[streams])
    begun = np.searchsorted(sent, end, side="right")
    over = np.searchsorted(ended, start, side="left")
    count: I64 = np.maximum(begun - over, 0)
    return count


def overlapping(case: Case, adapter: int | None = None) -> Bool:
    """Streams whose life overlaps a swap of the adapter (of any, for None): [S]."""
    mine = np.ones(len(case.swaps), bool) if adapter is None else case.swaps.adapter == adapter
    start, end = case.swaps.invoked[mine], np.maximum.accumulate(case.swaps.end[mine])
    if not len(start):
        return np.zeros(len(case.ended), bool)
    newest = np.searchsorted(start, case.ended, side="right") - 1
    met: Bool = (newest >= 0) & (end[np.maximum(newest, 0)] >= case.history.streams.sent)
    return met


def swapped(case: Case) -> Bool:
    """[S] streams of adapters that were hotfixed at all."""
    return np.isin(case.owner, np.unique(case.swaps.adapter))


def by_stream(
    case: Case, name: str, flagged: Bool, exposed: Bool, kinds: dict[str, Bool], witnesses: Iterable[Witness]
) -> Finding:
    """A finding whose unit is the stream; the rate's interval is over the swaps that streams met."""
    exposed = exposed | flagged
    clusters = case.cluster[exposed] + 1
    size = len(case.swaps) + 1
    trials = np.bincount(clusters, minlength=size)
    hits = np.bincount(clusters[flagged[exposed]], minlength=size)
    met = slice(1, None) if trials[1:].any() and not hits[0] else slice(None)
    count = int(flagged.sum())
    return Finding(
        name,
        count,
        int(exposed.sum()),
        cluster_rate(hits[met], trials[met]),
        {kind: int(mask.sum()) for kind, mask in sorted(kinds.items()) if mask.any()},
        tuple(witnesses),
        "" if exposed.any() else "no stream was exposed to it",
        "streams",
        flagged,
    )


def with_unknown(finding: Finding, why: str) -> Finding:
    """The same finding, unable to PASS because of `why` (unless that is empty)."""
    return replace(finding, unknown=why or finding.unknown)


def first_streams(case: Case, flagged: Bool) -> I64:
    """The streams that get a witness: the earliest, ties by name."""
    at = np.flatnonzero(flagged)
    if len(at) > MAX_WITNESSES:
        sent = case.history.streams.sent
        at = at[sent[at] <= sent[at[MAX_WITNESSES - 1]]]
    names = case.history.streams.name
    return np.array(sorted(at, key=lambda i: (case.history.streams.sent[i], names[i]))[:MAX_WITNESSES], np.int64)


def position(case: Case, token: int, stream: int) -> int:
    """Index of a token inside its stream."""
    return int(token - case.history.streams.start[stream])


def who(case: Case, stream: int) -> str:
    """ "stream e0-17 of tenant-a", in a fleet with the replica that served it."""
    t = case.history.streams
    fleet = any(run.replicas for run in case.history.runs)
    place = f" on replica {int(t.replica[stream])}" if fleet else ""
    return f"stream {t.name[stream]} of {t.adapters[t.adapter[stream]]}{place}"


def ids_around(case: Case, stream: int, first: int, last: int) -> tuple[int, ...]:
    """Token ids from AROUND before position `first` to AROUND after `last`."""
    begin = int(case.history.streams.start[stream])
    end = begin + int(case.history.streams.tokens[stream])
    window = slice(max(begin, begin + first - AROUND), min(end, begin + last + AROUND + 1))
    return tuple(int(t) for t in case.history.ids[window])


def versions_of(case: Case, contents: Iterable[int]) -> tuple[str, ...]:
    """Labels of contents; another adapter's with its name in front is the caller's business."""
    return tuple(case.look.line.contents.name(int(c)) for c in contents)


def swap_of(case: Case, content: int, at: int) -> Op | None:
    """The newest load of a content begun by `at`: what made it appear."""
    row = int(case.look.newest(np.array([content], np.int32), np.array([at], np.int64))[0])
    return None if row < 0 else case.look.line.ops[int(case.look.rows[row])]


def told(case: Case, op: Op | None, at: int) -> str:
    """ "swap e0-9, acked 3.2 ms before" as seen from a moment."""
    if op is None:
        return "a content loaded before this run"
    kind = "load" if op.by in ("setup", "rollback") else "swap"
    if interval(op)[2] == INFO:
        return f"{kind} {op.name}, invoked {_ago(at - op.invoked)}, never answered"
    word = "acked" if op.outcome == "ok" else "refused"
    if op.invoked <= at <= op.acked:
        return f"{kind} {op.name}, invoked {_ago(at - op.invoked)}, {word} {_ago(at - op.acked)}"
    return f"{kind} {op.name}, {word} {_ago(at - op.acked)}"


def _ago(ns: int) -> str:
    return f"{abs(ns) / 1e6:.1f} ms {'before' if ns >= 0 else 'after'}"


def is_ok(case: Case) -> Bool:
    """[S] streams the client called complete."""
    good: Bool = case.history.streams.outcome == OK
    return good
