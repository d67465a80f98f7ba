"""A virtual-time model of a server under hotfixes and of the client that watches it: no sockets, no waiting.

The model plays users in a closed loop against a server that pins a stream to the version it was admitted with, and
keeps its own ground truth: which content made each token. A fault (virtual_faults.py) changes what the server does;
what the client records of it becomes a `History`. Nothing here is shared with loadtest/analysis.
"""

from __future__ import annotations

import random
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest import records
from loadtest.history import History, Op, Span, StreamTable

MS = 1_000_000
ORIGIN = 1_000 * MS
VOCAB = 32_000
FIRST_MARKER = 10_000
OUTCOMES = {"ok": 0, "fail": 1, "info": 2}

Content = tuple[str, str]  # (adapter, version)
GONE: Content = ("", "gone")  # what a name stands for that the server does not know
BASE: Content = ("base", "")


@dataclass(frozen=True)
class Shape:
    """Of a run; times in ms."""

    swaps: int = 40
    every: float = 400.0
    ack: tuple[float, float] = (20.0, 60.0)
    users: tuple[tuple[str, int], ...] = (("a", 6), ("b", 2), ("base", 2))
    tokens: tuple[int, int] = (12, 36)
    itl: float = 10.0
    quiet: float = 2500.0  # without a swap, at either end
    arm: str = "real"
    bad: int = 0  # each n-th swap is one that must be refused; 0 is none


@dataclass
class Swap:
    """One load as the server and the client see it."""

    index: int
    adapter: str
    version: str
    invoked: int
    applied: int  # when new streams begin to get it
    acked: int  # 0: never
    outcome: str = "ok"
    arm: str = "real"
    by: str = "scenario"
    mode: str = "inplace"
    status: int = 200
    takes: Content | None = None  # what it puts in place; None: nothing

    @property
    def content(self) -> Content:
        return (self.adapter, self.version)


@dataclass
class Stream:
    """One stream: what the server made, and what the client read of it."""

    adapter: str
    sent: int
    admitted: int
    made: list[Content | None]  # per token; None is a token that no content marks
    at: list[int]
    max_tokens: int
    reason: str = ""
    status: int = 200
    usage: int = -2  # -2: as many as were read
    finish: str = "length"
    done: bool = True
    ended: int = 0

    @property
    def last(self) -> int:
        return self.at[-1] if self.at else self.admitted


class Fault:
    """Hooks that do nothing."""

    name = ""

    def __init__(self, p: float, rng: random.Random) -> None:
        self.p, self.rng = p, rng
        self.seen = self.hits = 0

    def hit(self) -> bool:
        """Decide one opportunity."""
        self.seen += 1
        struck = self.rng.random() < self.p
        self.hits += struck
        return struck

    def swap(self, world: World, swap: Swap) -> None:
        """A swap has been planned; change what it does."""

    def serve(self, world: World, stream: Stream) -> None:
        """A stream has been made; change its tokens, times or end."""

    def finish(self, world: World) -> None:
        """All streams have been made."""


@dataclass
class World:
    """A run: plan the swaps, make the streams, hand over a history."""

    shape: Shape
    seed: int
    faults: Sequence[Fault] = ()
    swaps: list[Swap] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    lag_ms: float = 1.0
    registry: dict[str, list[tuple[int, Content]]] = field(default_factory=dict)
    runs: int = 1
    wall_step_ns: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.end = ORIGIN + int((2 * self.shape.quiet + self.shape.swaps * self.shape.every) * MS)

    def play(self) -> World:
        """Make everything."""
        self._plan()
        users = [(name, i) for name, count in self.shape.users for i in range(count)]
        for name, i in users:
            at = ORIGIN + int((10 + 7 * i + 30 * self.rng.random()) * MS)
            while at < self.end:
                stream = self._stream(name, at)
                self.streams.append(stream)
                at = max(stream.last, stream.ended) + int((1 + 4 * self.rng.random()) * MS)
        for fault in self.faults:
            fault.finish(self)
        self.streams.sort(key=lambda s: s.sent)
        return self

    def _plan(self) -> None:
        for name in ("a", "b"):
            at = ORIGIN + MS
            load = Swap(-1, name, "v0", at, at + MS, at + 2 * MS, arm="", by="setup", mode="load", takes=(name, "v0"))
            self.swaps.append(load)
        at = float(self.shape.quiet)
        for n in range(self.shape.swaps):
            begin = ORIGIN + int((at + 0.2 * self.shape.every * self.rng.random()) * MS)
            took = int(self.rng.uniform(*self.shape.ack) * MS)
            bad = bool(self.shape.bad) and n % self.shape.bad == self.shape.bad - 1
            version = "v0" if self.shape.arm == "sham" else f"v{n + 1}"
            swap = Swap(n, "a", version, begin, begin + int(took * self.rng.random()), begin + took, arm=self.shape.arm)
            swap.takes = swap.content
            if bad:
                swap.outcome, swap.status, swap.arm, swap.takes = "fail", 404, "bad", None
            for fault in self.faults:
                fault.swap(self, swap)
            self.swaps.append(swap)
            at += self.shape.every
        for swap in self.swaps:
            if swap.takes is not None:
                self.apply(swap.adapter, swap.applied, swap.takes)

    def apply(self, adapter: str, at: int, content: Content) -> None:
        """From `at` on the name stands for `content`, until something later."""
        insort(self.registry.setdefault(adapter, []), (at, content))

    def serving_plan(self, adapter: str) -> Content:
        """What the newest planned swap of an adapter puts in place."""
        return next(s.takes for s in reversed(self.swaps) if s.adapter == adapter and s.takes is not None)

    def serving(self, adapter: str, at: int) -> Content:
        """What a name stands for at a moment."""
        if adapter == "base":
            return BASE
        entries = self.registry[adapter]
        i = bisect_right(entries, at, key=lambda entry: entry[0])
        return entries[i - 1][1] if i else GONE

    def any_token(self, token: int) -> Content | None:
        """The content that a token of the vocabulary marks, if any: so many markers does this run have."""
        contents = [swap.content for swap in self.swaps]
        return contents[token] if token < len(contents) else None

    def following(self, adapter: str, at: int) -> tuple[int, Content] | None:
        """The next change of what a name stands for."""
        if adapter == "base":
            return None
        entries = self.registry[adapter]
        i = bisect_right(entries, at, key=lambda entry: entry[0])
        return entries[i] if i < len(entries) else None

    def _stream(self, adapter: str, sent: int) -> Stream:
        admitted = sent + int(self.rng.uniform(1, 5) * MS)
        content = self.serving(adapter, admitted)
        if content == GONE:
            return Stream(adapter, sent, admitted, [], [], 32, "rejected", 404, -1, "", False, admitted + MS)
        n = self.rng.randint(*self.shape.tokens)
        step, at, times = self.shape.itl * MS, admitted + int(self.rng.uniform(8, 14) * MS), []
        for _ in range(n):
            times.append(at)
            at += int(step * self.rng.uniform(0.9, 1.1))
        stream = Stream(adapter, sent, admitted, [None if content == BASE else content] * n, times, n)
        for fault in self.faults:
            fault.serve(self, stream)
        return stream

    # What the client wrote down.

    def history(self) -> History:
        """The run as loadtest.history would read it back."""
        marker = self._markers()
        table, ids, at = self._table(marker)
        ops = tuple(
            Op(
                f"e0-{i}",
                s.adapter,
                s.mode,
                s.version,
                f"/x/{i}",
                s.arm,
                s.by,
                -1,
                s.invoked,
                s.acked,
                s.outcome,
                s.status,
            )
            for i, s in enumerate(sorted(self.swaps, key=lambda s: s.invoked))
        )
        last = max(self.end, int(table.ended.max(initial=0)), *(s.acked for s in self.swaps))
        second = 1000 * MS
        health = tuple(
            records.Health(t, t + second, self.lag_ms, 2 * self.lag_ms, 0.1, 10) for t in range(ORIGIN, last, second)
        )
        return History(
            runs=tuple(self._run(i) for i in range(self.runs)),
            streams=table,
            ids=ids,
            at=at,
            prompts=np.array([VOCAB - 1], np.int32),
            ops=ops,
            versions=tuple(records.Version(a, v, f"{a}-{v}", "", (t,)) for (a, v), t in marker.items()),
            phases=self._phases(last),
            health=health,
            undo=(),
            events=(),
            ends=tuple(records.End(last, "complete") for _ in range(self.runs)),
            problems=(),
        )

    def _op(self, i: int, s: Swap) -> Op:
        times = (s.invoked, s.acked)
        return Op(f"e0-{i}", s.adapter, s.mode, s.version, f"/x/{i}", s.arm, s.by, -1, *times, s.outcome, s.status)

    def _run(self, i: int) -> records.Run:
        return records.Run(1, "virtual", f"e{i}", "local", "boot", 1, self.seed, ORIGIN, i * self.wall_step_ns, "0")

    def _phases(self, last: int) -> tuple[Span, ...]:
        begin = ORIGIN + int(self.shape.quiet * MS)
        done = begin + int(self.shape.swaps * self.shape.every * MS)
        return (
            Span(0, "aa", "", ORIGIN, begin),
            Span(1, self.shape.arm, "a", begin, done),
            Span(2, "aa", "", done, last),
        )

    def _markers(self) -> dict[Content, int]:
        known = dict.fromkeys(s.content for s in self.swaps)
        known |= dict.fromkeys(c for s in self.streams for c in set(s.made) if c is not None and c != BASE)
        return {content: FIRST_MARKER + 3 * i for i, content in enumerate(known)}

    def _table(self, marker: dict[Content, int]) -> tuple[StreamTable, Any, Any]:
        rows, rng = self.streams, np.random.default_rng(self.seed)
        reasons = ("", *sorted({r.reason for r in rows} - {""}))
        adapters = tuple(sorted({r.adapter for r in rows}))
        made = [marker[c] if c is not None and c != BASE else -1 for r in rows for c in r.made]
        ids = np.array(made, np.int32)
        ids[ids < 0] = rng.integers(100, FIRST_MARKER, int((ids < 0).sum()))

        def column(values: Any, dtype: Any = np.int64) -> Any:
            return np.array(list(values), dtype)

        counts = column(len(r.made) for r in rows)
        sent = column(r.sent for r in rows)
        zero = np.zeros(len(rows), np.int64)
        info = ("stalled", "cancelled", "unfinished")
        phase = np.zeros(len(rows), np.int32)
        for span in self._phases(self.end)[1:]:
            phase[sent >= span.start] = span.index
        table = StreamTable(
            name=[f"e0-{i}" for i in range(len(rows))],
            adapters=adapters,
            adapter=column((adapters.index(r.adapter) for r in rows), np.int32),
            user=["u"] * len(rows),
            intended=sent - np.arange(len(rows)) % 5 * MS,
            sent=sent,
            head=sent,
            first=column(r.at[0] if r.at else 0 for r in rows),
            last=column(r.at[-1] if r.at else 0 for r in rows),
            ended=column(r.ended or r.last for r in rows),
            status=column((r.status for r in rows), np.int32),
            outcome=column((2 if r.reason in info else 1 if r.reason else 0 for r in rows), np.int8),
            reasons=reasons,
            reason=column((reasons.index(r.reason) for r in rows), np.int16),
            detail=[""] * len(rows),
            finish=[r.finish for r in rows],
            done=column((r.done for r in rows), bool),
            max_tokens=column((r.max_tokens for r in rows), np.int32),
            ignore_eos=np.ones(len(rows), bool),
            tokens=counts,
            start=np.cumsum(counts) - counts,
            chunks=counts.astype(np.int32),
            usage=column(len(r.made) if r.usage == -2 else r.usage for r in rows),
            prompt=zero,
            prompt_start=zero,
            text_only=np.zeros(len(rows), bool),
            phase=phase,
            replica=zero.astype(np.int32),
        )
        return table, ids, column(t for r in rows for t in r.at)
