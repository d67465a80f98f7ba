"""What the live page costs the traffic engine: CPU per second of a run, as a share of one core.

    python bench/live_cost.py [streams] [tokens/s]

It plays seconds of a run against `traffic.live.Live` with the journal taken away, and counts CPU time, so that a busy
machine changes little: streams that are open and read, streams that end, and the once-a-second sum.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from typing import Any

from loadtest.records import Record, Stream, Version
from loadtest.traffic.capture import Reads
from loadtest.traffic.ipc import frame
from loadtest.traffic.live import Live

SECOND = 1_000_000_000
LENGTH = 256  # tokens of a stream
ROUNDS = 30


class Nowhere:
    """A journal that costs nothing."""

    def emit(self, record: Record, flush: bool = False) -> bool:
        return True

    def stream(self, record: Stream, ids: array[int], arrivals_us: array[int], prompt: Any = ()) -> Stream:
        return record


def main(streams: int, rate: int) -> None:
    """Print the cost of `streams` open streams that bring `rate` tokens a second between them."""
    now = [SECOND]
    live = Live(Nowhere(), lambda: now[0])
    for n in range(60):
        live.emit(Version("a", f"v{n}", "", "", (1000 + n,)))
    each = max(1, rate // streams)
    for _ in range(streams):
        reads = Reads(1 << 30, lambda: now[0])
        for n in range(LENGTH // 2):
            reads.add(SECOND - (LENGTH - n) * SECOND // each, b"data: x\n\n")
        live.reads.add(reads)
    ids = array("i", [1003] * (LENGTH // 2) + [1004] * (LENGTH - LENGTH // 2))
    arrivals = array("I", range(1000, 1000 + LENGTH))
    record = Stream(
        1, "a", "u", 1, 1, LENGTH, True, 2, 3, 4, 5, 200, "ok", "", "", "length", True, LENGTH, 0, LENGTH, LENGTH
    )
    ending = sizes = 0.0
    summing = 0.0
    for _ in range(ROUNDS):
        for reads in live.reads:
            for n in range(each):
                reads.add(now[0] + n * SECOND // each, b"data: x\n\n")
        now[0] += SECOND
        began = time.process_time()
        for _ in range(rate // LENGTH):
            live.stream(record, ids, arrivals)
        middle = time.process_time()
        sizes += len(frame({"op": "progress", **live.second()}))
        summing += time.process_time() - middle
        ending += middle - began
    print(
        json.dumps(
            {
                "streams": streams,
                "tokens_per_s": rate,
                "percent_of_a_core": round(100 * (ending + summing) / ROUNDS, 3),
                "of_which_at_stream_ends": round(100 * ending / ROUNDS, 3),
                "bytes_to_the_host_per_s": round(sizes / ROUNDS),
            }
        )
    )


if __name__ == "__main__":
    main(*(int(a) for a in (*sys.argv[1:3], *("1000", "20000")[len(sys.argv) - 1 :])))
