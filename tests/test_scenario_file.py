"""A scenario file: read whole, or every mistake of it named with its line, its key and a remedy."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import plan, scenario
from loadtest.errors import ScenarioError

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "scenarios").glob("*.yaml"))

TEN_MISTAKES = """\
title: ten mistakes
target: {url: ftp://x, swap: pinn, step_ms: -1}
adapters:
  tenant-a: {versions: marker}
  base: {versions: markers}
traffic:
  users: 0
  arrivals: {poisson: 8}
  mix: {tenant-x: 1}
  max_tokens: 256..64
phases:
  - {arm: aa}
  - {arm: real, hotfix: tenant-b, every: 0s, cuont: 3}
require: {level: atomic, hangover: 0.5}
"""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_shipped_scenario_reads_plans_and_survives_its_own_text(path: Path) -> None:
    read = scenario.load(path)
    assert scenario.loads(scenario.to_yaml(read)) == read
    planned = plan.phases(read, seed=5)
    assert planned == plan.phases(read, seed=5)
    assert planned != plan.phases(read, seed=6)
    assert plan.duration_s(planned) > 0


def test_all_mistakes_come_at_once_each_with_its_line_and_remedy() -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario.loads(TEN_MISTAKES, "bad.yaml")
    found = {p.key: p for p in caught.value.problems}
    assert caught.value.exit_code == 64
    for key, line, words in (
        ("target.url", 2, "embedded or http"),
        ("target.swap", 2, "pin"),
        ("target.step_ms", 2, "0"),
        ("adapters.tenant-a.versions", 4, "markers"),
        ("adapters.base", 5, "another name"),
        ("traffic.users", 7, "1"),
        ("traffic.arrivals", 8, "exclude"),
        ("traffic.arrivals.poisson", 8, "8/s"),
        ("traffic.mix.tenant-x", 9, "tenant-a"),
        ("traffic.max_tokens", 10, "64..256"),
        ("phases[0]", 12, "for"),
        ("phases[1].cuont", 13, "count"),
        ("phases[1].every", 13, "0"),
        ("phases[1].hotfix", 13, "tenant-a"),
        ("require.level", 14, "token-atomic"),
        ("require.hangover", 14, "at least 1"),
    ):
        rendered = found[key].render("bad.yaml")
        assert rendered.startswith(f"bad.yaml:{line}: ")
        assert words in rendered
        assert found[key].remedy


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("- {arm: aa, for: 6s}  ", "- {arm: aa, for: 6s, count: 3}  "), "phases[0].count"),
        (("tenant-b: {versions: markers 1}", "tenant-b: {versions: []}"), "adapters.tenant-b.versions"),
        (("users: 20", "users: 20\n  users: 30"), "traffic.users"),
        (("users: 20", "users: 20\n  stages: [{users: 3, for: 4s}]"), "traffic.stages"),
        (("hangover: 3", "hangover: lots"), "require.hangover"),
    ],
)
def test_contradictions_are_named(change: tuple[str, str], key: str) -> None:
    text = (ROOT / "scenarios/quickstart.yaml").read_text()
    assert change[0] in text
    with pytest.raises(ScenarioError) as caught:
        scenario.loads(text.replace(*change, 1))
    assert key in {p.key for p in caught.value.problems}


@given(st.integers(0, 1500), st.integers(0, 60), st.text(max_size=12))
def test_a_damaged_file_is_a_scenario_or_a_scenario_error(at: int, gone: int, put: str) -> None:
    text = (ROOT / "scenarios/quickstart.yaml").read_text()
    with contextlib.suppress(ScenarioError):
        scenario.loads(text[:at] + put + text[at + gone :])


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"", b"[1, 2]", b"a: \t- b", b"a: *nope"])
def test_what_is_no_scenario_is_said_in_words(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(raw)
    with pytest.raises(ScenarioError, match=re.escape(str(path))):
        scenario.load(path)
    with pytest.raises(ScenarioError, match="cannot be read"):
        scenario.load(tmp_path / "none.yaml")


def test_users_draw_their_own_requests_as_the_mix_says() -> None:
    read = scenario.load(ROOT / "scenarios/quickstart.yaml")
    one, two = plan.requests(read, 1, 0, 2048), plan.requests(read, 1, 1, 2048)
    mine = [next(one) for _ in range(400)]
    again = plan.requests(read, 1, 0, 2048)
    assert mine == [next(again) for _ in range(400)]
    assert mine != [next(two) for _ in range(400)]
    share = sum(r.adapter == "tenant-a" for r in mine) / 400
    assert 0.5 < share < 0.7
    assert all(48 <= r.max_tokens <= 96 and 8 <= len(r.prompt) <= 48 for r in mine)
    assert all(isinstance(i, int) and i < 2048 for r in mine for i in r.prompt)
    shared = [r.prompt[: int(len(r.prompt) * 0.3)] for r in mine]
    longest = max(shared, key=len)
    assert all(p == longest[: len(p)] for p in shared)
    assert isinstance(next(plan.requests(read, 1, 0, 0)).prompt, str)


def test_the_open_loop_keeps_its_rate() -> None:
    read = scenario.load(ROOT / "scenarios/arrivals.yaml")
    stream = plan.arrivals(read, 3, 2048)
    times = [next(stream)[0] for _ in range(2000)]
    assert times == sorted(times)
    assert 18 < 2000 / times[-1] < 22
