"""How late this machine's engine stamps, and what a token costs it: measured against a server that knows.

The engine is the process that every run uses, its history is read back as any other, and each token id tells when it
was emitted. Server and engine are two processes: on a machine with one free core they disturb each other, which shows
as lag. What the certificate of a run (its loop lag) claims is printed beside what was measured.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtest import calibration, history
from loadtest.errors import LoadtestError, TargetError, UsageError
from loadtest.tools.firehose import ID_SPAN
from loadtest.tools.shown import Shown, Table
from loadtest.traffic.ipc import EngineHandle, Message

Say = Callable[[str], None]

RATE = 20.0  # tokens a second of each stream, as a busy server gives them
SLOWEST, FASTEST = 8.0, 200.0  # slower, no stream would end while it is measured
TOKENS = 64  # of a stream: some end in every second
SETTLE_S = 1.0
RAMP = 500  # streams opened a second: thousands at once make everybody late
LAG_LIMIT_MS = 10.0  # p99; more, and a run's `client_lag` gate would call it late
FULL = 0.9  # of a core: an engine has one
COLUMNS = ("streams", "tokens/s", "lag p50 ms", "lag p99 ms", "lag max ms", "loop lag p99 ms", "CPU µs/token", "core")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    streams: Sequence[int] = (100, 500, 1000)
    seconds: float = 8.0
    url: str = ""  # of a firehose of one's own (bench/firehose.c); "" starts the built-in one
    rate: float = RATE  # of the built-in one


def run(options: Options, say: Say) -> Shown:
    """Measure each number of streams; stops at the first that this machine does not hold."""
    return _shown(_measured(options, say), options.rate)


def _measured(options: Options, say: Say) -> list[dict[str, Any]]:
    if not options.streams or min(options.streams) < 1:
        raise UsageError("a number of streams must be at least 1", remedy="for example --streams 100,1000")
    server = None if options.url else _start(options.rate)
    url = options.url or f"http://127.0.0.1:{_port(server)}"
    rows = []
    try:
        for count in options.streams:
            say(f"{count} streams for {options.seconds:g} s")
            rows.append(measure(url, count, options.seconds))
            if not rows[-1]["held"]:
                break
    finally:
        if server is not None:
            server.communicate()  # its EOF
    return rows


def of_run(folder: Path, seconds: float, say: Say) -> Shown:
    """Measure at the most streams that an engine of a run had open, at the run's own pace; keeps it in the folder."""
    recorded = history.load(folder)
    streams = max((h.open_streams for h in recorded.health), default=0)
    t = recorded.streams
    busy_s = float((t.last - t.first)[t.tokens > 1].sum()) / 1e9
    if not streams or busy_s <= 0:
        raise UsageError(f"{folder} recorded no open streams", remedy="name a run that streamed for some seconds")
    rate = min(max(round(float((t.tokens - 1)[t.tokens > 1].sum()) / busy_s, 1), SLOWEST), FASTEST)
    (row,) = _measured(Options((streams,), seconds, rate=rate), say)
    lag = row["lag_ms"]
    figures = (lag["p50"], lag["p99"], lag["max"], row["loop_lag_p99_ms"] or 0.0, row["cpu_us_per_token"] or 0.0)
    path = calibration.write(folder, calibration.Calibration(streams, rate, *figures))
    shown = _shown([row], rate)
    lines = [*shown.lines, f"kept in {path}: `loadtest judge {folder}` prints it as the error bar of TTFT and ITL"]
    return replace(shown, lines=lines)


def measure(url: str, streams: int, seconds: float) -> dict[str, Any]:
    """One number of streams: lags in ms, CPU per token in µs, and whether the engine held them."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        folder = Path(scratch) / "run"
        begin_ns = _drive(url, folder, streams, seconds)
        recorded = history.load(folder)
    inside = recorded.at >= begin_ns
    late_us = (recorded.at[inside] // 1000 - recorded.ids[inside]) % ID_SPAN
    lags = np.where(late_us > ID_SPAN // 2, late_us - ID_SPAN, late_us) / 1000.0
    if not len(lags):
        raise TargetError(f"{url} sent no token", remedy="is it a firehose, as bench/firehose.c is?")
    health = [h for h in recorded.health if h.from_ns >= begin_ns and h.open_streams]
    span_s = sum(h.at_ns - h.from_ns for h in health) / 1e9
    edges = (min(h.from_ns for h in health), max(h.at_ns for h in health)) if health else (0, 0)
    tokens = int(((recorded.at >= edges[0]) & (recorded.at < edges[1])).sum())
    cpu_s = sum(h.cpu_s for h in health)
    p50, p99 = (float(v) for v in np.quantile(lags, [0.5, 0.99]))
    core = cpu_s / span_s if span_s else float("nan")
    return {
        "streams": streams,
        "tokens_per_s": tokens / span_s if span_s else None,
        "lag_ms": {"p50": p50, "p99": p99, "max": float(lags.max()), "n": len(lags)},
        "loop_lag_p99_ms": max((h.lag_p99_ms for h in health), default=None),
        "cpu_us_per_token": 1e6 * cpu_s / tokens if tokens else None,
        "core": core,
        "held": p99 <= LAG_LIMIT_MS and not core > FULL,
    }


def _drive(url: str, folder: Path, streams: int, seconds: float) -> int:
    """Closed-loop streams over an engine of its own; when the last of them had been sent, monotonic ns."""
    over = threading.Event()
    ask: Message = {"op": "stream", "id": 0, "adapter": "base", "prompt": [1], "max_tokens": TOKENS, "user": ""}
    failed: list[str] = []

    def again(message: Message) -> None:
        if message["op"] != "result" or over.is_set():
            return
        if message["outcome"] == "ok":
            engine.send(ask)
        else:
            failed.append(f"{message['reason']}: {message['detail']}")

    engine = EngineHandle(again)
    engine.start()
    try:
        config = {"engine": "e0", "role": "cli", "folder": str(folder), "url": url, "seed": 0}
        engine.configure(config)
        begun = time.monotonic()
        for n in itertools.count(1):
            engine.send(ask)
            if n == streams:
                break
            time.sleep(max(0.0, begun + n / RAMP - time.monotonic()))
        time.sleep(SETTLE_S)
        full_ns = time.monotonic_ns()
        time.sleep(seconds)
        over.set()
        if failed:
            raise TargetError(f"{len(failed)} streams failed, the first with {failed[0]}", remedy="is it a firehose?")
        if not engine.stop("complete", TOKENS / SLOWEST + SETTLE_S):
            raise LoadtestError("the traffic engine did not stop in order")
        return full_ns
    finally:
        over.set()
        engine.close()


def _start(rate: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "loadtest.tools.firehose", str(rate)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _port(server: subprocess.Popen[str] | None) -> int:
    assert server is not None
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line.strip().isdigit():
        raise LoadtestError("the built-in firehose did not start")
    return int(line)


def _shown(rows: Sequence[dict[str, Any]], rate: float) -> Shown:
    cells = []
    for r in rows:
        lag = r["lag_ms"]
        figures = (lag["p50"], lag["p99"], lag["max"], r["loop_lag_p99_ms"], r["cpu_us_per_token"], r["core"])
        told = ["–" if f is None else f"{f:.2f}" for f in figures]
        cells.append([f"{r['streams']:,}", f"{r['tokens_per_s'] or 0:,.0f}", *told])
    held = [r for r in rows if r["held"]]
    most = f"up to {held[-1]['streams']:,} streams" if held else "no number of streams that was tried"
    line = f"one engine of this machine held {most}: lag p99 within {LAG_LIMIT_MS:g} ms, under {FULL:g} of a core"
    beyond = [r for r in rows if not r["held"]]
    lines = [line, *(f"not held: {r['streams']:,} streams" for r in beyond)]
    document = {"rate": rate, "cores": os.cpu_count(), "measured": list(rows)}
    return Shown(document, (Table(COLUMNS, cells, frozenset(COLUMNS)),), lines)
