"""Hostile servers against the real engine process: how each attack ends, when, and what it costs.

    python bench/hostile_engine.py [ATTACK...]

One engine per attack: `COPIES` hostile streams at once, beside users of "good" on the same engine. Prints the reason,
the seconds until the last hostile stream was over, the engine's peak memory above idle, its worst loop lag, and the
outcomes of the good streams.
"""

from __future__ import annotations

import collections
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile import STREAMS, hostile

from loadtest import history
from loadtest.traffic.ipc import EngineHandle

COPIES = 3
LIMITS = {"stream_deadline_s": 6.0, "stall_s": 3.0, "connect_s": 5.0}


@dataclass
class Found:
    """What one engine made of its attackers."""

    reasons: dict[str, list[str]]  # by attack
    seconds: float  # until the last hostile stream was over
    peak_mb: float  # above idle
    history: history.History


def peak_mb(pid: int) -> float:
    """The largest resident size a process ever had, MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def attack(names: list[str], port: int, folder: Path, copies: int = COPIES) -> Found:
    """`copies` of each attack at once on a new engine, beside good streams."""
    engine = EngineHandle()
    engine.start()
    config = {"folder": str(folder), "url": f"http://127.0.0.1:{port}", "seed": 1, "engine": "e0", "role": "local"}
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    over = threading.Event()

    def ask(name: str) -> str:
        return str(engine.stream({"adapter": name, "prompt": [1, 2, 3], "max_tokens": 4, "user": name})["reason"])

    def user() -> None:
        while not over.is_set():
            ask("good")

    def villain(name: str) -> None:
        reasons[name].append(ask(name))

    try:
        engine.configure({**config, "headers": {"Authorization": "Bearer sk-secret-123"}, "limits": LIMITS})
        assert ask("good") == ""
        idle = peak_mb(engine.pid)
        users = [threading.Thread(target=user) for _ in range(4)]
        villains = [threading.Thread(target=villain, args=(n,)) for n in names for _ in range(copies)]
        begun = time.monotonic()
        for t in (*users, *villains):
            t.start()
        for t in villains:
            t.join()
        seconds = time.monotonic() - begun
        over.set()
        for t in users:
            t.join()
        peak = peak_mb(engine.pid) - idle
        assert engine.stop("complete", 5.0)
    finally:
        over.set()
        engine.close()
    return Found(dict(reasons), seconds, peak, history.load(folder))


def main(names: list[str]) -> None:
    """A table."""
    print(f"{'attack':22} {'ends as':28} {'s':>5} {'MB':>7} {'lag ms':>7}  good streams")
    with tempfile.TemporaryDirectory() as work, hostile(Path(work)) as port:
        for name in names:
            found = attack([name], port, Path(work) / name)
            lag = max(h.lag_max_ms for h in found.history.health)
            table = found.history.streams
            mine = [i for i in range(len(table)) if table.user[i] == "good"]
            good = collections.Counter(table.reasons[table.reason[i]] or "ok" for i in mine)
            ends = ", ".join(sorted({r or "ok" for r in found.reasons[name]}))
            print(f"{name:22} {ends:28} {found.seconds:5.1f} {found.peak_mb:7.1f} {lag:7.1f}  {dict(good)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or [n for n in STREAMS if n != "good"])
