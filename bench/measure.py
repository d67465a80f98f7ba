"""One client against the firehose: started, watched while its streams run, accounted.

Two windows begin a second after the wanted number of streams is open. The first lasts until the first stream can have
ended: what streaming costs. The second lasts as long as a stream does, so that about every stream ends in it once and
another one begins: what a run costs. CPU per event is the tree's CPU in a window over the events the server sent in it,
so no client counts for itself and none has to cooperate.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import procs

SETTLE_S = 1.0
POLL_S = 0.2
FULL = 0.97  # of the wanted streams
GONE = 0.2  # the run is over; clients whose streams end together have fewer for a moment
SHORTEST_S = 2.0
CORES = os.cpu_count() or 1


@dataclass
class Sample:
    """What a client cost."""

    client: str
    streams: int  # wanted
    reached: int = 0  # most that were open at once
    events: int = 0  # in the window
    window_s: float = 0.0
    begin_ns: int = 0  # of the window, monotonic
    us_per_event: float | None = None  # of the second window
    streaming_us: float | None = None  # of the first
    streaming_s: float = 0.0
    whole_us_per_event: float | None = None  # from its first request to its exit, all events
    core: float | None = None  # CPU seconds a second in the second window
    memory_mb: float | None = None
    lag_ms: dict[str, float] = field(default_factory=dict)  # in the second window
    streaming_lag_ms: dict[str, float] = field(default_factory=dict)
    note: str = ""


def pinned(command: Sequence[str], core: int) -> list[str]:
    """The command bound to one core, where there are several."""
    return ["taskset", "-c", str(core), *command] if CORES > 1 else list(command)


class Firehose:
    """The server, on core 0."""

    def __init__(self, binary: Path, rate: float, event_bytes: int = 250) -> None:
        command = pinned([str(binary), "0", str(rate), str(event_bytes)], 0)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[-1])
        self.url = f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, int]:
        """events, open, streams, now_ns."""
        with urllib.request.urlopen(self.url + "/stats", timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
            return found

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Firehose:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Load:
    """What a client is asked for."""

    streams: int
    tokens: int
    seconds: float  # that a stream lasts, and the second window
    ramp_s: float


@dataclass(frozen=True)
class Mark:
    """What had happened at a moment."""

    events: int
    cpu_s: float
    at_s: float

    def us_per_event(self, before: Mark) -> float:
        """CPU since another mark over the events since."""
        return 1e6 * (self.cpu_s - before.cpu_s) / max(self.events - before.events, 1)


def measure(
    name: str, command: Sequence[str], server: Firehose, load: Load, log: Path, env: dict[str, str] | None = None
) -> Sample:
    """Run `command` on core 1; its output goes to `log`."""
    sample = Sample(name, load.streams)
    started = server.stats()
    with log.open("wb") as out:
        process = subprocess.Popen(
            pinned(command, 1),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
            start_new_session=True,
        )
        try:
            first = _follow(process, server, load, sample, started)
            _account(process, server, sample, started, first)
        finally:
            _end(process)
    return sample


def _follow(
    process: subprocess.Popen[bytes], server: Firehose, load: Load, sample: Sample, started: dict[str, int]
) -> float:
    """Wait for the windows and measure them; CPU seconds spent before the first request."""
    first, begun_s = 0.0, 0.0
    opened: Mark | None = None
    full_since, give_up = 0.0, time.monotonic() + 240
    while procs.running(process.pid) and time.monotonic() < give_up:
        time.sleep(POLL_S)
        now = server.stats()
        mark = Mark(now["events"], procs.cpu_s(process.pid), now["now_ns"] / 1e9)
        if not begun_s:
            first, begun_s = mark.cpu_s, mark.at_s if now["streams"] > started["streams"] else 0.0
            continue
        sample.reached = max(sample.reached, now["open"])
        if opened is None:
            full = now["open"] >= FULL * load.streams
            full_since = (full_since or time.monotonic()) if full else 0.0
            if full and time.monotonic() - full_since >= SETTLE_S:
                opened, sample.begin_ns = mark, int(mark.at_s * 1e9)
            continue
        elapsed = mark.at_s - opened.at_s
        if mark.at_s < begun_s - 2 * POLL_S + load.seconds and elapsed >= SHORTEST_S:
            sample.streaming_us, sample.streaming_s = mark.us_per_event(opened), elapsed
        if elapsed >= load.seconds or now["open"] < GONE * load.streams:
            sample.events, sample.window_s = mark.events - opened.events, elapsed
            sample.memory_mb = procs.rss_mb(process.pid)
            sample.us_per_event, sample.core = mark.us_per_event(opened), (mark.cpu_s - opened.cpu_s) / elapsed
            break
    return first


def _account(
    process: subprocess.Popen[bytes], server: Firehose, sample: Sample, started: dict[str, int], first: float
) -> None:
    """Let it end by itself, and take its whole CPU time."""
    give_up = time.monotonic() + 240
    pid, status = 0, 0
    while not pid and time.monotonic() < give_up:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        time.sleep(0.05)
    if not pid:
        sample.note = "did not end by itself"
        return
    process.returncode = os.waitstatus_to_exitcode(status)
    events = server.stats()["events"] - started["events"]
    sample.whole_us_per_event = 1e6 * (usage.ru_utime + usage.ru_stime - first) / events if events else None
    if sample.us_per_event is None:
        sample.note = f"never held {sample.streams} streams, at most {sample.reached}"
    if process.returncode not in (0, 1, 2):
        sample.note += f" exit code {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever is left of it."""
    for pid in reversed(procs.tree(process.pid)):
        try:
            os.kill(pid, 9)
        except OSError:
            continue
    if process.returncode is None:
        process.wait()
