"""Plans: the same seed gives the same one, another seed another, and the numbers are those of the scenario."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import plan, scenario
from loadtest.scenario import Scenario

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "scenarios").glob("*.yaml"))
VOCAB = 4096


def build(traffic: str = "users: 2", phases: str = "- {arm: real, hotfix: a, every: 1s..2s, count: 5}") -> Scenario:
    return scenario.loads(f"adapters: {{a: {{}}, b: {{}}}}\ntraffic: {{{traffic}}}\nphases:\n{phases}\n")


def first(s: Scenario, n: int, seed: int = 1, user: int = 0, vocab: int = VOCAB) -> list[plan.Request]:
    return list(itertools.islice(plan.requests(s, seed, user, vocab), n))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_scenarios_are_planned_and_the_same_seed_gives_the_same_plan(path: Path) -> None:
    s = scenario.load(path)
    assert plan.phases(s, 7) == plan.phases(s, 7)
    assert plan.phases(s, 7) != plan.phases(s, 8)
    assert first(s, 20) == first(s, 20)
    assert first(s, 20, user=0) != first(s, 20, user=1)
    assert first(s, 20, seed=1) != first(s, 20, seed=2)
    assert {r.adapter for r in first(s, 200)} == set(s.mix)
    assert 10 < plan.duration_s(plan.phases(s, 7)) < 90


def test_a_plan_is_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from loadtest import plan, scenario\n"
        f"s = scenario.load(Path({str(SHIPPED[0])!r}))\n"
        "print(plan.phases(s, 3), next(plan.requests(s, 3, 5, 4096)), next(plan.arrivals(s, 3, 4096)))"
    )
    env = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "5"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    s = scenario.load(SHIPPED[0])
    here = (plan.phases(s, 3), next(plan.requests(s, 3, 5, VOCAB)), next(plan.arrivals(s, 3, VOCAB)))
    assert out.stdout.strip() == " ".join(map(str, here))


def test_a_plan_outlives_the_scenarios_own_text() -> None:
    s = scenario.load(ROOT / "scenarios" / "quickstart.yaml")
    again = scenario.loads(scenario.to_yaml(s))
    assert plan.phases(again, 3) == plan.phases(s, 3)
    assert first(again, 10) == first(s, 10)


def test_prompts_lengths_and_mix_are_those_of_the_scenario() -> None:
    s = build("users: 2, mix: {a: 3, b: 1}, prompts: {synthetic: {tokens: 10..20}}, max_tokens: 5..7")
    drawn = first(s, 4000)
    assert {len(r.prompt) for r in drawn} == set(range(10, 21))
    assert {r.max_tokens for r in drawn} == {5, 6, 7}
    assert Counter(r.adapter for r in drawn)["a"] / 4000 == pytest.approx(0.75, abs=0.03)
    tokens = [t for r in drawn for t in r.prompt]
    assert all(isinstance(t, int) for t in tokens)
    assert min(tokens) >= plan.LOWEST_ID
    assert max(tokens) < VOCAB


def test_without_a_mix_all_adapters_are_asked_alike() -> None:
    assert set(build().mix.values()) == {1.0}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_shared_prefix_is_that_part_of_every_prompt_of_every_user(share: float) -> None:
    s = build(f"users: 2, prompts: {{synthetic: {{tokens: 40, shared_prefix: {share}}}}}")
    prompts = [r.prompt for user in range(5) for r in first(s, 5, user=user)]
    shared = round(40 * share)
    assert len({p[:shared] for p in prompts}) == 1
    assert len({p[shared:] for p in prompts}) == (1 if share == 1 else len(prompts))


def test_without_a_vocabulary_prompts_are_words() -> None:
    s = build("users: 2, prompts: {synthetic: {tokens: 12, shared_prefix: 0.5}}")
    prompts = [str(r.prompt) for r in first(s, 10, vocab=0)]
    assert all(len(p.split()) == 12 for p in prompts)
    assert len({tuple(p.split()[:6]) for p in prompts}) == 1


def test_texts_are_taken_as_they_are() -> None:
    s = build("users: 2, prompts: {texts: [one, two, three]}")
    assert {r.prompt for r in first(s, 100)} == {"one", "two", "three"}


def test_arrivals_keep_their_rate() -> None:
    def gaps(kind: str) -> list[float]:
        s = build(f"arrivals: {{{kind}: 8/s}}")
        times = [t for t, _ in itertools.islice(plan.arrivals(s, 1, VOCAB), 4000)]
        assert times == sorted(times)
        return [b - a for a, b in itertools.pairwise([0.0, *times])]

    assert gaps("constant") == pytest.approx([0.125] * 4000)
    poisson = gaps("poisson")
    assert statistics.mean(poisson) == pytest.approx(0.125, rel=0.06)
    assert statistics.stdev(poisson) == pytest.approx(0.125, rel=0.08)


def test_phases_hold_what_was_asked_for() -> None:
    s = build(
        phases="""\
  - {arm: aa, for: 10s}
  - {arm: sham, hotfix: a, every: 500ms, count: 3}
  - {arm: real, hotfix: b, every: 1s..2s, for: 30s}
  - {arm: bad, hotfix: a, every: 1s, with: [corrupt, missing]}
  - {arm: bad, hotfix: a, every: 1s, with: [missing, corrupt], count: 5}
"""
    )
    aa, sham, real, bad, more = plan.phases(s, 1)
    assert (aa.arm, aa.adapter, aa.duration_s, aa.swaps) == ("aa", "", 10.0, ())
    assert ([x.gap_s for x in sham.swaps], sham.duration_s, sham.adapter) == ([0.5] * 3, None, "a")
    assert all(1 <= x.gap_s <= 2 and not x.how for x in real.swaps)
    assert 15 <= len(real.swaps) <= 30
    assert sum(x.gap_s for x in real.swaps) <= 30 == real.duration_s
    assert [x.how for x in bad.swaps] == ["corrupt", "missing"]
    assert [x.how for x in more.swaps] == ["missing", "corrupt", "missing", "corrupt", "missing"]
    assert plan.duration_s((aa, sham, real, bad)) == pytest.approx(10 + 1.5 + 30 + 2)


def test_one_phase_does_not_change_the_next() -> None:
    one = "  - {arm: real, hotfix: a, every: 1s..2s, count: 5}\n"
    other = "  - {arm: real, hotfix: a, every: 1s..2s, count: 9}\n"
    assert plan.phases(build(phases=one + one), 1)[1] == plan.phases(build(phases=other + one), 1)[1]
    assert plan.phases(build(phases=one + one), 1)[0].swaps != plan.phases(build(phases=one + one), 1)[1].swaps


@settings(max_examples=60, deadline=None)
@given(st.integers(0, (1 << 63) - 1), st.integers(0, 10**6), st.integers(0, 200_000))
def test_any_seed_user_and_vocabulary_draw_requests_in_bounds(seed: int, user: int, vocab: int) -> None:
    for r in first(build("users: 2, prompts: {synthetic: {tokens: 1..4}}"), 3, seed, user, vocab):
        assert isinstance(r.prompt, str) or all(0 <= t < vocab for t in r.prompt)
