"""Lag of a run of ours against the firehose: arrival as recorded minus emission as the server said it in the token ids.

    python bench/lag.py RUN_FOLDER

The engine knows nothing of this: to it they are token ids. Prints JSON: p50, p99, p999, max in ms and the count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from loadtest import history


def lags_ms(folder: Path, begin_ns: int = 0, end_ns: int = 1 << 62) -> np.ndarray:
    """Lag of every token that arrived in the interval of monotonic time: ms, float64 [T]."""
    found = history.load(folder)
    late = (found.at // 1000 - found.ids) % (1 << 31)
    late = np.where(late > 1 << 30, late - (1 << 31), late)  # the stamp is truncated to a µs
    return late[(found.at >= begin_ns) & (found.at < end_ns)] / 1000


def summary(lags: np.ndarray) -> dict[str, float]:
    """Quantiles, ms."""
    if not len(lags):
        return {}
    names = {"p50": 50, "p99": 99, "p999": 99.9, "max": 100}
    return {"n": len(lags), **{k: round(float(np.percentile(lags, q)), 3) for k, q in names.items()}}


if __name__ == "__main__":
    print(json.dumps(summary(lags_ms(Path(sys.argv[1])))))
