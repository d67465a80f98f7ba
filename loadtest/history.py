"""The read side of a run's history: files of all engines merged into numpy columns.

Rules
1. Nothing a file holds can make `load` raise except that no history is there at all. What cannot be used is dropped
   and named in `History.problems`; the verdict's gates see it.
2. An `invoke` without its `ack`, a `send` without its `stream`: outcome `info`, as of a crash. What contradicts itself
   or another line is named and accuses nobody (contradictions.py, columns.py).
3. Streams are sorted by `sent`; tokens lie in the order of the streams, so stream i owns
   ids[start[i] : start[i] + tokens[i]].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest import calibration, contradictions, records, scores
from loadtest.calibration import Calibration
from loadtest.columns import LARGE, OUTCOMES, Coded, Column, merged
from loadtest.contradictions import Op as Op
from loadtest.errors import HistoryError
from loadtest.journal import Journal as Journal
from loadtest.lines import File, R, read, stream_columns, typed
from loadtest.scores import NONE as NO_SCORES
from loadtest.scores import Scores

I8 = npt.NDArray[np.int8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

OK, FAIL, INFO = 0, 1, 2
ARRIVAL_END = 2**32 - 1  # µs
BLOCK = 4_000_000  # tokens worked on at a time: temporaries stay under 100 MB


@dataclass(frozen=True, slots=True)
class StreamTable:
    """One row per attempted stream, sorted by `sent`. Times are monotonic ns, 0 = never."""

    name: list[str]  # "e0-17"
    adapters: tuple[str, ...]
    adapter: I32  # [S] code into `adapters`
    user: list[str]
    intended: I64
    sent: I64
    head: I64
    first: I64
    last: I64
    ended: I64
    status: I32
    outcome: I8  # OK, FAIL, INFO
    reasons: tuple[str, ...]
    reason: I16  # code into `reasons`
    detail: list[str]
    finish: list[str]
    done: Bool
    max_tokens: I32
    ignore_eos: Bool
    tokens: I64
    start: I64  # index of the first token in History.ids and .at
    chunks: I32
    usage: I64  # -1 without
    prompt: I64
    prompt_start: I64  # index into History.prompts
    text_only: Bool
    phase: I64  # index of the phase in which it was sent, -1 for none
    replica: I32  # index into Run.replicas, 0 for the one server

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True, slots=True)
class Span:
    """A phase; `end` is the end of the history when its end was not recorded."""

    index: int
    arm: str
    adapter: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class History:
    """Everything a run recorded."""

    runs: tuple[records.Run, ...]
    streams: StreamTable
    ids: I32  # [T]
    at: I64  # [T] arrival, ns
    prompts: I32  # [P]
    ops: tuple[Op, ...]  # sorted by invoked
    versions: tuple[records.Version, ...]
    phases: tuple[Span, ...]
    health: tuple[records.Health, ...]
    undo: tuple[records.Undo, ...]
    events: tuple[records.Event, ...]
    ends: tuple[records.End, ...]
    problems: tuple[str, ...]
    scrapes: tuple[records.Scrape, ...] = ()
    scores: Scores = NO_SCORES
    calibration: Calibration | None = None
    blind: bool = False  # operations may be missing: what came before what is not on record


def load(folder: Path) -> History:
    """Read every `history-*.jsonl` of a run. Raises HistoryError when there is none."""
    paths = sorted(folder.glob("history-*.jsonl")) if folder.is_dir() else []
    if not paths:
        raise HistoryError(f"{folder} holds no history-*.jsonl", remedy="name a folder under results/")
    files = [read(p) for p in paths]
    if not any(f.last for f in files):
        raise HistoryError(f"no line of {paths[0]} can be read", remedy="the run recorded nothing; run it again")
    recorded = build(files)
    found = scores.read(folder, recorded.streams.name)
    calibrated, odd = calibration.read(folder)
    problems = (*recorded.problems, *found.problems, *odd)
    return replace(recorded, scores=found, calibration=calibrated, problems=problems)


def build(files: list[File]) -> History:
    """Merge parsed files into one History."""
    problems = [p for f in files for p in f.problems]

    def gather(cls: type[R]) -> tuple[R, ...]:
        return tuple(r for f in files for r in typed(f, cls, problems))

    ops = sorted(
        (op for f in files for op in contradictions.operations(f, problems)), key=lambda op: (op.invoked, op.name)
    )
    latest = _latest(files)
    edges = gather(records.Phase)
    contradictions.phases(edges, problems)
    phases = _spans(edges, latest)
    streams, ids, at, prompts = _streams(files, problems)
    runs = contradictions.headers(files, problems)
    versions = contradictions.versions(gather(records.Version), problems)
    contradictions.unknown(runs, versions, ops, streams.replica, problems)
    contradictions.shams(ops, problems)
    object.__setattr__(streams, "phase", _phase_of(streams.sent, phases))
    return History(
        runs=runs,
        streams=streams,
        ids=ids,
        at=at,
        prompts=prompts,
        ops=tuple(ops),
        versions=versions,
        phases=phases,
        health=gather(records.Health),
        undo=gather(records.Undo),
        events=gather(records.Event),
        ends=contradictions.ends(files, problems),
        scrapes=gather(records.Scrape),
        blind=any(f.blind for f in files),
        problems=tuple(problems),
    )


def unmarked(recorded: History) -> History:
    """The same without anything that tells versions apart."""
    bare = tuple(replace(v, markers=()) for v in recorded.versions)
    return replace(recorded, versions=bare, scores=NO_SCORES)


def _latest(files: list[File]) -> int:
    """The last time any line names: where an unfinished phase is taken to end."""
    keys = ("at_ns", "ended_ns", "acked_ns", "sent_ns", "invoked_ns", "started_ns")
    last = (row.get(k) for f in files for row in f.last.values() for k in keys)
    return max((t for t in last if isinstance(t, int) and abs(t) < LARGE), default=0)


def _spans(edges: Iterable[records.Phase], latest: int) -> tuple[Span, ...]:
    starts: dict[int, records.Phase] = {}
    ends: dict[int, int] = {}
    for e in edges:
        if e.edge == "start":
            starts[e.index] = e
        else:
            ends[e.index] = e.at_ns
    return tuple(
        Span(i, e.arm, e.adapter, e.at_ns, ends.get(i, max(latest, e.at_ns))) for i, e in sorted(starts.items())
    )


def _phase_of(sent: I64, phases: tuple[Span, ...]) -> I64:
    out = np.full(len(sent), -1, np.int64)
    for p in phases:
        out[(sent >= p.start) & (sent < p.end)] = p.index
    return out


def _streams(files: list[File], problems: list[str]) -> tuple[StreamTable, I32, I64, I32]:
    parts: list[dict[str, Column]] = []
    columns: list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]] = []
    token_base = prompt_base = 0
    for f in files:
        ids, arrivals, prompts = f.column("tokens", "<i4"), f.column("arrivals", "<u4"), f.column("prompts", "<i4")
        count = min(len(ids), len(arrivals))
        part = stream_columns(f, arrivals[:count], len(prompts), problems)
        part["offset"] += token_base
        part["prompt_offset"] += prompt_base
        parts.append(part)
        columns.append((ids[:count], arrivals[:count], prompts))
        token_base += count
        prompt_base += len(prompts)
    table, offset, prompt_offset = _table(files, parts)
    all_ids, all_arrivals, all_prompts = (_joined([c[i] for c in columns]) for i in range(3))
    del columns
    ids = _gather(all_ids, offset, table.tokens, np.int32)
    del all_ids
    at = _gather(all_arrivals, offset, table.tokens, np.int64)
    at *= 1000
    for rows, tokens in blocks(table.tokens):
        beyond = np.flatnonzero(at[tokens] >= ARRIVAL_END * 1000) + tokens.start
        at[tokens] += np.repeat(table.sent[rows], table.tokens[rows])
        if len(beyond):
            at[beyond] = np.maximum(at[beyond], table.last[np.searchsorted(table.start, beyond, side="right") - 1])
    return table, ids, at, _gather(all_prompts, prompt_offset, table.prompt, np.int32)


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def blocks(counts: I64, size: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """(rows, items) of consecutive rows that own about `size` items together: row i owns counts[i] of them."""
    ends = np.cumsum(counts)
    row = item = 0
    while row < len(counts):
        stop = max(row + 1, int(np.searchsorted(ends, item + size, side="right")))
        yield slice(row, stop), slice(item, int(ends[stop - 1]))
        row, item = stop, int(ends[stop - 1])


def _gather(source: npt.NDArray[Any], start: I64, count: I64, dtype: Any) -> npt.NDArray[Any]:
    """source[start[i] : start[i] + count[i]] for each i, one after another: [sum(count)]."""
    out = np.empty(int(count.sum()), dtype)
    for rows, items in blocks(count):
        where = np.arange(items.start, items.stop, dtype=np.int64)
        where += np.repeat(start[rows] - np.cumsum(count[rows]) + count[rows] - items.start, count[rows])
        out[items] = source[where]
    return out


def _table(files: list[File], parts: list[dict[str, Column]]) -> tuple[StreamTable, I64, I64]:
    """Columns of all files sorted by `sent`, and where their tokens lie in the concatenated files."""
    sent = np.concatenate([p["sent_ns"] for p in parts])
    order = np.argsort(sent, kind="stable").astype(np.int64)

    def column(key: str, dtype: Any) -> npt.NDArray[Any]:
        return np.concatenate([p[key] for p in parts])[order].astype(dtype, copy=False)

    def coded(key: str) -> Coded:
        return merged([f.rows.words(key) for f in files], [p[key] for p in parts])

    names = [f"{f.engine}-{n}" for f, p in zip(files, parts, strict=True) for n in p["stream"].tolist()]
    adapters, adapter = _sorted_words(coded("adapter"), order)
    reasons, reason = _sorted_words(coded("reason"), order, "")
    outcome = coded("outcome")
    outcomes = np.array([OUTCOMES[w] for w in outcome.words], np.int8)
    tokens, prompt = column("tokens", np.int64), column("prompt", np.int64)
    table = StreamTable(
        name=[names[i] for i in order.tolist()],
        adapters=adapters,
        adapter=adapter,
        user=coded("user").texts(order),
        intended=column("intended_ns", np.int64),
        sent=sent[order],
        head=column("head_ns", np.int64),
        first=column("first_ns", np.int64),
        last=column("last_ns", np.int64),
        ended=column("ended_ns", np.int64),
        status=column("status", np.int32),
        outcome=outcomes[outcome.codes[order]] if len(outcomes) else np.empty(0, np.int8),
        reasons=reasons,
        reason=reason.astype(np.int16),
        detail=coded("detail").texts(order),
        finish=coded("finish").texts(order),
        done=column("done", np.bool_),
        max_tokens=column("max_tokens", np.int32),
        ignore_eos=column("ignore_eos", np.bool_),
        tokens=tokens,
        start=np.cumsum(tokens) - tokens,
        chunks=column("chunks", np.int32),
        usage=column("usage", np.int64),
        prompt=prompt,
        prompt_start=np.cumsum(prompt) - prompt,
        text_only=column("text_only", np.bool_),
        phase=np.full(len(sent), -1, np.int64),
        replica=column("replica", np.int32),
    )
    return table, column("offset", np.int64), column("prompt_offset", np.int64)


def _sorted_words(column: Coded, order: I64, *always: str) -> tuple[tuple[str, ...], I32]:
    """(the words in use, sorted, those of `always` first; their codes in `order`)."""
    used = {column.words[c] for c in np.unique(column.codes).tolist()}
    words = (*always, *sorted(used - set(always)))
    index = {w: i for i, w in enumerate(words)}
    codes = np.array([index.get(w, 0) for w in column.words], np.int32)
    return words, codes[column.codes[order]] if len(codes) else np.empty(0, np.int32)
