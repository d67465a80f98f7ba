"""One client against the firehose: started, watched while its streams run, accounted.

The window begins a second after the wanted number of streams is open and lasts until its time is over or the streams
become fewer. CPU per event is the tree's CPU in the window over the events the server sent in it, so no client counts
for itself and none has to cooperate.
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
GONE = 0.1
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
    us_per_event: float | None = None
    whole_us_per_event: float | None = None  # from its first request to its exit, all events
    core: float | None = None  # CPU seconds a second in the window
    memory_mb: float | None = None
    lag_ms: dict[str, float] = field(default_factory=dict)
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
    seconds: float  # of the window
    ramp_s: float


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
    """Wait for the window and measure it; CPU seconds spent before the first request."""
    first, begun = 0.0, False
    opened: tuple[int, float, float] | None = None  # (events, cpu, time) at the window's start
    full_since, give_up = 0.0, time.monotonic() + 240
    while procs.running(process.pid) and time.monotonic() < give_up:
        time.sleep(POLL_S)
        now = server.stats()
        if not begun:
            first, begun = procs.cpu_s(process.pid), now["streams"] > started["streams"]
            continue
        sample.reached = max(sample.reached, now["open"])
        if opened is None:
            full = now["open"] >= FULL * load.streams
            full_since = (full_since or time.monotonic()) if full else 0.0
            if full and time.monotonic() - full_since >= SETTLE_S:
                opened = (now["events"], procs.cpu_s(process.pid), now["now_ns"] / 1e9)
            continue
        elapsed = now["now_ns"] / 1e9 - opened[2]
        if elapsed >= load.seconds or now["open"] < GONE * load.streams:
            cpu = procs.cpu_s(process.pid) - opened[1]
            sample.begin_ns = int(opened[2] * 1e9)
            sample.events, sample.window_s = now["events"] - opened[0], elapsed
            sample.memory_mb = procs.rss_mb(process.pid)
            sample.us_per_event, sample.core = 1e6 * cpu / max(sample.events, 1), cpu / elapsed
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
