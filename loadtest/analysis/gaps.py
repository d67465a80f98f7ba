"""Gaps between the reads of a stream, and what they were inside windows of time.

A gap runs from one read that brought tokens to the next; tokens of one read have none between them. A stalled
stream's last gap runs to the moment the client gave up. Windows are sorted and do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loadtest.analysis.case import Case, Swaps
from loadtest.analysis.stats import F64
from loadtest.history import I32, I64, Bool, StreamTable, blocks

SETTLE_NS = 250_000_000  # a swap's window ends this long after its ack: a switch at the next step still falls into it


@dataclass(frozen=True, slots=True)
class Some:
    """[G] gaps in stream order."""

    stream: I32
    start: I64  # ns
    end: I64

    def of(self, streams: Bool) -> Some:
        """Gaps of the masked streams."""
        mine = streams[self.stream]
        return Some(self.stream[mine], self.start[mine], self.end[mine])


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of some streams of a history, computed a block at a time: there are as many as tokens."""

    table: StreamTable
    at: I64  # History.at
    streams: Bool  # [S] whose gaps

    def of(self, streams: Bool) -> Gaps:
        """Gaps of those of the streams that are masked."""
        return Gaps(self.table, self.at, self.streams & streams)

    def blocks(self) -> Iterator[Some]:
        """All gaps, in stream order, those that stalled streams ended in last."""
        table = self.table
        for rows, tokens in blocks(table.tokens):
            mine = self.streams[rows]
            if mine.any():
                yield _between(table, self.at[tokens], rows, mine, tokens.start)
        stalled = np.array([r == "stalled" for r in table.reasons], bool)
        if not stalled.any():
            return
        open_ = np.flatnonzero(self.streams & stalled[table.reason] & (table.last > 0) & (table.ended > table.last))
        yield Some(open_.astype(np.int32), table.last[open_], table.ended[open_])

    def every(self, most: int) -> Some:
        """At most `most` of the gaps, evenly taken: all, every second, every third ..."""
        total = sum(len(some.start) for some in self.blocks())
        step = max(1, -(-total // most))
        done, parts = 0, [Some(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))]
        for some in self.blocks():
            kept = slice(-done % step, None, step)
            # Copies: a view would keep its whole block alive.
            parts.append(Some(some.stream[kept].copy(), some.start[kept].copy(), some.end[kept].copy()))
            done += len(some.start)
        start, end = np.concatenate([p.start for p in parts]), np.concatenate([p.end for p in parts])
        return Some(np.concatenate([p.stream for p in parts]), start, end)


def gaps(case: Case) -> Gaps:
    """Every gap of the history."""
    return Gaps(case.history.streams, case.history.at, np.ones(len(case.history.streams), bool))


def _between(table: StreamTable, at: I64, rows: slice, mine: Bool, first: int) -> Some:
    """Gaps between the reads of consecutive streams, whose tokens `at` begin at index `first` of the history."""
    later = np.zeros(len(at), bool)
    np.greater(at[1:], at[:-1], out=later[1:])
    later[table.start[rows][table.tokens[rows] > 0] - first] = False
    later &= np.repeat(mine, table.tokens[rows])
    after = np.flatnonzero(later)
    stream = np.repeat(np.arange(rows.start, rows.stop, dtype=np.int32), table.tokens[rows])[after]
    return Some(stream, at[after - 1], at[after])


@dataclass(frozen=True, slots=True)
class Windows:
    """[W] windows [start, end), ns, sorted and disjoint; `swap` is the swap each belongs to."""

    start: I64
    end: I64
    swap: I64


def swap_windows(swaps: Swaps, which: Bool) -> Windows:
    """The window of each swap of the mask: from its invocation to SETTLE_NS after its ack or the next invocation."""
    rows = np.flatnonzero(which).astype(np.int64)
    start = swaps.invoked[rows]
    following = np.append(start[1:], np.iinfo(np.int64).max)
    return Windows(start, np.minimum(swaps.end[rows] + SETTLE_NS, following), rows)


def matched_windows(swaps: Swaps, windows: Windows) -> Windows:
    """For each window one as long, right before it, in which no swap of any adapter ran; without room there is none."""
    start = windows.start - (windows.end - windows.start)
    everyone = swap_windows(swaps, np.ones(len(swaps), bool))
    before = np.searchsorted(everyone.start, windows.start, side="left") - 1
    busy_until = np.append(everyone.end, np.iinfo(np.int64).min)[before]
    free = (start >= busy_until) & (windows.end > windows.start)
    return Windows(start[free], windows.start[free], windows.swap[free])


@dataclass(frozen=True, slots=True)
class Stalls:
    """[W] per window, over all gaps that reach into it."""

    longest_ms: F64  # longest whole gap; NaN without one
    weighted: F64  # sum of overlap * gap, ms²
    covered: F64  # sum of overlap, ms


def stalls(found: Gaps, windows: Windows) -> Stalls:
    """Longest gap and time-weighted sums of each window."""
    n = len(windows.start)
    out = Stalls(np.full(n, np.nan), np.zeros(n), np.zeros(n))
    for some in found.blocks() if n else ():
        _add(out, some, windows)
    return out


def _add(out: Stalls, found: Some, windows: Windows) -> None:
    first = np.searchsorted(windows.end, found.start, side="right")
    count = np.searchsorted(windows.start, found.end, side="left") - first
    hit = np.flatnonzero(count > 0)
    reach = count[hit]
    gap = np.repeat(hit, reach)
    step = np.arange(len(gap)) - np.repeat(np.cumsum(reach) - reach, reach)
    window = first[gap] + step
    length = (found.end[gap] - found.start[gap]) / 1e6
    inside = np.minimum(found.end[gap], windows.end[window]) - np.maximum(found.start[gap], windows.start[window])
    overlap = np.maximum(inside, 0) / 1e6
    np.fmax.at(out.longest_ms, window, length)
    np.add.at(out.weighted, window, overlap * length)
    np.add.at(out.covered, window, overlap)


def extent(found: Gaps) -> tuple[int, int] | None:
    """(earliest start, latest end) of the gaps; None without any."""
    edges = [(int(s.start.min()), int(s.end.max())) for s in found.blocks() if len(s.start)]
    return (min(a for a, _ in edges), max(b for _, b in edges)) if edges else None


def median_length(found: Gaps) -> int:
    """Median length of the gaps, ns; there must be one."""
    length = np.concatenate([some.end - some.start for some in found.blocks()])
    low, high = (len(length) - 1) // 2, len(length) // 2
    length.partition([low, high])
    return int(length[low : high + 1].mean())


def outside(windows: Windows, start: int, end: int) -> Windows:
    """What lies between the windows from `start` to `end`: [W + 1] at most."""
    begins, ends = np.append(start, windows.end), np.append(windows.start, end)
    kept = ends > begins
    swap = np.append(windows.swap, -1)
    return Windows(begins[kept].astype(np.int64), ends[kept].astype(np.int64), swap[kept])
