"""What can be known while a run goes on: counts, rates and versions, for a page that somebody watches.

Rules
1. Nothing here decides a verdict. It sees a stream when it has ended, and every admin operation; it says "as known".
2. A stream costs one `set()` over its token ids and a few comparisons, a second at most `GAPS` gaps and one pass over
   the open streams. The hot path of a read is not touched: the reads are looked at where they lie.
3. torn: tokens of two versions of its own adapter. stale: a token of a version whose last load was superseded by an
   `ok` load that was acked before the stream was sent; a load that is `info` accuses nobody. foreign: another adapter's
   token. Versions are told by marker tokens; without markers nothing is said, nor of the base, which may emit one.
4. Until a stream ends its tokens are estimated: its reads, times the tokens per read of the streams that have ended.
"""

from __future__ import annotations

import math
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from loadtest.records import BAD, Ack, Invoke, Record, Stream, Version

if TYPE_CHECKING:
    from loadtest.traffic.capture import Reads

GAPS = 2_000  # gaps looked at in a second, of open streams chosen at random: p99 stands on the twenty largest
CHOSEN = 64  # open streams they are taken from
STEP = 1.05  # ratio of neighbouring bins of a histogram: what a quantile is exact to
BASE = "base"

Message = dict[str, Any]


class Sink(Protocol):
    """The part of a Journal that a run writes to."""

    def emit(self, record: Record, flush: bool = False) -> bool: ...

    def stream(
        self, record: Stream, ids: array[int], arrivals_us: array[int], prompt: Sequence[int] = ()
    ) -> Stream: ...


@dataclass(slots=True)
class Load:
    """One load of a version, in the order of its invocation."""

    version: str
    invoked: int
    acked: int = 0
    outcome: str = "info"


def bin_of(gap_ms: float) -> int:
    """Bin of a gap in a histogram that STEP divides; 0 holds what is 0.01 ms or less."""
    return max(0, math.ceil(math.log(max(gap_ms, 0.01) / 0.01) / math.log(STEP)))


def value_of(place: int) -> float:
    """Upper edge of a bin, ms."""
    return 0.01 * STEP**place


def quantile(bins: Mapping[int, int], q: float) -> float | None:
    """The q-quantile of a histogram, ms; None for an empty one."""
    left = math.ceil(q * sum(bins.values()))
    for place in sorted(bins):
        left -= bins[place]
        if left <= 0:
            return value_of(place)
    return None


class Live:
    """A Journal's double that also counts. One per engine."""

    def __init__(self, journal: Sink, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.reads: set[Reads] = set()  # of the streams that have not ended; whoever sends streams keeps it
        self._journal = journal
        self._now_ns = now_ns
        self._owner: dict[int, tuple[str, str] | None] = {}  # marker id → (adapter, version); None: two claim it
        self._loads: dict[str, list[Load]] = {}
        self._open_ops: dict[int, Load] = {}
        self._counts: Counter[str] = Counter()
        self._seen: dict[tuple[str, str], int] = {}  # when a version's first token was read, ns
        self._news: dict[tuple[str, str], int] = {}  # the same, changed since the last second
        self._ttft: Counter[int] = Counter()
        self._since = now_ns()
        self._tokens = self._chunks = 0  # of ended streams

    def emit(self, record: Record, flush: bool = False) -> bool:
        """Journal.emit."""
        written = self._journal.emit(record, flush)
        match record:
            case Version():
                self.declare(record.adapter, record.version, record.markers)
            case Invoke() if record.mode != "unload":
                load = self._open_ops[record.op] = Load(record.version, record.invoked_ns)
                self._loads.setdefault(record.adapter, []).append(load)
            case Ack():
                done = self._open_ops.pop(record.op, None)
                if done is not None:
                    done.acked, done.outcome = record.acked_ns, record.outcome
        return written

    def stream(self, record: Stream, ids: array[int], arrivals_us: array[int], prompt: Sequence[int] = ()) -> Stream:
        """Journal.stream."""
        placed = self._journal.stream(record, ids, arrivals_us, prompt)
        self._count(placed, ids, arrivals_us)
        return placed

    def declare(self, adapter: str, version: str, markers: Iterable[int]) -> None:
        """The tokens by which a version is known."""
        for token in markers:
            mine = (adapter, version)
            self._owner[token] = mine if self._owner.get(token, mine) == mine else None

    def swapped(self, message: Message) -> None:
        """An operation that another engine of the run has made, as its `swap` message says."""
        load = Load(message["version"], message["invoked_ns"], message["acked_ns"], message["outcome"])
        self._loads.setdefault(message["adapter"], []).append(load)

    def _count(self, record: Stream, ids: array[int], arrivals_us: array[int]) -> None:
        self._tokens += len(ids)
        self._chunks += record.chunks
        self._counts[record.reason or record.outcome] += 1
        if record.first_ns:
            self._ttft[bin_of((record.first_ns - record.sent_ns) / 1e6)] += 1
        if record.adapter == BASE:
            return
        found = {who: token for token in set(ids) if (who := self._owner.get(token)) is not None}
        if not found:
            return
        self._counts["judged"] += 1
        own = [version for adapter, version in found if adapter == record.adapter]
        self._counts["torn"] += len(own) > 1
        self._counts["foreign"] += len(own) < len(found)
        self._counts["stale"] += any(self._superseded(record, version) for version in own)
        for who, token in found.items():
            if who[0] == record.adapter:
                self._first(who, record.sent_ns + arrivals_us[ids.index(token)] * 1000)

    def _superseded(self, record: Stream, version: str) -> bool:
        """Rule 3."""
        loads = self._loads.get(record.adapter, ())
        known = [load for load in loads if load.version == version]
        mine = [load for load in known if load.outcome != "fail"]
        if (known and not mine) or any(load.outcome == "info" for load in mine):
            return False
        end = max((load.acked for load in mine), default=0)  # a worker is not told of the first load
        return any(
            load.outcome == "ok" and load.invoked > end and load.acked < record.sent_ns
            for load in loads
            if not load.version.startswith(BAD)
        )

    def _first(self, who: tuple[str, str], at_ns: int) -> None:
        if at_ns < self._seen.get(who, at_ns + 1):
            self._seen[who] = self._news[who] = at_ns

    def second(self) -> Message:
        """Totals, and what happened since the last call; JSON-able, small whatever the load."""
        now = self._now_ns()
        gaps, longest = self._gaps(now)
        reading = sum(len(r.stamps) for r in self.reads)
        per_read = self._tokens / self._chunks if self._chunks else 1.0
        message: Message = {
            "at_ns": now,
            "live_tokens": round(self._tokens + reading * per_read),
            "counts": dict(self._counts),
            "itl": sorted(gaps.items()),
            "ttft": sorted(self._ttft.items()),
            "silent_ms": longest,
            "seen": [[adapter, version, at] for (adapter, version), at in self._news.items()],
        }
        self._ttft, self._news, self._since = Counter(), {}, now
        return message

    def _gaps(self, now: int) -> tuple[Counter[int], float]:
        """Rule 2: gaps that ended since the last second, as a histogram; how long the most silent stream has waited."""
        open_now = list(self.reads)
        longest = max((now - r.last_ns for r in open_now), default=0) / 1e6
        out: Counter[int] = Counter()
        each = GAPS // max(1, min(CHOSEN, len(open_now)))
        for reads in random.sample(open_now, min(CHOSEN, len(open_now))):
            later = 0
            for stamp in reads.stamps[: -each - 2 : -1]:
                if later:
                    out[bin_of((later - stamp) / 1e6)] += 1
                if stamp < self._since:
                    break
                later = stamp
        return out, longest
