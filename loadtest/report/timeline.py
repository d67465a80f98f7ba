"""What the timeline draws: which version each stretch of a stream came from, and which streams are shown.

Rules
1. A token's version is told by its marker, or by what the judge found when it asked the server again. A token that no
   declared content claims, or that two claim, is uninformative; it is drawn grey and never guessed.
2. Above LIMIT streams the picture is thinned: streams with something to show stay (failed, undecided, two versions,
   stale, another adapter's token, named by a witness), of the rest an even sample by time of sending; `note` says so.
3. Times leave here as whole tenths of a millisecond after `origin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.history import FAIL, I32, I64, INFO, History, StreamTable
from loadtest.report import text

LIMIT = 2_000  # more bars than this are a blur on any screen
HARD_LIMIT = 6_000  # streams with something to show; keeps the file under 5 MB when everything is torn
SEGMENT_BUDGET = 120_000  # over all streams, for the same reason
OPS_LIMIT = 3_000
DETAILS_LIMIT = 300
EVENTS_LIMIT = 200
TICK = 100_000  # ns in a tenth of a millisecond

NONE, BASE, MIXED = -1, -2, -3  # codes beside those of contents: uninformative, the base model, cut short

FAILED, UNDECIDED, WITNESS, MANY, FOREIGN, STALE = 1, 2, 4, 8, 16, 32  # why a stream is kept


@dataclass(frozen=True, slots=True)
class Contents:
    """(adapter, version label) of every declared content; a content's code is its index."""

    labels: tuple[tuple[str, str], ...]
    tokens: I32  # marker tokens claimed by exactly one content, sorted
    codes: I32  # [len(tokens)]

    def of(self, ids: I32) -> I32:
        """Code of each id, NONE where no single content claims it: [n]."""
        if not len(self.tokens):
            return np.full(len(ids), NONE, np.int32)
        place = np.minimum(np.searchsorted(self.tokens, ids), len(self.tokens) - 1)
        return np.where(self.tokens[place] == ids, self.codes[place], NONE).astype(np.int32)


def contents(recorded: History) -> Contents:
    """The contents that `version` records declare."""
    labels = tuple((v.adapter, v.version) for v in recorded.versions)
    pairs = [(t, c) for c, v in enumerate(recorded.versions) for t in v.markers if isinstance(t, int)]
    claimed = np.array(sorted(set(pairs)), np.int64).reshape(-1, 2)
    tokens, index, count = np.unique(claimed[:, 0], return_index=True, return_counts=True)
    alone = count == 1
    return Contents(labels, tokens[alone].astype(np.int32), claimed[index[alone], 1].astype(np.int32))


@dataclass(frozen=True, slots=True)
class Segments:
    """Run-length stretches of equal version, in stream order; all [N]."""

    stream: I64
    code: I32
    start: I64  # arrival of the first token, ns
    end: I64  # arrival of the last token, ns
    tokens: I64
    first: I64  # where each stream's segments begin, [S + 1]

    def of(self, stream: int) -> slice:
        """Rows of one stream."""
        return slice(int(self.first[stream]), int(self.first[stream + 1]))


def attributed(recorded: History, known: Contents, labels: Sequence[tuple[str, str]], code: I32) -> I32:
    """The judge's code of each token (an index into its `labels`; below 0: none) as a code of `known`: [T]."""
    ours = {label: i for i, label in enumerate(known.labels)}
    table = np.array([*(ours.get(label, NONE) for label in labels), NONE], np.int32)
    out: I32 = table[np.where(code >= 0, code, len(labels))]
    return out


def segments(recorded: History, known: Contents, told: I32 | None = None) -> Segments:
    """Stretches of all streams, without a loop per stream. `told`: from `attributed`, for adapters without markers."""
    table = recorded.streams
    owner = np.repeat(np.arange(len(table), dtype=np.int64), table.tokens)
    code = known.of(recorded.ids)
    if told is not None:  # rule 1 holds for markers; these were asked for after the traffic
        scored = np.isin(table.adapter, [i for i, a in enumerate(table.adapters) if a in recorded.scores.adapters])
        code = np.where(scored[owner], told, code).astype(np.int32)
    base = np.isin(table.adapter, [i for i, a in enumerate(table.adapters) if a == "base"])
    code[(code == NONE) & base[owner]] = BASE
    fresh = np.ones(len(code), bool)
    fresh[1:] = (code[1:] != code[:-1]) | (owner[1:] != owner[:-1])
    begin = np.flatnonzero(fresh)
    stop = np.append(begin[1:], len(code))[: len(begin)]
    stream = owner[begin]
    return Segments(
        stream,
        code[begin],
        recorded.at[begin],
        recorded.at[stop - 1],
        (stop - begin).astype(np.int64),
        np.searchsorted(stream, np.arange(len(table) + 1)).astype(np.int64),
    )


def flags(recorded: History, parts: Segments, known: Contents, named: Iterable[str]) -> I32:
    """Why each stream deserves to be shown, as a sum of FAILED, UNDECIDED, WITNESS, MANY, FOREIGN, STALE: [S]."""
    table = recorded.streams
    out = np.zeros(len(table), np.int32)
    out[table.outcome == FAIL] |= FAILED
    out[table.outcome == INFO] |= UNDECIDED
    wanted = set(named)
    out[np.array([n in wanted for n in table.name], bool)] |= WITNESS
    base = [i for i, a in enumerate(table.adapters) if a == "base"]
    told = (parts.code >= 0) & ~np.isin(table.adapter[parts.stream], base)  # a base may emit a marker by itself
    stream, code = parts.stream[told], parts.code[told]
    pairs = np.unique(np.stack([stream, code]), axis=1)
    out[np.bincount(pairs[0], minlength=len(table)) > 1] |= MANY
    codes = {a: i for i, a in enumerate(table.adapters)}
    owner = np.array([codes.get(a, NONE) for a, _ in known.labels], np.int32)
    if len(owner):
        out[stream[owner[code] != table.adapter[stream]]] |= FOREIGN
        out[stream[table.sent[stream] > _superseded(recorded, known)[code]]] |= STALE
    return out


def _superseded(recorded: History, known: Contents) -> I64:
    """When the last load of each content was superseded by an acked one, ns; far away when it never was: [C]."""
    out = np.full(len(known.labels), 2**62, np.int64)
    for code, (adapter, label) in enumerate(known.labels):
        mine = [o for o in recorded.ops if o.adapter == adapter and o.mode != "unload"]
        own = [o for o in mine if o.version == label and o.outcome != "fail"]
        if own and all(o.outcome == "ok" for o in own):
            end = max(o.acked for o in own)
            out[code] = min((o.acked for o in mine if o.outcome == "ok" and o.invoked > end), default=2**62)
    return out


def kept(why: I32) -> tuple[I64, str]:
    """Indices of the streams to draw, ascending, and the sentence that says what was left out."""
    total = len(why)
    telling, plain = np.flatnonzero(why), np.flatnonzero(why == 0)
    if total <= LIMIT:
        return np.arange(total), f"All {total:,} streams are drawn."
    chosen = telling
    if len(telling) > HARD_LIMIT:
        named = np.flatnonzero(why & WITNESS)
        rest = np.setdiff1d(telling, named)
        chosen = np.concatenate([named, _even(rest, HARD_LIMIT - len(named))])
    sample = _even(plain, max(LIMIT - len(chosen), LIMIT // 4))
    every = "all" if len(chosen) == len(telling) else f"{len(chosen):,}"
    note = (
        f"{len(chosen) + len(sample):,} of {total:,} streams are drawn: {every} of the {len(telling):,} that failed, "
        f"are undecided, stale, carry two versions or another adapter's token, or are named by a witness; of the other "
        f"{len(plain):,} an even sample of {len(sample):,}."
    )
    return np.sort(np.concatenate([chosen, sample])), note


def _even(rows: I64, count: int) -> I64:
    """At most `count` of the rows, evenly spaced: the same rows for the same input."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, max(count, 0)).astype(np.int64)]


def origin(recorded: History) -> tuple[int, int]:
    """First and last moment (ns) of the run; (0, 1) for an empty one. The first is the verdict's origin of times."""
    table = recorded.streams
    ends = np.maximum(table.ended, np.maximum(table.last, table.sent))
    times = [int(t) for column in (table.sent, ends) for t in (column.min(initial=2**62), column.max(initial=0))]
    times += [t for op in recorded.ops for t in (op.invoked, op.acked)]
    times += [t for p in recorded.phases for t in (p.start, p.end)]
    real = [t for t in times if 0 < t < 2**62]
    if not real:
        return 0, 1
    zero = min([r.started_ns for r in recorded.runs if r.started_ns > 0] or real)
    return zero, max(*real, zero + 1)


def document(recorded: History, known: Contents, parts: Segments, why: I32) -> dict[str, Any]:
    """Everything the timeline's script reads; JSON-able, every text cleaned."""
    table = recorded.streams
    zero, end = origin(recorded)
    rows, note = kept(why)
    cap = min(96, max(4, SEGMENT_BUDGET // max(len(rows), 1)))
    details = _Words()
    writer = _Rows(table, parts, why, zero, cap, details)
    streams = [writer.row(int(i)) for i in rows]
    return {
        "end": (end - zero) // TICK,
        "note": note,
        "adapters": [text.clean(a, 80) for a in table.adapters],
        "reasons": [text.clean(r, 40) for r in table.reasons],
        "contents": _contents(known, table.adapters),
        "details": details.words,
        "streams": streams,
        "swaps": _ops(recorded, zero),
        "events": [
            [_tick(e.at_ns, zero), text.clean(e.what, 40), text.clean(e.detail, 160)]
            for e in recorded.events[:EVENTS_LIMIT]
        ],
        "phases": [
            [p.index, text.clean(p.arm, 20), text.clean(p.adapter, 80), _tick(p.start, zero), _tick(p.end, zero)]
            for p in recorded.phases
        ],
    }


class _Words:
    """Distinct texts, numbered: thousands of streams fail with the same words."""

    def __init__(self) -> None:
        self.words = [""]
        self.index = {"": 0}

    def code(self, word: str) -> int:
        if word not in self.index:
            if len(self.words) >= DETAILS_LIMIT:
                return 0
            self.index[word] = len(self.words)
            self.words.append(text.clean(word))
        return self.index[word]


def _tick(at: int, zero: int) -> int:
    return (at - zero) // TICK if at > 0 else -1


def _contents(known: Contents, adapters: tuple[str, ...]) -> list[list[Any]]:
    """[adapter code or -1, adapter, label, index within its adapter] of each content."""
    codes = {a: i for i, a in enumerate(adapters)}
    seen: dict[str, int] = {}
    out = []
    for adapter, label in known.labels:
        seen[adapter] = seen.get(adapter, -1) + 1
        out.append([codes.get(adapter, NONE), text.clean(adapter, 80), text.clean(label, 40), seen[adapter]])
    return out


@dataclass(frozen=True, slots=True)
class _Rows:
    """Writes streams as compact lists."""

    table: StreamTable
    parts: Segments
    why: I32
    zero: int
    cap: int  # segments a stream may have; the rest is one MIXED segment
    details: _Words

    def row(self, i: int) -> list[Any]:
        """[name, adapter, sent, first, last, ended, outcome, reason, tokens, why, detail, [code, start, tokens ...]]"""
        t, mine = self.table, self.parts.of(i)
        codes, starts, counts = (c[mine].tolist() for c in (self.parts.code, self.parts.start, self.parts.tokens))
        if len(codes) > self.cap:
            counts[self.cap - 1 :] = [sum(counts[self.cap - 1 :])]
            codes[self.cap - 1 :] = [MIXED]
        flat = [x for c, s, n in zip(codes, starts, counts, strict=False) for x in (c, _tick(s, self.zero), n)]
        times = [_tick(int(column[i]), self.zero) for column in (t.sent, t.first, t.last, t.ended)]
        ending = [int(t.outcome[i]), int(t.reason[i]), int(t.tokens[i]), int(self.why[i])]
        return [t.name[i], int(t.adapter[i]), *times, *ending, self.details.code(t.detail[i]), flat]


def _ops(recorded: History, zero: int) -> list[list[Any]]:
    """[name, adapter, version, arm, by, mode, outcome, invoked, acked or -1, reason] of each admin operation."""
    rows: list[list[Any]] = []
    for o in recorded.ops[:OPS_LIMIT]:
        what = [o.name, text.clean(o.adapter, 80), text.clean(o.version, 40), o.arm, o.by, o.mode, o.outcome]
        rows.append([*what, _tick(o.invoked, zero), _tick(o.acked, zero), text.clean(o.reason, 40)])
    return rows


def told(parts: Segments, known: Contents, stream: int, limit: int = 8) -> str:
    """A stream's versions in words: "v1 ×34 → v2 ×30"."""
    mine = parts.of(stream)
    steps = [f"{name(known, int(c))} ×{n}" for c, n in zip(parts.code[mine], parts.tokens[mine].tolist(), strict=True)]
    more = f" → … {len(steps) - limit} more" if len(steps) > limit else ""
    return " → ".join(steps[:limit]) + more


def name(known: Contents, code: int) -> str:
    """A code in words."""
    if code >= 0:
        return text.clean(known.labels[code][1], 40)
    return {BASE: "base", NONE: "no marker"}.get(code, "mixed")
