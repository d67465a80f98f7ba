"""Does the tool scale over processes? `loadtest run --processes N`, N x STREAMS streams, on the same firehose.

    python bench/scaling.py [--streams 700] [--processes 1,2] [--repeat 3]

Nothing is pinned: server, Locust and engines share all cores. For each N: tokens in the merged history per second of
the window, CPU of all processes per event, lag. Linear is N times the tokens of one process at the same CPU per event.
Rounds take turns, so that a ratio compares neighbours in time. N processes of the C floor client say what an event
costs more because the machine is fuller: its cores share caches and, often, execution units.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace

import measure
import run
from clients import BUILD, CLIENTS
from measure import Load, Sample
from run import RATE, TOKENS

from loadtest import history

WHOLE = next(c for c in CLIENTS if c.name == "loadtest run")
FLOOR = next(c for c in CLIENTS if c.name == "floor")


def one(processes: int, streams: int) -> tuple[Sample, float, int]:
    """(cost, recorded tokens a second in the window, history files) of N processes."""
    more = ["--processes", str(processes)] if processes > 1 else []
    client = replace(WHOLE, name=f"{processes} processes", command=lambda asked: [*WHOLE.command(asked), *more])
    load = Load(streams * processes, TOKENS, TOKENS / RATE, max(2.0, streams * processes / 500))
    sample = run.one(client, load)
    recorded = BUILD / "work" / "runs" / "latest"
    at = history.load(recorded).at
    tokens = int(((at >= sample.begin_ns) & (at < sample.begin_ns + int(sample.window_s * 1e9))).sum())
    return sample, tokens / sample.window_s, len(list(recorded.glob("history-*.jsonl")))


def floor(processes: int, streams: int) -> float:
    """CPU µs per event of N floor clients."""
    each = Load(streams, TOKENS, TOKENS / RATE, max(2.0, streams / 500))

    def command(asked: run.Run) -> list[str]:
        one = " ".join(FLOOR.command(replace(asked, load=each)))
        return ["sh", "-c", " & ".join([one] * processes) + " & wait"]

    client = replace(FLOOR, command=command, lags=lambda asked, window: {})
    return run.one(client, replace(each, streams=streams * processes)).us_per_event or 0.0


def main() -> int:
    """Take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=700, help="per process")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    run.build()
    measure.CORES = 1  # nothing is pinned
    counts = [int(n) for n in given.processes.split(",")]
    rounds = [{n: (*one(n, given.streams), floor(n, given.streams)) for n in counts} for _ in range(given.repeat)]
    print(
        "| processes | streams | recorded tokens/s | × of the first | CPU µs/event | × | floor's "
        "| lag p99 ms | history files |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for n in counts:
        rate = statistics.median(r[n][1] for r in rounds)
        cost = statistics.median(r[n][0].us_per_event or 0.0 for r in rounds)
        rates = statistics.median(r[n][1] / r[counts[0]][1] for r in rounds)
        costs = statistics.median((r[n][0].us_per_event or 0.0) / (r[counts[0]][0].us_per_event or 1.0) for r in rounds)
        floors = statistics.median(r[n][3] / (r[counts[0]][3] or 1.0) for r in rounds)
        lag = statistics.median(r[n][0].lag_ms["p99"] for r in rounds)
        cells = [
            str(n),
            f"{n * given.streams:,}",
            f"{rate:,.0f}",
            f"{rates:.2f}",
            f"{cost:.1f}",
            f"{costs:.2f}",
            f"{floors:.2f}",
        ]
        print("| " + " | ".join([*cells, f"{lag:.2f}", str(rounds[0][n][2])]) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
