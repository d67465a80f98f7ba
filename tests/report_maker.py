"""Writes histories for report tests, with the real journal: a run of marker adapters under hotfixes."""

from __future__ import annotations

import json
import random
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest import history, records
from loadtest.analysis import verdict
from loadtest.journal import Journal

S = 1_000_000_000
MS = 1_000_000
ZERO = 5_000 * S  # a monotonic clock does not start with the run


@dataclass
class Play:
    """What happens. Adapter a is hotfixed `swaps` times between two quiet phases; b and base stand by."""

    users: int = 12
    streams: int = 240
    tokens: int = 60
    swaps: int = 12
    quiet_s: float = 4.0
    every_s: float = 1.0
    itl_ms: float = 20.0
    hangover: float = 1.6
    adapters: tuple[str, str] = ("tenant-a", "tenant-b")
    torn: bool = True  # streams in flight move on to the new version (as vLLM does)
    fail_every: int = 40
    words: str = "connection closed before [DONE]"
    seed: int = 3
    marks: dict[str, int] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        return 2 * self.quiet_s + self.swaps * self.every_s

    def swap_times(self) -> list[tuple[int, int]]:
        """(invoked, acked) of version 1, 2, ..."""
        rng = random.Random(self.seed)
        times = [ZERO + round((self.quiet_s + n * self.every_s) * S) for n in range(self.swaps)]
        return [(t, t + round(rng.uniform(40, 120) * MS)) for t in times]


def write(folder: Path, play: Play) -> history.History:
    """Play it into `folder` and read it back."""
    journal = Journal(folder, records.Run(1, "r", "e0", "local", "boot", 1, 7, ZERO, 0, "0.1"))
    a, b = play.adapters
    for n in range(play.swaps + 1):
        journal.emit(records.Version(a, f"v{n}", f"{n:064x}", f"/adapters/{n}", (1000 + n,)))
    journal.emit(records.Version(b, "v0", "f" * 64, "/adapters/b", (2000,)))
    journal.emit(records.Version("base", "base", "", "/base"))
    swaps = play.swap_times()
    _phases(journal, play, a)
    _swaps(journal, swaps, play, a)
    for n in range(play.streams):
        _stream(journal, n, play, swaps, random.Random(play.seed * 100_003 + n))
    for n in range(int(play.end_s)):
        at = ZERO + n * S
        journal.emit(records.Health(at, at + S, 0.4 + n % 3, 2.0, 0.2, play.users))
    journal.emit(records.Event(ZERO + S, "note", play.words))
    journal.close("complete", ZERO + round((play.end_s + 1) * S))  # after the streams that were open then
    return history.load(folder)


def _phases(journal: Journal, play: Play, adapter: str) -> None:
    edges = [0.0, play.quiet_s, play.end_s - play.quiet_s, play.end_s]
    for index, (arm, name) in enumerate((("aa", ""), ("real", adapter), ("aa", ""))):
        journal.emit(records.Phase(index, arm, "start", ZERO + round(edges[index] * S), name))
        journal.emit(records.Phase(index, arm, "end", ZERO + round(edges[index + 1] * S), name))


def _swaps(journal: Journal, swaps: list[tuple[int, int]], play: Play, adapter: str) -> None:
    for n, (invoked, acked) in enumerate(swaps, 1):
        bad = n % 5 == 4
        version, arm = (f"v{n}", "real") if not bad else ("bad:missing", "bad")
        path = f"/srv/adapters/{n}"
        journal.emit(records.Invoke(n, adapter, "inplace", version, path, arm, "scenario", invoked, 1))
        if n != play.swaps:  # the last one is never answered
            outcome = "fail" if bad else "ok"
            journal.emit(
                records.Ack(
                    n, outcome, acked, 400 if bad else 200, "not_found" if bad else "", play.words if bad else ""
                )
            )


def _served(at: int, swaps: list[tuple[int, int]]) -> int:
    return max((n for n, (invoked, acked) in enumerate(swaps, 1) if n % 5 != 4 and acked <= at), default=0)


def _stream(journal: Journal, n: int, play: Play, swaps: list[tuple[int, int]], rng: random.Random) -> None:
    length = play.end_s * S
    adapter = (*play.adapters, play.adapters[0], "base")[n % 4]
    sent = ZERO + round(length * 0.93 * n / play.streams)
    at, ids, arrivals = sent + round(rng.uniform(20, 60) * MS), array("i"), array("I")
    pinned = _served(sent, swaps)
    failing = n % play.fail_every == play.fail_every - 1
    for _ in range(play.tokens if not failing else play.tokens // 3):
        ids.append(_token(adapter, play, pinned, _served(at, swaps), rng))
        arrivals.append((at - sent) // 1000)
        slow = play.hangover if at > swaps[0][1] else 1.0
        near = any(invoked < at < acked + 30 * MS for invoked, acked in swaps)
        at += round(play.itl_ms * slow * rng.uniform(0.8, 1.2) * (3 if near else 1) * MS)
    first, last = sent + arrivals[0] * 1000, sent + arrivals[-1] * 1000
    journal.emit(records.Send(n, adapter, f"u{n % play.users}", sent, sent, play.tokens))
    outcome: Any = "fail" if failing else "ok"
    journal.stream(
        records.Stream(
            n, adapter, f"u{n % play.users}", sent, sent, play.tokens, True, first, first, last, last + MS, 200,
            outcome, "cut" if failing else "", play.words if failing else "", "" if failing else "length", not failing,
            len(ids), 0, len(ids), -1 if failing else len(ids),
        ),
        ids, arrivals, [1, 2, 3],
    )  # fmt: skip


def _token(adapter: str, play: Play, pinned: int, served: int, rng: random.Random) -> int:
    if adapter == "base" or rng.random() < 0.004:
        return rng.randrange(10, 900)
    return 1000 + (served if play.torn else pinned) if adapter == play.adapters[0] else 2000


def judge(recorded: history.History) -> dict[str, Any]:
    """verdict.json of this history, as the analysis writes it."""
    require = verdict.Require(level="stream-atomic", min_swaps=3, swap_ack_p99_ms=500, hangover=1.2, isolated_stall=2.0)
    document: dict[str, Any] = json.loads(json.dumps(verdict.to_json(verdict.judge(recorded, require))))
    return document


KEYS = (
    "status", "required_level", "level_held", "guarantees", "gates", "budgets", "streams", "swaps", "swap_latency_ms",
    "swap_latency_by_arm_ms", "effects", "hangover", "arms", "adapters", "tokens", "client", "false_alarms",
)  # fmt: skip
SERVED = {1000: ("a", "v0"), 1001: ("a", "v1"), 2000: ("b", "v0")}


def from_ids(folder: Path, ids: list[list[int]]) -> history.History:
    """Streams of adapter "a" with exactly these ids, a millisecond apart; SERVED says whose markers they are."""
    journal = Journal(folder, records.Run(1, "r", "e0", "local", "boot", 1, 7, ZERO, 0, "0.1"))
    for token, (adapter, label) in SERVED.items():
        journal.emit(records.Version(adapter, label, "", "", (token,)))
    for n, mine in enumerate(ids):
        at, count = ZERO + n, len(mine)
        record = records.Stream(
            n, "a", "u", at, at, count, True, at, at, at, at, 200, "ok", "", "", "length", True, count, 0, count, count
        )
        journal.stream(record, array("i", mine), array("I", range(1000, 1000 + 1000 * count, 1000)))
    journal.close("complete", ZERO + S)
    return history.load(folder)
