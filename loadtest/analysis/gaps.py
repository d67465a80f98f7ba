"""Gaps between the reads of a stream, and what they were inside windows of time.

A gap runs from one read that brought tokens to the next; tokens of one read have none between them. A stalled
stream's last gap runs to the moment the client gave up. Windows are sorted and do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadtest.analysis.case import Case, Swaps
from loadtest.analysis.stats import F64
from loadtest.history import I32, I64, Bool

SETTLE_NS = 250_000_000  # a swap's window ends this long after its ack: a switch at the next step still falls into it


@dataclass(frozen=True, slots=True)
class Gaps:
    """[G] gaps in stream order."""

    stream: I32
    start: I64  # ns
    end: I64

    def of(self, streams: Bool) -> Gaps:
        """Gaps of the masked streams."""
        mine = streams[self.stream]
        return Gaps(self.stream[mine], self.start[mine], self.end[mine])


def gaps(case: Case) -> Gaps:
    """Every gap of the history."""
    table, at = case.history.streams, case.history.at
    begins = np.zeros(len(at) + 1, bool)
    begins[table.start[table.tokens > 0]] = True
    after = np.flatnonzero(~begins[1:-1] & (at[1:] > at[:-1])) + 1 if len(at) else np.empty(0, np.int64)
    stream = np.repeat(np.arange(len(table), dtype=np.int32), table.tokens)[after]
    stalled = np.array([r == "stalled" for r in table.reasons], bool)[table.reason] if len(table) else begins[:0]
    open_ = np.flatnonzero(stalled & (table.last > 0) & (table.ended > table.last))
    return Gaps(
        np.concatenate([stream, open_.astype(np.int32)]),
        np.concatenate([at[after - 1], table.last[open_]]),
        np.concatenate([at[after], table.ended[open_]]),
    )


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
    longest, weighted, covered = np.full(n, np.nan), np.zeros(n), np.zeros(n)
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
    np.fmax.at(longest, window, length)
    np.add.at(weighted, window, overlap * length)
    np.add.at(covered, window, overlap)
    return Stalls(longest, weighted, covered)


def outside(windows: Windows, start: int, end: int) -> Windows:
    """What lies between the windows from `start` to `end`: [W + 1] at most."""
    begins, ends = np.append(start, windows.end), np.append(windows.start, end)
    kept = ends > begins
    swap = np.append(windows.swap, -1)
    return Windows(begins[kept].astype(np.int64), ends[kept].astype(np.int64), swap[kept])
