"""Figures of the report's charts, from a history: grouped quantiles, curves around swaps, rates over time.

ITL here is the gap between two reads of one stream that brought tokens (one read may bring several tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest import records
from loadtest.history import I64, History, Op
from loadtest.report.timeline import origin

F64 = npt.NDArray[np.float64]

MS = 1e6  # ns
SAMPLED = 2_000_000  # gaps beyond that are thinned: no chart shows more
WINDOWS = 400  # swaps of one arm that enter a curve; more add no visible precision


def grouped_quantile(group: npt.NDArray[np.integer], values: F64, count: int, q: float) -> F64:
    """Nearest-rank q-quantile of the values of each group 0..count-1, NaN for an empty group: [count]."""
    small = group.astype(np.uint16) if count <= 1 << 16 else group  # sorted by radix
    ordered = values[np.argsort(small, kind="stable")]
    sizes = np.bincount(group, minlength=count)
    begin = np.cumsum(sizes) - sizes
    rank = np.clip(np.ceil(q * sizes).astype(np.int64), 1, None) - 1
    out = np.full(count, np.nan)
    for i in np.flatnonzero(sizes):
        mine = ordered[begin[i] : begin[i] + sizes[i]]
        mine.partition(rank[i])
        out[i] = mine[rank[i]]
    return out


@dataclass(frozen=True, slots=True)
class Samples:
    """A figure and when it was seen, sorted by time; both [n]."""

    at: I64  # ns
    ms: F64
    stream: I64  # row of the stream table


def gaps(recorded: History) -> Samples:
    """ITL of all streams, at the read that ended the gap; of more than `SAMPLED` gaps every n-th."""
    table, at = recorded.streams, recorded.at
    real = np.zeros(len(at), bool)
    np.greater(at[1:], at[:-1], out=real[1:])
    real[table.start[table.tokens > 0]] = False
    ends = np.flatnonzero(real)
    ends = ends[:: max(1, -(-len(ends) // SAMPLED))]
    owner = np.searchsorted(table.start + table.tokens, ends, side="right").astype(np.int64)
    return _sorted(at[ends], (at[ends] - at[ends - 1]) / MS, owner)


def first_tokens(recorded: History) -> Samples:
    """TTFT of every stream that got a token, at the time it was sent."""
    t = recorded.streams
    got = np.flatnonzero((t.first > 0) & (t.tokens > 0))
    return _sorted(t.sent[got], (t.first[got] - t.sent[got]) / MS, got)


def _sorted(at: I64, ms: F64, stream: I64) -> Samples:
    order = np.argsort(at, kind="stable")
    return Samples(at[order], ms[order], stream[order])


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure per bin around an instant, across `n` instants; NaN where nothing was seen. All [B]."""

    x: F64  # seconds after the instant, middle of the bin
    mid: F64
    low: F64  # 95 % interval of the median across instants; NaN with fewer than six
    high: F64
    n: int

    @property
    def empty(self) -> bool:
        """Nothing to draw."""
        return not bool(np.isfinite(self.mid).any())


def around(samples: Samples, instants: Sequence[int], edges: F64, q: float = 0.5) -> Curve:
    """The q-quantile per instant and bin, then its median over the instants. `edges`: seconds, [B + 1]."""
    bins = len(edges) - 1
    chosen = np.array(sorted(instants)[:: max(1, len(instants) // WINDOWS)], np.int64)
    table = np.full((len(chosen), bins), np.nan)
    for row, instant in enumerate(chosen):
        lo, hi = np.searchsorted(samples.at, instant + (edges[[0, -1]] * 1e9).astype(np.int64))
        place = np.searchsorted(edges, (samples.at[lo:hi] - instant) / 1e9, side="right") - 1
        table[row] = grouped_quantile(np.clip(place, 0, bins - 1), samples.ms[lo:hi], bins, q)
    mid, low, high = median_band(table)
    return Curve((edges[:-1] + edges[1:]) / 2, mid, low, high, len(chosen))


def median_band(table: F64) -> tuple[F64, F64, F64]:
    """Median of each column and its 95 % interval by order statistics; NaNs are left out; [n, B] → 3 × [B]."""
    ordered = np.sort(table, axis=0)
    sizes = np.isfinite(ordered).sum(axis=0)
    ranks = {int(n): _median_ranks(int(n)) for n in np.unique(sizes)}
    out = np.full((3, table.shape[1]), np.nan)
    for b, n in enumerate(sizes):
        if n:
            low, high = ranks[int(n)]
            out[0, b] = ordered[(n - 1) // 2, b]
            if low >= 0:
                out[1:, b] = ordered[[low, high], b]
    return out[0], out[1], out[2]


def _median_ranks(n: int) -> tuple[int, int]:
    """0-based order statistics that hold the median with 95 %; (-1, -1) when n is too small."""
    term, below, low = 0.5**n if n < 1000 else 0.0, 0.0, -1
    if n >= 1000:  # the normal approximation is exact to a rank here
        low = int(n / 2 - 1.96 * np.sqrt(n) / 2) - 1
        return low, n - 1 - low
    for k in range(n // 2):
        below += term
        if below > 0.025:
            break
        low = k
        term *= (n - k) / (k + 1)
    return (low, n - 1 - low) if low >= 0 else (-1, -1)


def acks(recorded: History, arm: str) -> list[int]:
    """When the scenario's and the operator's swaps of one arm were acked, ns."""
    return [o.acked for o in recorded.ops if swap(o) and (o.arm or "real") == arm and o.outcome == "ok" and o.acked]


def swap(op: Op) -> bool:
    """Part of the test, not of its setup or rollback."""
    return op.by in ("scenario", "operator")


def quiet_instants(recorded: History, before: float, after: float) -> list[int]:
    """Instants whose window [-before, +after] seconds holds no swap and lies in the run's traffic: the baseline.

    Windows do not overlap, so that they count as separate pieces of evidence.
    """
    t = recorded.streams
    if not len(t):
        return []
    busy = sorted((o.invoked, o.acked or o.invoked) for o in recorded.ops)
    start, end = int(t.sent.min()), int(np.maximum(t.last, t.sent).max())
    margins = [(start, start), *((a, b) for a, b in busy if a < end), (end, end)]
    out: list[int] = []
    reach = margins[0][1]
    for begin, stop in margins:
        at = reach + int(before * 1e9)
        while at + int(after * 1e9) <= begin:
            out.append(at)
            at += int((before + after) * 1e9)
        reach = max(reach, stop)
    return out


def bin_edges(start: int, end: int, most: int = 240) -> I64:
    """Edges (ns) of at most `most` bins of a round width over a run."""
    width = next(w for w in _widths() if (end - start) / w <= most)
    return np.arange(start, end + width, width, dtype=np.int64)


def _widths() -> list[int]:
    return [m * 10**e for e in range(7, 19) for m in (1, 2, 5)]


def rate(at: I64, edges: I64) -> F64:
    """Events per second in each bin; the last, partial bin is left out: [B - 1]."""
    return np.histogram(at, edges)[0][:-1] / (float(edges[1] - edges[0]) / 1e9)


def over_time(samples: Samples, edges: I64, q: float) -> F64:
    """The q-quantile in each bin: [B]."""
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, samples.at, side="right") - 1, 0, bins - 1)
    return grouped_quantile(place, samples.ms, bins, q)


@dataclass(frozen=True, slots=True)
class Scrapes:
    """The target's figures as columns, in the order they were read."""

    rows: tuple[records.Scrape, ...]
    at: I64  # [n] ns
    x: F64  # [n] seconds since the start

    def gauge(self, name: str) -> F64:
        """A figure, NaN where the target did not say; of adapters, how many: [n]."""
        found = [getattr(r, name) for r in self.rows]
        if name.startswith("lora_"):
            said = [r.lora_slots >= 0 for r in self.rows]
            found = [len([a for a in v.split(",") if a]) if ok else -1 for v, ok in zip(found, said, strict=True)]
        values = np.array(found, float)
        return np.where(values >= 0, values, np.nan)

    def rates(self, name: str) -> F64:
        """Increase of a counter per second since the read before; NaN at the first and where it was reset: [n]."""
        values, step = self.gauge(name), np.maximum(np.diff(self.at), 1) / 1e9
        rise = np.diff(values) / step
        return np.concatenate([[np.nan], np.where(rise >= 0, rise, np.nan)])


def scrapes(recorded: History) -> Scrapes:
    """The target's figures on the report's time axis."""
    rows = tuple(sorted(recorded.scrapes, key=lambda r: r.at_ns))
    at = np.array([r.at_ns for r in rows], np.int64)
    return Scrapes(rows, at, (at - origin(recorded)[0]) / 1e9)
