"""`make bench`: every client on the same firehose, one table, docs/performance.md.

    python bench/run.py [--quick] [--only NAME,...] [--streams N,...] [--no-write]

The server is pinned to core 0, the clients to core 1. Clients take turns within a number of streams, so that a ratio
compares neighbours in time. Results of every measurement are kept in build/bench/results.json: `--only` replaces its
own rows and leaves the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict

import clients
from clients import BUILD, CLIENTS, ROOT, Client, Run
from measure import Firehose, Load, Sample, measure

from loadtest.errors import LoadtestError

RATE = 20.0
TOKENS = 256
DOCUMENT = ROOT / "docs/performance.md"
BEGIN, END = "<!-- bench: written by make bench -->", "<!-- /bench -->"


def build() -> None:
    """Compile the instruments."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("firehose", "floor"):
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(BUILD / name), str(ROOT / f"bench/{name}.c")]
        subprocess.run(command, check=True)


def one(client: Client, load: Load, rate: float = RATE) -> Sample:
    """Measure a client on a fresh server."""
    folder = BUILD / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with Firehose(BUILD / "firehose", rate) as server:
        run = Run(server, load, folder)
        sample = measure(client.name, client.command(run), server, load, folder / "log", client.env(run))
        try:
            begin = sample.begin_ns
            sample.lag_ms = client.lags(run, (begin, begin + int(sample.window_s * 1e9)))
            sample.streaming_lag_ms = client.lags(run, (begin, begin + int(sample.streaming_s * 1e9)))
        except (OSError, ValueError, LookupError, LoadtestError) as e:
            sample.note += f" no lags ({type(e).__name__})"
    if sample.us_per_event is None:
        tail = (folder / "log").read_text(errors="replace").strip().splitlines()
        sample.note += f": {tail[-1][:100]}" if tail else ""
    return sample


def table(samples: list[Sample]) -> str:
    """One Markdown table; ratios against the floor of the same number of streams."""
    head = "| client | streams | streaming µs/event | × floor | with ends | × floor | whole | core"
    lines = [f"{head} | lag p50 / p99 ms | with ends p99 | MB | |", "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    floors = {s.streams: s for s in samples if s.client == "floor"}
    for s in samples:
        floor = floors.get(s.streams, Sample("floor", s.streams))
        lag = f"{s.streaming_lag_ms['p50']:.2f} / {s.streaming_lag_ms['p99']:.2f}" if s.streaming_lag_ms else "–"
        note = s.note.strip() or ("saturated" if (s.core or 0) > 0.95 else "")
        cells = [s.client, f"{s.streams:,}", _number(s.streaming_us), _ratio(s.streaming_us, floor.streaming_us)]
        cells += [_number(s.us_per_event), _ratio(s.us_per_event, floor.us_per_event), _number(s.whole_us_per_event)]
        cells += [_number(s.core, 2), lag, _number(s.lag_ms.get("p99"), 2), _number(s.memory_mb, 0)]
        lines.append("| " + " | ".join([*cells, note.replace("|", "/")]) + " |")
    return "\n".join(lines)


def _ratio(value: float | None, floor: float | None) -> str:
    return f"{value / floor:.1f}" if value and floor else "–"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def versions() -> str:
    """What was compared, and on what."""
    found = [f"{c.name} {v}" for c in CLIENTS if (v := clients.version(c))]
    machine = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"Measured {time.strftime('%Y-%m-%d')} on {machine}: {', '.join(found)} (floor: gcc's version)."


def kept() -> list[Sample]:
    """Rows of earlier calls."""
    path = BUILD / "results.json"
    return [Sample(**row) for row in json.loads(path.read_text())] if path.exists() else []


def keep(samples: list[Sample]) -> list[Sample]:
    """Merge into the rows of earlier calls, in the order of the table."""
    fresh = {(s.client, s.streams) for s in samples}
    order = {c.name: i for i, c in enumerate(CLIENTS)}
    rows = [s for s in kept() if (s.client, s.streams) not in fresh] + samples
    rows.sort(key=lambda s: (s.streams, order.get(s.client, 99)))
    (BUILD / "results.json").write_text(json.dumps([asdict(s) for s in rows], indent=1))
    return rows


def write(text: str) -> None:
    """Put the table into the document, between its marks."""
    old = DOCUMENT.read_text() if DOCUMENT.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one number of streams, short windows, no peers' tables")
    parser.add_argument("--only", default="", help="clients by name, comma-separated; prefixes do")
    parser.add_argument("--streams", default="1000,2000,3000")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    build()
    counts = [200] if options.quick else [int(n) for n in options.streams.split(",")]
    tokens = 64 if options.quick else TOKENS
    wanted = [c for c in CLIENTS if not options.only or c.name.startswith(tuple(options.only.split(",")))]
    samples = []
    broken = {c.name: clients.install(c) for c in wanted}
    for count in counts:
        load = Load(count, tokens, tokens / RATE, max(2.0, count / 500))
        for client in wanted:
            if broken[client.name]:
                samples.append(Sample(client.name, count, note=broken[client.name]))
            elif count <= client.limit:
                samples.append(one(client, load))
            else:
                continue
            sys.stderr.write(table(samples[-1:]).splitlines()[-1] + "\n")
    rows = samples if options.quick else keep(samples)
    text = f"{versions()}\n\n{table(rows)}"
    print(text)
    if not (options.no_write or options.quick):
        write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
