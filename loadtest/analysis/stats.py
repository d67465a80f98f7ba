"""Intervals and tests, numpy only, seeded: the same numbers in, the same numbers out.

The swap is the unit of evidence: streams that met the same swap are not independent, so rates get their interval
from the spread between swaps, and zero violations in n swaps bounds the rate at 1 - 0.05^(1/n), whatever the number of
streams was.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.95
REPS = 600  # of a bootstrap of medians: the Monte Carlo error of a 2.5 % point is then about 0.6 %
SAMPLE = 4000  # largest sample that a bootstrap of a median draws: the interval is wider than it need be beyond that
BLOCK = 1_000_000  # random numbers held at a time
EXACT_FLIPS = 14  # up to 2^14 sign patterns are enumerated instead of sampled


def betainc(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b); Lentz's continued fraction."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - betainc(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + term / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return front * value / a


def beta_quantile(p: float, a: float, b: float) -> float:
    """x with I_x(a, b) = p, by bisection down to two neighbouring numbers."""
    low, high = 0.0, 1.0
    while low < (mid := 0.5 * (low + high)) < high:
        if betainc(a, b, mid) < p:
            low = mid
        else:
            high = mid
    return high


def clopper_pearson(x: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Exact interval of a rate seen x times in n independent trials; (0, 1) when n is 0."""
    if n <= 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if x <= 0 else beta_quantile(tail, x, n - x + 1)
    high = 1.0 if x >= n else beta_quantile(1.0 - tail, x + 1, n - x)
    return low, high


def none_seen(n: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of a rate of which no case was seen in n trials: 1 - 0.05^(1/n); 1 when n is 0."""
    return 1.0 - (1.0 - confidence) ** (1.0 / n) if n > 0 else 1.0


def binomial_tail(x: int, n: int, p: float) -> float:
    """P(X >= x) for X binomial(n, p)."""
    if x <= 0:
        return 1.0
    return 0.0 if x > n else betainc(x, n - x + 1, p)


def binomial_cdf(n: int, p: float) -> F64:
    """P(X <= k) for k = 0..n: [n + 1]."""
    if p <= 0.0 or p >= 1.0:
        return np.ones(n + 1) if p <= 0.0 else np.eye(1, n + 1, n)[0]
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))])
    k = np.arange(n + 1)
    log_pmf = log_factorial[n] - log_factorial - log_factorial[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    cdf: F64 = np.minimum(np.cumsum(np.exp(log_pmf)), 1.0)
    return cdf


def quantile(values: F64, q: float) -> float:
    """The sample's own quantile: its ceil(q n)-th smallest value, never interpolated; NaN when empty."""
    n = len(values)
    if n == 0:
        return math.nan
    rank = min(max(math.ceil(q * n - 1e-9), 1), n)
    return float(np.partition(values, rank - 1)[rank - 1])


def quantile_interval(values: F64, q: float, confidence: float = CONFIDENCE) -> Interval:
    """Order statistics that hold the population's q-quantile; infinite where the sample is too small to say."""
    n = len(values)
    if n == 0:
        return -math.inf, math.inf
    tail = (1.0 - confidence) / 2.0
    below = binomial_cdf(n, q)  # below[k] = P(at most k values lie under the quantile)
    ordered = np.sort(values)
    low_rank = int(np.searchsorted(below, tail, side="right"))  # largest l with P(X <= l - 1) <= tail
    high_rank = int(np.searchsorted(below, 1.0 - tail, side="left")) + 1  # smallest u with P(X <= u - 1) >= 1 - tail
    low = float(ordered[low_rank - 1]) if low_rank >= 1 else -math.inf
    high = float(ordered[high_rank - 1]) if high_rank <= n else math.inf
    return low, high


def cluster_rate(hits: npt.NDArray[Any], trials: npt.NDArray[Any]) -> Interval:
    """Interval of sum(hits) / sum(trials) where cluster i (a swap) brought hits[i] of trials[i]; both [n].

    No hit: (0, 1 - 0.05^(1/n)); nothing but hits: the mirror image; else Student's interval of the log odds with the
    variance between clusters. (A percentile bootstrap over clusters covered 86-95 % where this covers 93-97 %:
    tests/test_stats.py repeats the comparison's second half.)
    """
    kept = np.asarray(trials) > 0
    h, t = np.asarray(hits, np.float64)[kept], np.asarray(trials, np.float64)[kept]
    n = len(t)
    if n == 0:
        return 0.0, 1.0
    if h.sum() == 0:
        return 0.0, none_seen(n)
    if h.sum() >= t.sum():
        return 1.0 - none_seen(n), 1.0
    if n == 1:
        return 0.0, 1.0
    rate = float(h.sum() / t.sum())
    spread = math.sqrt(float(np.sum((h - rate * t) ** 2)) * n / (n - 1)) / float(t.sum())
    # A variance of 0 (equal clusters) is luck, not knowledge: independent trials are the least spread there can be.
    spread = max(spread, math.sqrt(rate * (1 - rate) / float(t.sum())) if spread == 0 else 0.0)
    centre, step = math.log(rate / (1 - rate)), student(n - 1) * spread / (rate * (1 - rate))
    return _logistic(centre - step), _logistic(centre + step)


def mean_ratio(above: tuple[F64, F64], below: tuple[F64, F64]) -> tuple[float, Interval]:
    """Ratio of two weighted means and its interval; each side is (sum of weight * value, sum of weight) per window.

    Student's interval of the log ratio with the variance between windows. (A percentile bootstrap over windows covered
    87 % with 8 windows a side.)
    """
    means, spread, n = [], 0.0, []
    for weighted, weight in (above, below):
        mean = float(weighted.sum() / weight.sum())
        count = len(weight)
        if count > 1 and mean > 0:
            spread += float(np.sum((weighted - mean * weight) ** 2)) * count / (count - 1) / float(weighted.sum()) ** 2
        means.append(mean)
        n.append(count)
    if means[1] <= 0 or min(n) < 2:
        return (means[0] / means[1] if means[1] > 0 else math.inf), (0.0, math.inf)
    ratio, step = means[0] / means[1], math.exp(student(min(n) - 1) * math.sqrt(spread))
    return ratio, (ratio / step, ratio * step)


def rate_difference(a: tuple[float, Interval], b: tuple[float, Interval]) -> Interval:
    """Interval of rate a - rate b from (rate, its interval) of each, by Newcombe's method of squared margins."""
    (p, (low_p, high_p)), (q, (low_q, high_q)) = a, b
    below, above = math.hypot(p - low_p, high_q - q), math.hypot(high_p - p, q - low_q)
    return p - q - below, p - q + above


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@functools.cache
def student(freedom: int) -> float:
    """t with P(|T| <= t) = 0.95 for Student's T of that many degrees of freedom."""
    x = beta_quantile(1.0 - CONFIDENCE, freedom / 2, 0.5)  # freedom / (freedom + T^2) has that distribution
    return math.sqrt(freedom * (1.0 - x) / x)


def median_ratio(before: F64, after: F64, seed: int = 0) -> tuple[float, Interval]:
    """median(after) / median(before), and its interval from resampling each side; (NaN, (0, inf)) if one is empty."""
    if len(before) == 0 or len(after) == 0 or np.median(before) <= 0:
        return math.nan, (0.0, math.inf)
    rng = np.random.default_rng(seed)
    ratio = float(np.median(after) / np.median(before))
    if min(len(before), len(after)) < 6:  # six values: the smallest sample whose extremes hold the median at 95 %
        return ratio, (0.0, math.inf)
    low = _medians(before, rng)
    drawn = _medians(after, rng) / np.where(low > 0, low, np.nan)
    edges = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return ratio, (float(edges[0]), float(edges[1]))


def _medians(values: F64, rng: np.random.Generator) -> F64:
    pool = values if len(values) <= SAMPLE else rng.choice(values, SAMPLE, replace=False)
    out: F64 = np.empty(REPS)
    step = max(1, BLOCK // len(pool))
    for start in range(0, REPS, step):
        block = rng.integers(0, len(pool), (min(step, REPS - start), len(pool)))
        out[start : start + len(block)] = np.median(pool[block], axis=1)
    return out


def median_difference(real: F64, sham: F64, seed: int = 0) -> tuple[float, Interval]:
    """median(real) - median(sham) and its bootstrap interval; infinite with fewer than six values on a side."""
    if len(real) == 0 or len(sham) == 0:
        return math.nan, (-math.inf, math.inf)
    value = float(np.median(real) - np.median(sham))
    if min(len(real), len(sham)) < 6:
        return value, (-math.inf, math.inf)
    rng = np.random.default_rng(seed)
    drawn = _medians(real, rng) - _medians(sham, rng)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return value, (float(low), float(high))


def sign_flip(differences: F64, seed: int = 0, reps: int = 20_000) -> float:
    """One-sided p of the hypothesis that per-swap differences are symmetric about 0, against a positive mean."""
    d = differences[differences != 0]
    n = len(d)
    if n == 0:
        return 1.0
    limit = d.sum() - 1e-9 * np.abs(d).sum()  # as large as what was seen, but for rounding
    if n <= EXACT_FLIPS:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(signs @ d >= limit))
    rng = np.random.default_rng(seed)
    hits, block = 0, max(1, BLOCK // n)
    for start in range(0, reps, block):
        signs = rng.integers(0, 2, (min(block, reps - start), n)) * 2.0 - 1.0
        hits += int(np.sum(signs @ d >= limit))
    return (1 + hits) / (1 + reps)
