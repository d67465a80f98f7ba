"""Lag of a run of ours against the firehose: arrival as recorded minus emission as the server said it in the token ids.

    python bench/lag.py RUN_FOLDER [SKIP_S]

The engine knows nothing of this: to it they are token ids. Prints JSON: p50, p99, p999, max in ms and the count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from loadtest import history


def lags_ms(folder: Path, skip_s: float = 0.0) -> np.ndarray:
    """Lag of every token that arrived `skip_s` or more after the first send: ms, float64 [T]."""
    found = history.load(folder)
    begin = int(found.streams.sent[0]) if len(found.streams) else 0
    at_us = found.at // 1000
    late = (at_us - found.ids) % (1 << 31)
    late = np.where(late > 1 << 30, late - (1 << 31), late)  # the stamp is truncated to a µs
    return late[found.at >= begin + int(skip_s * 1e9)] / 1000


def summary(lags: np.ndarray) -> dict[str, float]:
    """Quantiles, ms."""
    if not len(lags):
        return {}
    names = {"p50": 50, "p99": 99, "p999": 99.9, "max": 100}
    return {"n": len(lags), **{k: round(float(np.percentile(lags, q)), 3) for k, q in names.items()}}


if __name__ == "__main__":
    print(json.dumps(summary(lags_ms(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))))
