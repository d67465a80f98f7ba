"""Every interval of the verdict against a truth that is known: does it cover as often as it says?

`bench/coverage.py` runs each case 4,000 times, tests/test_stats.py a few hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loadtest.analysis import stats

Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One draw: True when the interval holds the truth. `exact`: may be wider than 95 %, by its construction."""

    draw: Callable[[Rng, int], bool]
    exact: bool = False


def _holds(interval: stats.Interval, truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def _clopper(p: float, n: int) -> Case:
    return Case(lambda rng, seed: _holds(stats.clopper_pearson(int(rng.binomial(n, p)), n), p), exact=True)


def _clusters(n: int, a: float, b: float) -> Case:
    def draw(rng: Rng, seed: int) -> bool:
        trials = rng.integers(5, 15, n)
        return _holds(stats.cluster_rate(rng.binomial(trials, rng.beta(a, b, n)), trials), a / (a + b))

    return Case(draw)


def _quantile(n: int, q: float) -> Case:
    def draw(rng: Rng, seed: int) -> bool:
        return _holds(stats.quantile_interval(rng.exponential(size=n), q), -math.log(1 - q))

    return Case(draw, exact=True)


def _ratio(n: int, spread: float) -> Case:
    def draw(rng: Rng, seed: int) -> bool:
        before, after = rng.lognormal(0, spread, n), rng.lognormal(0.2, spread, n)
        return _holds(stats.median_ratio(before, after, seed)[1], math.exp(0.2))

    return Case(draw)


def _difference(n: int, m: int) -> Case:
    def draw(rng: Rng, seed: int) -> bool:
        return _holds(stats.median_difference(rng.normal(3, 1, n), rng.normal(1, 2, m), seed)[1], 2.0)

    return Case(draw)


def _rates(n: int, a: float, b: float) -> Case:
    """Real minus sham: the difference of two rates over swaps."""

    def draw(rng: Rng, seed: int) -> bool:
        sides = []
        for alpha in (a, b):
            trials = rng.integers(5, 15, n)
            hits = rng.binomial(trials, rng.beta(alpha, 10 - alpha, n))
            sides.append((float(hits.sum() / trials.sum()), stats.cluster_rate(hits, trials)))
        return _holds(stats.rate_difference(sides[0], sides[1]), (a - b) / 10)

    return Case(draw)


def _stall(n: int, m: int, shape: float) -> Case:
    """Bystanders' time-weighted gap in n swap windows over that in m windows outside."""

    def draw(rng: Rng, seed: int) -> bool:
        sides = []
        for count, scale in ((n, 2.0), (m, 1.0)):
            covered = rng.uniform(200, 400, count)
            sides.append((covered * rng.gamma(shape, scale / shape, count), covered))
        return _holds(stats.mean_ratio(sides[0], sides[1])[1], 2.0)

    return Case(draw)


CASES: dict[str, Case] = {
    "rate, exact, p 0.1 of 50": _clopper(0.1, 50),
    "rate, exact, p 0.02 of 500": _clopper(0.02, 500),
    "rate over 12 swaps, 0.2": _clusters(12, 2, 8),
    "rate over 30 swaps, 0.2": _clusters(30, 2, 8),
    "rate over 100 swaps, 0.1": _clusters(100, 0.5, 4.5),
    "rate over 30 swaps, 0.8": _clusters(30, 40, 10),
    "quantile p50 of 40": _quantile(40, 0.5),
    "quantile p90 of 60": _quantile(60, 0.9),
    "quantile p99 of 600": _quantile(600, 0.99),
    "hangover: ratio of medians, 12": _ratio(12, 0.3),
    "hangover: ratio of medians, 40": _ratio(40, 0.3),
    "hangover: ratio of medians, 200": _ratio(200, 0.8),
    "bystanders' stall: ratio of means, 8 and 9 windows": _stall(8, 9, 3.0),
    "bystanders' stall: ratio of means, 40 and 41 windows": _stall(40, 41, 1.0),
    "real - sham: difference of medians, 10 and 10": _difference(10, 10),
    "real - sham: difference of medians, 30 and 30": _difference(30, 30),
    "real - sham: difference of medians, 100 and 20": _difference(100, 20),
    "real - sham: difference of rates over 30 swaps": _rates(30, 4, 2),
    "real - sham: difference of rates over 100 swaps": _rates(100, 2, 1),
}


def covered(name: str, reps: int) -> float:
    """Share of `reps` draws in which the interval held the truth."""
    rng = np.random.default_rng(len(name) * 1009 + reps)
    return sum(CASES[name].draw(rng, seed) for seed in range(reps)) / reps
