"""The loads of a history as columns, and the three questions asked of them: who could have emitted this, was it
superseded by then, and what was the newest load that a stream had to see.

A load is the interval [start, end] = [invoked, acked]; an `info` load never ends. x ≺ y (x before y) holds when
x.end + epsilon < y.start; intervals that overlap or touch are concurrent and accuse nobody. Refused loads are
no candidates. The order of two loads is the order of their intervals, never that of their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest.analysis.trust import trust
from loadtest.history import FAIL, I8, I32, I64, INFO, OK, Bool, History, Op
from loadtest.records import BAD
from loadtest.scores import Source

BASE = "base"  # what streams without an adapter name
ANOTHER, UNEXPLAINED = "another version", "explained by no version"  # contents of scored adapters: see margins.py
NEVER = 2**61  # an end that does not come; twice it still fits int64
APART = 2**60  # epsilon between clocks that cannot be compared: everything is concurrent
TIMELESS = "what came before a swap and what after it is not on record"
OUTCOME = {"ok": OK, "fail": FAIL}  # of answers that could be read; all else is INFO


@dataclass(frozen=True, slots=True)
class Contents:
    """Every (adapter, version label) of the run; a content's code is its index here."""

    adapters: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    adapter: I32  # [C] code into `adapters`
    marked: Bool  # [C] it has marker tokens

    def name(self, code: int) -> str:
        """Version label of a content, e.g. "v3"."""
        return self.labels[code][1]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Loads (unloads excluded) sorted by (content, start), [L] each; `ops[i]` is None for a content preloaded."""

    contents: Contents
    ops: tuple[Op | None, ...]
    content: I32
    adapter: I32
    start: I64
    end: I64  # NEVER for info
    outcome: I8
    epsilon: int
    unknown_from: I64  # [A] earliest start of a load whose content emits nobody knows what; NEVER for none
    ours_from: I64  # [A] first ack of an adapter that this run set up: before it, anything may have been loaded

    def of(self, content: int, *, refused: bool = False) -> npt.NDArray[np.int64]:
        """Indices of the loads of one content: those that may have applied, or the refused ones."""
        mine = (self.content == content) & ((self.outcome == FAIL) == refused)
        return np.flatnonzero(mine)


def clock_domains(history: History) -> set[str]:
    """Boot ids of the run's files: times compare only within one."""
    return {r.boot_id for r in history.runs}


def timeline(history: History, epsilon: int = 0) -> Timeline:
    """Columns of all loads. `epsilon`: nanoseconds by which two stamps may be wrong against each other."""
    contents = _contents(history)
    code = {label: i for i, label in enumerate(contents.labels)}
    rows = [(code[op.adapter, op.version], *interval(op), op) for op in history.ops if op.mode != "unload"]
    # A bad load that was refused is a refused load of the version inside it too: what it must not put in service.
    inside = [(code[op.adapter, op.content], *interval(op), op) for op in history.ops if _refused(op, code)]
    preloaded = [(code[label], -NEVER, -NEVER + 1, OK, None) for label in _preloaded(history)]
    # `another version` may be any, loaded at any time: it constrains no order, but it is not the version before it.
    wild = [(i, -NEVER, NEVER, INFO, None) for (_, label), i in code.items() if label == ANOTHER]
    loads = sorted([*preloaded, *rows, *inside, *wild], key=lambda r: (r[0], r[1], r[4].name if r[4] else ""))
    content = np.array([r[0] for r in loads], np.int32)
    adapter = contents.adapter[content] if len(loads) else np.empty(0, np.int32)
    start, end = (np.array([r[i] for r in loads], np.int64) for i in (1, 2))
    outcome = np.array([r[3] for r in loads], np.int8)
    wide = APART if history.blind or len(clock_domains(history)) > 1 else epsilon
    mystery = ~contents.marked[content] & (outcome != FAIL) if len(loads) else np.empty(0, bool)
    unknown = np.full(len(contents.adapters), NEVER, np.int64)
    np.minimum.at(unknown, adapter[mystery], start[mystery])
    if history.blind:
        unknown[:] = -NEVER
    for name in _served_unseen(history):
        unknown[contents.adapters.index(name)] = -NEVER
    ops = tuple(r[4] for r in loads)
    return Timeline(contents, ops, content, adapter, start, end, outcome, wide, unknown, _ours_from(history, contents))


def _refused(op: Op, code: dict[Source, int]) -> bool:
    """Whether the operation is a refused load of a declared version under another label."""
    return (op.adapter, op.content) in code and interval(op)[2] == FAIL


def _ours_from(history: History, contents: Contents) -> I64:
    out = np.full(len(contents.adapters), -NEVER, np.int64)
    comparable = len(clock_domains(history)) <= 1  # else nobody can say, and runs begin with their setup
    for name in _set_up(history) if comparable else ():
        mine = (op.acked for op in history.ops if op.adapter == name and op.mode != "unload" and op.outcome == "ok")
        out[contents.adapters.index(name)] = min((at for at in mine if at), default=NEVER)
    return out


def interval(op: Op) -> tuple[int, int, int]:
    """(start, end, outcome): an answer without a time, and an answer nobody could read, are both `info`."""
    if op.outcome == "info" or op.acked == 0:
        return op.invoked, NEVER, INFO
    return op.invoked, op.acked, OUTCOME[op.outcome]


def _contents(history: History) -> Contents:
    told = _told(history)
    scored = history.scores.adapters
    labels = {
        (v.adapter, v.version): bool(v.markers) and v.adapter not in scored
        for v in history.versions
        if v.adapter != BASE
    }
    labels |= dict.fromkeys(labels.keys() & told, True)
    labels |= dict.fromkeys(((a, x) for a in {a for a, _ in told} for x in (ANOTHER, UNEXPLAINED)), True)
    for op in history.ops:
        if op.mode != "unload":
            labels.setdefault((op.adapter, op.version), False)
    names = sorted({*history.streams.adapters, BASE, *(op.adapter for op in history.ops), *(a for a, _ in labels)})
    codes = {name: i for i, name in enumerate(names)}
    keys = sorted(labels)
    return Contents(
        tuple(names),
        tuple(keys),
        np.array([codes[a] for a, _ in keys], np.int32),
        np.array([labels[k] for k in keys], bool),
    )


def _told(history: History) -> set[Source]:
    """Versions that scores tell apart in this run."""
    if not history.scores.adapters or not trust(history).method:
        return set()
    return {s for s in history.scores.sources if s[0] in history.scores.adapters and s[0] != BASE}


def _set_up(history: History) -> set[str]:
    """Adapters whose first operation was this run's own setup: what they served before is nobody's business."""
    first: dict[str, Op] = {}
    for op in history.ops:
        first.setdefault(op.adapter, op)
    return {name for name, op in first.items() if op.by == "setup"}


def _preloaded(history: History) -> list[tuple[str, str]]:
    """Declared contents that no operation of this run loads, under adapters that it did not set up itself."""
    loaded = {(op.adapter, op.version) for op in history.ops}
    ours = _set_up(history)
    declared = [(v.adapter, v.version) for v in history.versions if v.adapter != BASE]
    return [key for key in declared if key not in loaded and key[0] not in ours]


def _served_unseen(history: History) -> list[str]:
    """Adapters that had traffic before their first load and no declared content to explain it."""
    explained = _set_up(history) | {a for a, _ in _preloaded(history)} | {BASE}
    first = {op.adapter: op.invoked for op in reversed(history.ops) if op.mode != "unload"}
    table = history.streams
    out = []
    for code, name in enumerate(table.adapters):
        mine = table.sent[table.adapter == code]
        if name not in explained and len(mine) and int(mine.min()) < first.get(name, NEVER):
            out.append(name)
    return out


@dataclass(frozen=True, slots=True)
class Lookup:
    """A timeline indexed for vector questions; build once with `lookup`."""

    line: Timeline
    rows: I64  # loads that may have applied, sorted by (content, start)
    moments: I64  # sorted distinct starts
    keys: I64  # (content, rank of start) of each row, one integer
    latest_end: I64  # largest end of the row's content up to and including the row
    first_start: I64  # [C] earliest start of a content, NEVER for none
    first_info: I64  # [C] earliest start of an info load of a content, NEVER for none

    def newest(self, content: I32, at: I64) -> I64:
        """Row of the newest load of `content[i]` begun by `at[i]`, -1 for none: [n]."""
        span = len(self.moments) + 1
        rank = np.searchsorted(self.moments, at + self.line.epsilon, side="right")
        key = content.astype(np.int64) * span + rank
        row = np.searchsorted(self.keys, key, side="right") - 1
        owner = np.append(self.keys, -1)[row] // span
        return np.where((row >= 0) & (owner == content), row, -1).astype(np.int64)

    def latest(self, content: I32, at: I64) -> I64:
        """Largest end among the candidates of a token of `content[i]` read at `at[i]`; -NEVER without one: [n]."""
        row = self.newest(content, at)
        out: I64 = np.append(self.latest_end, -NEVER)[row]
        return out


def lookup(line: Timeline) -> Lookup:
    """Index a timeline."""
    rows = np.flatnonzero(line.outcome != FAIL).astype(np.int64)
    content, start, end = line.content[rows], line.start[rows], line.end[rows]
    moments = np.unique(start)
    span = len(moments) + 1
    keys = content.astype(np.int64) * span + np.searchsorted(moments, start, side="right")
    count = len(line.contents.labels)
    first_start, first_info = np.full(count, NEVER, np.int64), np.full(count, NEVER, np.int64)
    np.minimum.at(first_start, content, start)
    info = line.outcome[rows] == INFO
    np.minimum.at(first_info, content[info], start[info])
    latest = end.copy()
    for i in range(1, len(rows)):
        if content[i] == content[i - 1]:
            latest[i] = max(latest[i], latest[i - 1])
    return Lookup(line, rows, moments, keys, latest, first_start, first_info)


@dataclass(frozen=True, slots=True)
class Floor:
    """What a stream of one adapter must see: per moment, the newest ok load acked before it."""

    ends: I64  # sorted
    loads: I64  # [n] index of the load with the latest start among those acked by ends[i]
    starts: I64  # [n] its start, non-decreasing

    def at(self, sent: I64, epsilon: int) -> tuple[I64, I64]:
        """(start, load) of the newest ok load that ended before `sent[i]`; (-NEVER, -1) for none."""
        i = np.searchsorted(self.ends, sent - epsilon, side="left") - 1
        return np.append(self.starts, -NEVER)[i], np.append(self.loads, -1)[i]


def floor(line: Timeline, adapter: int) -> Floor:
    """Floor of one adapter. A load that had to be refused but was not supersedes nothing: see gate `bad_refused`."""
    good = np.array([op is None or not op.version.startswith(BAD) for op in line.ops], bool)
    mine = np.flatnonzero((line.adapter == adapter) & (line.outcome == OK) & good)
    order = mine[np.lexsort((line.start[mine], line.end[mine]))]
    starts = np.maximum.accumulate(line.start[order]) if len(order) else np.empty(0, np.int64)
    best = np.maximum.accumulate(np.where(line.start[order] == starts, np.arange(len(order)), 0))
    return Floor(line.end[order], order[best].astype(np.int64), starts)


def floors(line: Timeline, adapter: I32, sent: I64) -> tuple[I64, I64]:
    """`Floor.at` for a stream of `adapter[i]` that was sent at `sent[i]`: (start, load), (-NEVER, -1) for none: [n]."""
    start, load = np.empty(len(sent), np.int64), np.empty(len(sent), np.int64)
    for a in np.unique(adapter):
        mine = adapter == a
        start[mine], load[mine] = floor(line, int(a)).at(sent[mine], line.epsilon)
    return start, load


def in_service(look: Lookup, content: I32, at: I64, sent: I64) -> Bool:
    """Whether a content was invoked by `at[i]` and not superseded when a stream was sent at `sent[i]`: [n]."""
    line, end = look.line, look.latest(content, at)
    needed, _ = floors(line, line.contents.adapter[content], sent)
    out: Bool = (end > -NEVER) & (end + line.epsilon >= needed)
    return out
