"""Statistics: known values, and the coverage of every interval by simulation."""

from __future__ import annotations

import math
import os
import tracemalloc

import coverage
import numpy as np
import pytest

from loadtest.analysis import stats

REPS = int(os.environ.get("COVERAGE_REPS", "300"))
# 95 % of 300 draws is 285 ± 4; four standard errors on either side. bench/coverage.py draws 4,000.
LOW, HIGH = 0.95 - 4 * math.sqrt(0.05 * 0.95 / REPS), 0.95 + 4 * math.sqrt(0.05 * 0.95 / REPS)


@pytest.mark.parametrize(
    ("a", "b", "x", "value"),
    [(2, 3, 0.5, 0.6875), (1, 1, 0.3, 0.3), (0.5, 0.5, 0.5, 0.5), (5, 1, 0.9, 0.9**5), (1, 4, 0.2, 1 - 0.8**4)],
)
def test_the_incomplete_beta_function_has_its_closed_forms(a: float, b: float, x: float, value: float) -> None:
    assert stats.betainc(a, b, x) == pytest.approx(value, rel=1e-12)
    assert stats.beta_quantile(value, a, b) == pytest.approx(x, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "n", "low", "high"),
    [
        (3, 10, 0.06674, 0.65245),
        (0, 10, 0.0, 0.30850),
        (10, 10, 0.69150, 1.0),
        (0, 0, 0.0, 1.0),
        (1, 100, 0.00025, 0.05446),
    ],
)
def test_clopper_pearson_agrees_with_the_published_tables(x: int, n: int, low: float, high: float) -> None:
    assert stats.clopper_pearson(x, n) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (9, 2.26216), (29, 2.04523), (1000, 1.96234)])
def test_students_t(freedom: int, value: float) -> None:
    assert stats.student(freedom) == pytest.approx(value, rel=1e-5)


def test_no_case_in_n_trials_bounds_the_rate() -> None:
    assert stats.none_seen(30) == pytest.approx(1 - 0.05 ** (1 / 30))
    assert stats.none_seen(0) == 1.0
    # The bound's own meaning: a rate as large as it shows no case with probability 0.05.
    assert (1 - stats.none_seen(17)) ** 17 == pytest.approx(0.05)


def test_binomial_tail_and_cdf_agree_with_a_sum() -> None:
    n, p = 20, 0.3
    pmf = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    assert stats.binomial_cdf(n, p) == pytest.approx(np.minimum(np.cumsum(pmf), 1.0))
    for x in (0, 1, 7, 20):
        assert stats.binomial_tail(x, n, p) == pytest.approx(sum(pmf[x:]))
    assert stats.binomial_tail(21, 20, p) == 0.0


def test_a_distribution_function_never_falls_and_ends_at_one() -> None:
    for n in range(1, 200):
        for p in (0.1, 0.5, 0.9):
            cdf = stats.binomial_cdf(n, p)
            assert (np.diff(cdf) >= 0).all()
            assert 1 - 1e-12 < cdf[-1] <= 1  # rounding passes 1 in most of these sums


@pytest.mark.parametrize(("q", "value"), [(0.5, 15.0), (0.9, 27.0), (0.99, 30.0), (0.0, 1.0), (1.0, 30.0)])
def test_a_quantile_is_one_of_the_values(q: float, value: float) -> None:
    assert stats.quantile(np.arange(30.0, 0.0, -1.0), q) == value


def test_a_quantile_of_nothing_is_not_zero() -> None:
    assert math.isnan(stats.quantile(np.array([]), 0.5))
    assert stats.quantile_interval(np.array([]), 0.5) == (-math.inf, math.inf)


def test_a_small_sample_cannot_bound_a_high_quantile() -> None:
    low, high = stats.quantile_interval(np.arange(30.0), 0.99)
    assert high == math.inf
    assert low <= 29.0
    assert stats.quantile_interval(np.arange(1000.0), 0.99)[1] < math.inf


@pytest.mark.parametrize("name", coverage.CASES)
def test_every_interval_covers_as_often_as_it_says(name: str) -> None:
    share = coverage.covered(name, REPS)
    assert LOW <= share <= (1.0 if coverage.CASES[name].exact else HIGH)


def test_a_rate_over_three_swaps_by_hand() -> None:
    """Residuals -1, 0, 1: spread sqrt(2 * 3 / 2) / 12; log odds 0 ± 4.3027 * spread / 0.25 (t of two degrees)."""
    low, high = stats.cluster_rate(np.array([1, 2, 3]), np.array([4, 4, 4]))
    step = 4.30265 * (math.sqrt(3) / 12) / 0.25
    assert (low, high) == pytest.approx((1 / (1 + math.exp(step)), 1 / (1 + math.exp(-step))), rel=1e-5)


def test_the_ratio_of_means_by_hand() -> None:
    one = np.ones(4)
    assert stats.mean_ratio((3 * one, one), (2 * one, 2 * one)) == (3.0, (3.0, 3.0))
    ratio, (low, high) = stats.mean_ratio((np.array([2.0, 4.0]), np.ones(2)), (np.array([1.0, 1.0]), np.ones(2)))
    # Relative error of the mean 3 of (2, 4): sqrt(2 * 2 / 1) / 6 = 1 / 3; Student's t for one degree of freedom.
    assert (ratio, math.log(high / ratio)) == (3.0, pytest.approx(12.7062 / 3, rel=1e-4))
    assert low * high == pytest.approx(ratio**2)
    assert stats.mean_ratio((np.ones(1), np.ones(1)), (one, one)) == (1.0, (0.0, math.inf))
    assert stats.mean_ratio((one, one), (0 * one, one)) == (math.inf, (0.0, math.inf))


def test_the_difference_of_rates_by_hand() -> None:
    low, high = stats.rate_difference((0.5, (0.4, 0.7)), (0.2, (0.1, 0.6)))
    assert low == pytest.approx(0.3 - math.hypot(0.1, 0.4))
    assert high == pytest.approx(0.3 + math.hypot(0.2, 0.1))


def test_streams_of_one_swap_are_one_piece_of_evidence() -> None:
    few = stats.cluster_rate(np.array([0] * 10), np.array([5] * 10))
    many = stats.cluster_rate(np.array([0] * 10), np.array([500] * 10))
    assert few == many == (0.0, stats.none_seen(10))


def test_rates_at_the_edges() -> None:
    assert stats.cluster_rate(np.array([]), np.array([])) == (0.0, 1.0)
    assert stats.cluster_rate(np.array([3, 3]), np.array([3, 3])) == (1 - stats.none_seen(2), 1.0)
    assert stats.cluster_rate(np.array([1]), np.array([3])) == (0.0, 1.0)
    low, high = stats.cluster_rate(np.array([1, 1, 1]), np.array([4, 4, 4]))
    assert 0 < low < 0.25 < high < 1


@pytest.mark.parametrize("clusters", [2, 3, 50])
@pytest.mark.parametrize("size", [1, 10, 10**6, 10**9])
def test_the_most_uneven_clusters_there_can_be_have_an_interval(clusters: int, size: int) -> None:
    """One has all the hits and few of the trials, the others no hit; and the mirror image."""
    hits, trials = np.zeros(clusters, np.int64), np.full(clusters, size, np.int64)
    hits[0] = trials[0] = 1
    low, high = stats.cluster_rate(hits, trials)
    assert 0 <= low < 1 / trials.sum() < high <= 1
    assert stats.cluster_rate(trials - hits, trials) == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_too_few_values_have_no_interval() -> None:
    assert stats.median_ratio(np.ones(5), np.full(50, 2.0)) == (2.0, (0.0, math.inf))
    assert stats.median_difference(np.ones(5), np.ones(50)) == (0.0, (-math.inf, math.inf))
    assert math.isnan(stats.median_ratio(np.array([]), np.ones(3))[0])
    assert math.isnan(stats.median_difference(np.array([]), np.ones(3))[0])


def test_resampling_is_deterministic() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(5, 1, 5000), rng.normal(6, 1, 5000)
    assert stats.median_ratio(a, b, 7) == stats.median_ratio(a, b, 7)
    assert stats.sign_flip((b - a)[:100], 7) == stats.sign_flip((b - a)[:100], 7)


def test_sign_flips_are_exact_for_few_swaps() -> None:
    assert stats.sign_flip(np.array([1.0, 2.0, 3.0])) == 1 / 8
    assert stats.sign_flip(-np.array([1.0, 2.0, 3.0])) == 1.0
    assert stats.sign_flip(np.array([])) == 1.0
    assert stats.sign_flip(np.zeros(5)) == 1.0


def test_sign_flips_keep_their_level() -> None:
    rng = np.random.default_rng(3)
    small = [stats.sign_flip(rng.normal(size=20), seed, reps=2000) < 0.05 for seed in range(400)]
    assert 0.02 <= np.mean(small) <= 0.09
    assert stats.sign_flip(rng.normal(1.5, 1, 20)) < 0.001


def test_resampled_figures_are_the_same_everywhere_and_for_ever() -> None:
    rng = np.random.default_rng(42)
    a, b, d = rng.normal(5, 1, 5000), rng.normal(5.2, 1, 5000), rng.normal(0.3, 1, 20)
    ratio, edges = stats.median_ratio(a, b, 7)
    assert (ratio, *edges) == pytest.approx((1.0368517, 1.0310899, 1.0519435), rel=1e-6)
    value, bounds = stats.median_difference(b[:50], a[:50], 7)
    assert (value, *bounds) == pytest.approx((-0.2519835, -0.7943213, 0.3033003), rel=1e-6)
    assert stats.sign_flip(d, 7) == pytest.approx(0.115544223, rel=1e-8)  # 20,000 of 2^20 patterns
    assert stats.sign_flip(d[:15], 7, reps=100) == pytest.approx(12 / 101)
    assert stats.sign_flip(d[:14], 7) == 0.0927734375  # all 2^14 patterns


def test_a_rate_that_is_certain_leaves_one_count() -> None:
    assert stats.binomial_cdf(3, 0.0).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert stats.binomial_cdf(3, 1.0).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_the_incomplete_beta_function_ends_at_the_ends_of_its_range() -> None:
    assert [stats.betainc(2, 3, x) for x in (-0.5, 0.0, 1.0, 1.5)] == [0.0, 0.0, 1.0, 1.0]


def test_exact_intervals_of_one_trial() -> None:
    """0.025 and 0.975 of a rate: the chance of the one case."""
    assert stats.clopper_pearson(0, 1) == pytest.approx((0.0, 0.975))
    assert stats.clopper_pearson(1, 1) == pytest.approx((0.025, 1.0))
    assert stats.none_seen(1) == pytest.approx(0.95)


def test_a_quantiles_interval_by_hand() -> None:
    """Median of six: P(0 of 6 below) = 1/64 < 0.025, so the extremes hold it; of five 1/32 says nothing."""
    assert stats.quantile_interval(np.array([6.0, 2, 3, 1, 5, 4]), 0.5) == (1.0, 6.0)
    assert stats.quantile_interval(np.arange(5.0), 0.5) == (-math.inf, math.inf)
    assert stats.quantile_interval(np.arange(9.0), 0.5) == (1.0, 7.0)  # P(at most 1 of 9) = 10/512
    assert stats.quantile(np.array([3.0]), 0.0) == 3.0


def test_equal_clusters_are_as_sure_as_independent_trials() -> None:
    """Rate 1/4 of 12 trials: sqrt(1/4 * 3/4 / 12) = 1/8, over 3/16 in log odds, t of two degrees of freedom."""
    low, high = stats.cluster_rate(np.array([1, 1, 1, 0]), np.array([4, 4, 4, 0]))
    centre, step = math.log(1 / 3), 4.30265 * (1 / 8) / (3 / 16)
    assert (low, high) == pytest.approx(
        (1 / (1 + math.exp(step - centre)), 1 / (1 + math.exp(-centre - step))), rel=1e-5
    )
    near_one = stats.cluster_rate(np.array([1, 2]), np.array([2, 2]))  # one degree of freedom: next to nothing is known
    assert near_one == pytest.approx((0.0, 1.0), abs=0.01)


def test_means_of_zero_and_single_windows_have_no_interval() -> None:
    two, none = (np.ones(2), np.ones(2)), (np.zeros(2), np.ones(2))
    assert stats.mean_ratio(none, two) == (0.0, (0.0, 0.0))
    assert stats.mean_ratio(two, none) == (math.inf, (0.0, math.inf))
    assert stats.mean_ratio((np.ones(1) * 6, np.ones(1)), (np.ones(1) * 2, np.ones(1))) == (3.0, (0.0, math.inf))


def test_six_values_a_side_have_an_interval() -> None:
    six = np.full(6, 2.0)
    assert stats.median_ratio(six, 2 * six) == (2.0, (2.0, 2.0))
    assert stats.median_difference(2 * six, six) == (2.0, (2.0, 2.0))
    assert stats.median_ratio(six[:5], six)[1] == stats.median_ratio(six, six[:5])[1] == (0.0, math.inf)
    assert stats.median_difference(six[:5], six)[1] == stats.median_difference(six, six[:5])[1] == (-math.inf, math.inf)


def test_a_median_of_zero_before_has_no_ratio() -> None:
    ratio, interval = stats.median_ratio(np.zeros(9), np.ones(9))
    assert (math.isnan(ratio), interval) == (True, (0.0, math.inf))
    low, high = stats.median_ratio(np.array([0.0] * 4 + [1.0] * 5), np.ones(9))[1]  # half of the draws are 0: left out
    assert (low, high) == (1.0, 1.0)


def test_resampling_does_not_depend_on_how_much_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a, b, d = rng.normal(5, 1, 50), rng.normal(6, 1, 60), rng.normal(0.3, 1, 20)
    whole = stats.median_ratio(a, b, 3), stats.median_difference(a, b, 3), stats.sign_flip(d, 3, reps=500)
    monkeypatch.setattr(stats, "BLOCK", 700)
    assert (stats.median_ratio(a, b, 3), stats.median_difference(a, b, 3), stats.sign_flip(d, 3, reps=500)) == whole
    monkeypatch.setattr(stats, "BLOCK", 1)
    assert stats.median_difference(a, b, 3) == whole[1]


def test_resampling_holds_a_bounded_number_of_random_numbers_at_a_time() -> None:
    """Twenty thousand patterns of 5,000 signs are 0.8 GB, and 600 samples of 4,000 values 19 MB."""
    many = np.random.default_rng(7).normal(0.1, 1, 5000)
    for run in (lambda: stats.sign_flip(many, reps=2000), lambda: stats.median_difference(many, many)):
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40e6


def test_a_sample_is_thinned_beyond_its_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.random.default_rng(6).normal(5, 1, 40)
    whole = stats.median_ratio(a, a + 1)
    monkeypatch.setattr(stats, "SAMPLE", 40)
    assert stats.median_ratio(a, a + 1) == whole
    monkeypatch.setattr(stats, "SAMPLE", 39)
    assert stats.median_ratio(a, a + 1) != whole


def test_sign_flips_count_ties_and_leave_zeros_out() -> None:
    assert stats.sign_flip(np.array([1.0, 1.0, 0.0, 0.0])) == 1 / 4
    assert stats.sign_flip(np.array([1.0, -1.0])) == 3 / 4  # sums 2, 0, 0, -2: three are at least 0
    tied = np.array([0.1] * 10 + [0.3] * 5)  # 15: sampled; only all signs positive reach the sum of 2.5
    assert stats.sign_flip(tied, reps=50) == 1 / 51
    assert stats.sign_flip(np.array([1.0] * 8 + [-1.0] * 8), reps=200) == pytest.approx(0.6, abs=0.15)


@pytest.mark.parametrize("b", [1, 100, 10**6])
def test_a_quantile_of_a_tiny_rate_is_as_sharp_as_any(b: int) -> None:
    """Beta(1, b): I_x = 1 - (1 - x)^b."""
    assert stats.beta_quantile(0.025, 1, b) == pytest.approx(-math.expm1(math.log1p(-0.025) / b), rel=1e-12)
    assert stats.beta_quantile(0.025, b, 1) == pytest.approx(0.025 ** (1 / b), rel=1e-12)
