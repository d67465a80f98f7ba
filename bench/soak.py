"""Does the engine's memory stay flat? STREAMS closed-loop users on the firehose for an hour, memory every 10 s.

    python bench/soak.py [--seconds 3600] [--streams 500] [--rate 20] [--tokens 256] [--csv FILE]

The engine is the process that a run starts for its traffic; it writes its history as in a run. Growth is fitted by
least squares over everything after the first five minutes (or the first sixth, where that is shorter). Exits 1 when
the fitted growth over the whole time is more than a twentieth of the memory at its start.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import procs
from clients import BUILD, ROOT
from measure import Firehose
from run import build

from loadtest import history

EVERY_S = 10.0
TOLERATED = 0.05


def engine_of(pid: int) -> int:
    """The traffic process among the descendants of a driver."""
    for child in procs.tree(pid):
        try:
            if b"loadtest.traffic.engine" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        except OSError:
            continue
    raise SystemExit("the engine did not start")


def watch(pid: int, server: Firehose, seconds: float, csv_file: Path) -> list[tuple[float, float, float, int]]:
    """(seconds since the start, MB resident, CPU seconds, open streams), one a line, until the time is over.

    Each is in `csv_file` at once; -1 open streams where the server did not say in time, which is no end of a soak.
    """
    rows, begun = [], time.monotonic()
    with csv_file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(("s", "mb", "cpu_s", "open"))
        while (now := time.monotonic() - begun) < seconds and procs.running(pid):
            memory, cpu = procs.rss_mb(pid), procs.cpu_s(pid)
            try:
                streams = server.stats()["open"]
            except TimeoutError:
                streams = -1
            rows.append((now, memory, cpu, streams))
            table.writerow(rows[-1])
            out.flush()
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{now:6.0f} s  {memory:7.1f} MB  {streams} open ")
            time.sleep(EVERY_S)
    return rows


def summary(rows: list[tuple[float, float, float, int]], streams: int) -> tuple[str, bool]:
    """What they say, and whether memory was flat."""
    at, memory, cpu, _ = (np.array(c, float) for c in zip(*rows, strict=True))
    late = at >= min(300.0, at[-1] / 6)
    slope, start = np.polyfit(at[late] - at[late][0], memory[late], 1)
    growth = slope * (at[-1] - at[late][0])
    words = (
        f"{at[-1]:.0f} s at {streams} streams, {cpu[-1] / at[-1]:.2f} of a core: {start:.1f} MB after "
        f"{at[late][0]:.0f} s, {start + growth:.1f} MB at the end (fitted; least {memory[late].min():.1f}, most "
        f"{memory[late].max():.1f}), {3600 * slope:+.2f} MB an hour, {1000 * memory[late].max() / streams:.0f} kB a "
        "stream with everything counted"
    )
    return words, abs(growth) <= TOLERATED * start


def main() -> int:
    """Run it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--csv", type=Path, default=BUILD / "soak.csv")
    given = parser.parse_args()
    build()
    with tempfile.TemporaryDirectory() as scratch, Firehose(BUILD / "firehose", given.rate) as server:
        figures = map(str, (given.streams, given.seconds + 10, given.streams / 100, given.tokens))
        command = [sys.executable, str(ROOT / "bench/ours.py"), server.url, f"{scratch}/run", *figures]
        driver = subprocess.Popen(command)
        try:
            time.sleep(given.streams / 100 + 5)
            rows = watch(engine_of(driver.pid), server, given.seconds, given.csv)
            driver.wait(timeout=120)
        finally:
            driver.kill()
        recorded = history.load(Path(scratch) / "run")
    words, flat = summary(rows, given.streams)
    reasons = {recorded.streams.reasons[c]: int(n) for c, n in enumerate(np.bincount(recorded.streams.reason)) if n}
    print(words)
    print(f"{len(recorded.streams):,} streams recorded, {len(recorded.ids):,} tokens, by reason ('' = ok): {reasons}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
