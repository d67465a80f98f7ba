"""How late the tester itself was. A late client stamps late: versions are judged from intervals that lateness only
widens, but a latency that it measured is its own lateness too, so nobody is accused of one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from loadtest.analysis.case import Case
from loadtest.history import I64, Bool
from loadtest.records import Health

F64 = npt.NDArray[np.float64]

LAG_LIMIT_MS = 10.0  # of the event loop's lag p99
STANDSTILL_MS = 1000.0  # a single lag that is no lag any more: the process was stopped, or starved
LAG_SHARE = 0.9  # histories without samples: of the health intervals that must keep it
NOTED_NS = 100_000_000  # a loop that stood still notes its lag when it runs again, at times in the next interval


def lag_ms(case: Case, start: I64, end: I64) -> float | None:
    """The event loop's lag p99 over the health intervals that overlap one of the windows [start[i], end[i]]; None where
    one of them has none on record.

    It is that of all samples together: an interval has a hundred, and the p99 of a hundred is their maximum.
    """
    health = case.history.health
    hit: Bool = np.array([(start <= h.at_ns) & (end >= h.from_ns) for h in health], bool).reshape(
        len(health), len(start)
    )
    if not hit.any(axis=0).all():
        return None
    met = [health[i] for i in np.flatnonzero(hit.any(axis=1)).tolist()]
    samples = samples_ms(met)
    if len(samples):
        return float(np.quantile(samples, 0.99, method="inverted_cdf"))
    values = np.array([h.lag_p99_ms for h in met])
    return float(np.quantile(values, LAG_SHARE, method="inverted_cdf")) if len(values) else None


def samples_ms(health: Iterable[Health]) -> F64:
    """[N] every sample of the loop's lag, ms; empty for histories that hold none."""
    return np.array([us for h in health for us in h.lags_us if isinstance(us, int)], np.float64) / 1e3


def swap_lag_ms(case: Case) -> float | None:
    """The same around swaps; over the whole run where there is none."""
    if len(case.swaps):
        return lag_ms(case, case.swaps.invoked, case.swaps.end)
    whole = np.iinfo(np.int64)
    return lag_ms(case, np.array([whole.min]), np.array([whole.max]))


def worst_ms(case: Case, start: I64, end: I64) -> F64:
    """[N] the longest lag on record around each window [start[i], end[i]] that is over `LAG_LIMIT_MS`, else 0.

    A client that stood still for seconds has one such sample among hundreds: no p99 shows it.
    """
    worst = np.zeros(len(start))
    for h in case.history.health:
        if h.lag_max_ms > LAG_LIMIT_MS:
            met = (start <= h.at_ns) & (end + NOTED_NS >= h.from_ns)
            worst[met] = np.maximum(worst[met], h.lag_max_ms)
    return worst


def late(lag: float | None) -> str:
    """Why a latency cannot be held against the server, "" when it can."""
    if lag is None:
        return "how late the client was is not on record"
    return f"the client was {lag:.1f} ms late itself" if lag > LAG_LIMIT_MS else ""
