"""How late the tester itself was. A late client stamps late: versions are judged from intervals that lateness only
widens, but a latency that it measured is its own lateness too, so nobody is accused of one.
"""

from __future__ import annotations

import numpy as np

from loadtest.analysis.case import Case
from loadtest.history import I64

LAG_LIMIT_MS = 10.0  # of the event loop's lag p99
LAG_SHARE = 0.9  # of the health intervals that must keep it: one collection pause is no verdict


def lag_ms(case: Case, start: I64, end: I64) -> float | None:
    """The event loop lag p99 that LAG_SHARE of the client's health intervals keep, among those that overlap one of the
    windows [start[i], end[i]]; None where none was recorded.
    """
    values = [h.lag_p99_ms for h in case.history.health if ((start <= h.at_ns) & (end >= h.from_ns)).any()]
    return float(np.quantile(np.array(values), LAG_SHARE, method="inverted_cdf")) if values else None


def swap_lag_ms(case: Case) -> float | None:
    """The same around swaps; over the whole run where there is none."""
    if len(case.swaps):
        return lag_ms(case, case.swaps.invoked, case.swaps.end)
    whole = np.iinfo(np.int64)
    return lag_ms(case, np.array([whole.min]), np.array([whole.max]))


def late(lag: float | None) -> str:
    """Why a latency cannot be held against the server, "" when it can."""
    if lag is None:
        return "how late the client was is not on record"
    return f"the client was {lag:.1f} ms late itself" if lag > LAG_LIMIT_MS else ""
