"""Two runs are compared only where they answer the same question, and called different only on evidence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import report_maker as maker
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report import compare
from loadtest.report.compare import NotComparable, Side

SCENARIO = "title: Hotfix\nseed: 3\ntarget:\n  url: embedded\n  swap: sticky\ntraffic:\n  users: 20\n"


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    """The same scenario on an engine that tears streams and lags afterwards, and on one that pins them."""
    out = []
    for name, play in (("tears", maker.Play()), ("pins", maker.Play(torn=False, hangover=1.0))):
        verdict = maker.judge(maker.write(tmp_path_factory.mktemp(name), play))
        meta = {"run": name, "title": "Hotfix", "model": "m", "seed": 1, "target": {"engine": name}}
        out.append(Side(name, verdict, meta, SCENARIO))
    return out[0], out[1]


def test_what_got_better_is_named_with_its_interval(sides: tuple[Side, Side]) -> None:
    markdown, page = compare.render(*sides)
    row = next(line for line in markdown.splitlines() if line.startswith("| untorn"))
    assert "B is better" in row
    assert "B is better" in next(line for line in markdown.splitlines() if line.startswith("| ITL after over before"))
    assert "better in B: untorn" in markdown
    assert "| target.engine | tears | pins |" in markdown
    assert "better in B: untorn" in page
    assert "http:" not in page


def test_swapping_the_sides_swaps_the_reading(sides: tuple[Side, Side]) -> None:
    markdown, _ = compare.render(sides[1], sides[0])
    assert "worse in B: untorn" in markdown


def test_a_run_does_not_differ_from_its_twin(sides: tuple[Side, Side]) -> None:
    twin = replace(sides[0], name="twin", meta={**sides[0].meta, "run": "twin"})
    markdown, _ = compare.render(sides[0], twin)
    assert "No figure differs by more than its 95 % interval" in markdown
    assert "B is" not in markdown


def without_swaps(verdict: Any) -> dict[str, Any]:
    return {**verdict, "swaps": {**verdict["swaps"], "ok": 0}}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: replace(s, verdict={}), "b has no verdict"),
        (lambda s: replace(s, meta={**s.meta, "run": "tears"}), "the same run"),
        (lambda s: replace(s, meta={**s.meta, "title": "other"}), "titles differ: Hotfix and other"),
        (lambda s: replace(s, meta={**s.meta, "model": "n"}), "base models differ"),
        (lambda s: replace(s, verdict={**s.verdict, "required_level": "safe"}), "required levels differ"),
        (lambda s: replace(s, verdict={**s.verdict, "adapters": []}), "adapters differ"),
        (lambda s: replace(s, verdict=without_swaps(s.verdict)), "no swap succeeded in b"),
        (lambda s: replace(s, scenario=SCENARIO.replace("20", "40")), "`  users: 20` and `  users: 40`"),
        (
            lambda s: replace(s, verdict={**s.verdict, "gates": [{"name": "client_lag", "status": "failed"}]}),
            "not to be trusted .gate client_lag",
        ),
    ],
)
def test_what_is_not_comparable_is_refused_with_the_reason(sides: tuple[Side, Side], change: Any, why: str) -> None:
    with pytest.raises(NotComparable, match=why):
        compare.render(sides[0], change(replace(sides[1], name="b")))


def test_the_target_and_the_seed_may_differ(sides: tuple[Side, Side]) -> None:
    other = SCENARIO.replace("seed: 3", "seed: 4").replace("  swap: sticky\n", "  swap: pin\n  plant: {}\n")
    compare.render(sides[0], replace(sides[1], scenario=other))
    flow = SCENARIO.replace("target:\n  url: embedded\n  swap: sticky\n", "target: {url: 'http://127.0.0.1:1'}\n")
    compare.render(sides[0], replace(sides[1], scenario=flow))


@given(st.lists(st.floats(1, 100), min_size=6, max_size=30), st.lists(st.floats(1, 100), min_size=6, max_size=30))
def test_the_interval_of_medians_is_ordered_and_mirrors(a: list[float], b: list[float]) -> None:
    value, (low, high) = compare.median_difference(a, b)
    assert low <= high
    assert min(b) - max(a) <= low
    assert high <= max(b) - min(a)
    assert math.isclose(compare.median_difference(b, a)[0], -value, abs_tol=1e-9)


def test_few_swaps_or_unanswered_ones_bound_nothing() -> None:
    assert compare.median_difference([1, 2, 3], [7, 8, 9]) == (6, (-math.inf, math.inf))
    assert compare.median_difference([1.0] * 8, [math.inf] * 8)[1] == (-math.inf, math.inf)
    low, high = compare.median_difference([1.0] * 8, [2.0] * 6 + [math.inf] * 2)[1]
    assert low == 1
    assert high >= 1


def test_rate_intervals_cover_a_real_difference() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        x, y = rng.binomial(80, 0.2), rng.binomial(80, 0.35)
        pair = compare.rate_difference(wilson(x, 80), wilson(y, 80))[1]
        hits += pair[0] <= 0.15 <= pair[1]
    assert hits >= 370


def wilson(x: int, n: int) -> tuple[float, float, float]:
    p, z = x / n, 1.96
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
