"""What is known of one run while it goes on, for the live page, the terminal's line and Prometheus. No I/O, no Locust.

Rules
1. Engines report once a second, each with its own stamps; `tick` joins what they said into one point of every curve.
2. Rates are sums over engines, latencies quantiles of their joined histograms (exact to 5 %), counts sums of totals.
3. Points are bounded: when there are `POINTS`, every second one goes and from then on only every second is kept.
   `generation` tells a reader that what it has is no longer a part of what there is.
4. A name or message of a server is cleaned where it comes in.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.report import text
from loadtest.traffic.live import quantile

POINTS = 1_800  # half an hour at one a second
SWAPS_SHOWN = 200
VIOLATIONS = ("torn", "stale", "foreign")
ACK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds

Message = dict[str, Any]


@dataclass(slots=True)
class _Engine:
    """The last second of one engine."""

    last: Message = field(default_factory=dict)
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One second. Times in seconds since the start, latencies in ms; None: nothing was seen."""

    at: float
    tokens_per_s: float
    itl_p50: float | None
    itl_p99: float | None
    ttft_p50: float | None
    open: int


@dataclass
class Board:
    """One run's figures so far."""

    run: str
    title: str
    phases: int
    versions: Mapping[str, Sequence[str]]  # adapter → labels, in the order of their numbers
    now_ns: Callable[[], int] = time.monotonic_ns
    state: str = "preparing"  # "preparing" | "running" | "judging" | "ended"
    verdict: dict[str, str] | None = None  # status, headline
    generation: int = 0

    def __post_init__(self) -> None:
        self.title = text.clean(self.title)
        self.zero_ns = self.now_ns()
        self.points: list[Point] = []
        self.swaps: deque[Message] = deque(maxlen=SWAPS_SHOWN)
        self.swap_counts: Counter[tuple[str, str]] = Counter()  # (arm or "operator", outcome)
        self.acks: list[int] = [0] * (len(ACK_BUCKETS) + 1)
        self.ack_sum_s = 0.0
        self.phase: Message = {}
        self.marks: list[Message] = []  # phases: arm, adapter, start, end
        self._engines: dict[str, _Engine] = {}
        self._itl: Counter[int] = Counter()
        self._ttft: Counter[int] = Counter()
        self._seen: dict[tuple[str, str], int] = {}
        self._stride = self._skipped = 0
        self._closed_ns = 0

    # -- what comes in ------------------------------------------------------------------------------------------------

    def count(self, engine: str, message: Message) -> None:
        """An engine's `progress`."""
        mine = self._engines.setdefault(engine, _Engine())
        before, since = mine.last, mine.last.get("at_ns") or message.get("started_ns", 0)
        if message.get("at_ns", 0) > since > 0:
            tokens = message.get("live_tokens", 0) - before.get("live_tokens", 0)
            mine.rate = max(0.0, tokens / ((message["at_ns"] - since) / 1e9))
        if engine == "e0" and message.get("started_ns"):
            self.zero_ns = message["started_ns"]
        mine.last = message
        self._itl.update(dict(message.get("itl") or ()))
        self._ttft.update(dict(message.get("ttft") or ()))
        for adapter, version, at in message.get("seen") or ():
            self._seen[adapter, version] = min(at, self._seen.get((adapter, version), at))

    def swap(self, message: Message) -> None:
        """An ended swap, as the engine tells it."""
        arm = str(message.get("arm") or "real")
        arm = "operator" if message.get("by") == "operator" else arm
        self.swap_counts[arm, str(message["outcome"])] += 1
        ack_ms = message.get("ack_ms")
        if ack_ms is not None:
            place = next((i for i, edge in enumerate(ACK_BUCKETS) if ack_ms / 1e3 <= edge), len(ACK_BUCKETS))
            self.acks[place] += 1
            self.ack_sum_s += ack_ms / 1e3
        self.swaps.append({**message, "arm": arm})

    def edge(self, message: Message) -> None:
        """Edge of a phase."""
        now = self.seconds(self.now_ns())
        if message["edge"] == "start":
            self.phase = message
            words = {k: text.clean(message.get(k) or "", 80) for k in ("arm", "adapter")}
            self.marks.append({**words, "start": now, "end": None})
        elif self.marks:
            self.marks[-1]["end"] = now

    def tick(self) -> None:
        """Join the last second."""
        itl, ttft, self._itl, self._ttft = self._itl, self._ttft, Counter(), Counter()
        self._skipped += 1
        if self._skipped <= self._stride:
            return
        self._skipped = 0
        rate = sum(e.rate for e in self._engines.values())
        p50, p99, first = (_short(quantile(bins, q)) for bins, q in ((itl, 0.5), (itl, 0.99), (ttft, 0.5)))
        at = self.seconds(self.now_ns())
        self.points.append(Point(at, round(rate, 1), p50, p99, first, self.total("open")))
        if len(self.points) >= POINTS:  # rule 3
            del self.points[::2]
            self._stride = 2 * self._stride + 1
            self.generation += 1

    def close(self) -> None:
        """The traffic is over: from here on no time passes on the page."""
        self.state, self._closed_ns = "judging", self.now_ns()

    # -- what goes out ------------------------------------------------------------------------------------------------

    def seconds(self, at_ns: int) -> float:
        """Seconds since the start, as in the report."""
        return round((at_ns - self.zero_ns) / 1e9, 3)

    def total(self, key: str) -> int:
        """A figure of the engines' last messages, added up."""
        return sum(int(e.last.get(key) or 0) for e in self._engines.values())

    def counts(self) -> Counter[str]:
        """Ended streams by outcome or reason, and by what their versions say: judged, torn, stale, foreign."""
        out: Counter[str] = Counter()
        for engine in self._engines.values():
            out.update(engine.last.get("counts") or {})
        return out

    def violations(self) -> dict[str, int]:
        """Streams that broke something, as known."""
        counts = self.counts()
        return {kind: counts[kind] for kind in VIOLATIONS if counts[kind]}

    def odd_swaps(self) -> int:
        """Swaps that did not end as asked for: in the arm `bad` a refusal is what was wanted."""
        return sum(n for (arm, outcome), n in self.swap_counts.items() if outcome != ("fail" if arm == "bad" else "ok"))

    def rate(self) -> float:
        """Tokens per second, of the last second."""
        return sum(e.rate for e in self._engines.values())

    def engines(self) -> dict[str, Message]:
        """The last message of every engine."""
        return {name: e.last for name, e in self._engines.items()}

    def effect_ms(self, swap: Message) -> float | None:
        """From a swap's invocation to the first token of its version; None: none was seen so far."""
        at, invoked = self._seen.get((swap["adapter"], swap["version"]), 0), int(swap["invoked_ns"])
        known = at >= invoked and swap["arm"] in ("real", "operator")
        return (at - invoked) / 1e6 if known else None

    def shown_swaps(self) -> list[Message]:
        """The last swaps, newest first; JSON-able, every text cleaned. Only the first of a version has an effect."""
        out, known = [], set[tuple[str, str]]()
        for s in self.swaps:
            who = (s["adapter"], s["version"])
            effect = None if who in known else self.effect_ms(s)
            known.add(who)
            words = {k: text.clean(s.get(k) or "", 160) for k in ("adapter", "version", "arm", "outcome", "reason")}
            figures = {"ack_ms": _short(s.get("ack_ms")), "effect_ms": _short(effect)}
            out.append({"n": s["n"], "at": self.seconds(s["invoked_ns"]), **words, **figures})
        return out[::-1]

    def document(self, since: float, generation: int) -> dict[str, Any]:
        """All of it for a page that already has the points up to `since` of `generation`."""
        since = since if generation == self.generation else -math.inf
        counts = self.counts()
        return {
            "run": text.clean(self.run),
            "title": self.title,
            "state": self.state,
            "generation": self.generation,
            "now": self.seconds(self._closed_ns or self.now_ns()),
            "phase": self._phase_words(),
            "phases": self.marks,
            "points": [_row(p) for p in self.points if p.at > since],
            "swaps": self.shown_swaps(),
            "streams": {k: self.total(k) for k in ("sent", "open", "ok", "fail", "info")},
            "counts": {text.clean(k, 40): n for k, n in sorted(counts.items())},
            "tokens": self.total("live_tokens"),
            "health": self._health(),
            "adapters": {text.clean(a, 80): [text.clean(v, 40) for v in found] for a, found in self.versions.items()},
            "verdict": self.verdict,
        }

    def _phase_words(self) -> str:
        if not self.phase:
            return "ramp" if self.state == "running" else ""
        adapter = f" on {text.clean(self.phase['adapter'], 80)}" if self.phase.get("adapter") else ""
        return f"{self.phase['index'] + 1}/{self.phases} {text.clean(self.phase['arm'], 20)}{adapter}"

    def _health(self) -> dict[str, Any]:
        last = self.engines().values()
        return {
            "loop_lag_p99_ms": max((float(m.get("lag_ms") or 0.0) for m in last), default=None),
            "cpu": max((float(m.get("cpu") or 0.0) for m in last), default=None),
            "dropped": self.total("dropped"),
            "silent_ms": _short(max((float(m.get("silent_ms") or 0.0) for m in last), default=None)),
        }


def _row(p: Point) -> list[float | None]:
    return [p.at, p.tokens_per_s, p.itl_p50, p.itl_p99, p.ttft_p50, p.open]


def _short(value: float | None) -> float | None:
    """Three significant digits: more are not known, and a page is polled."""
    return None if value is None else float(f"{value:.3g}")
