"""The histories in docs/guarantees.md are judged as it says, and all guarantees and kinds have an example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from minihistory import history

from loadtest.analysis.guarantees import GUARANTEES, LEVELS
from loadtest.analysis.noise import ALPHA, FEW, LONE, SUPPORT
from loadtest.analysis.verdict import Require, judge

TEXT = (Path(__file__).parent.parent / "docs" / "guarantees.md").read_text()
(COMMON,) = re.findall(r"```history common\n(.*?)```", TEXT, re.S)
EXAMPLES = re.findall(r"## (\w+)\n(?:(?!\n## ).)*?```history\n(.*?)```\nJudged: (.*?)\n", TEXT, re.S)
BLOCKS = re.findall(r"```history\n(.*?)```\nJudged: (.*?)\n", TEXT, re.S)


def judged(block: str) -> set[str]:
    found = judge(history(COMMON + block), Require()).guarantees
    return {f"{g.name} {kind} {n}" for g in found if g.status == "FAIL" for kind, n in g.kinds.items()}


@pytest.mark.parametrize(("block", "said"), BLOCKS)
def test_an_example_is_judged_as_the_document_says(block: str, said: str) -> None:
    assert judged(block) == set(said.split(", "))


def test_what_all_examples_continue_from_is_innocent() -> None:
    assert judged("stream a 13: v1*4\nstream b 13: v0*4\nstream base 13: x*4") == set()


def test_every_guarantee_and_level_is_defined() -> None:
    headings = re.findall(r"^## (\w+)$", TEXT, re.M)
    assert [h for h in headings if h in GUARANTEES] == list(GUARANTEES)
    assert {name for name, *_ in EXAMPLES} == set(GUARANTEES) - {"steady"}
    for level, names in LEVELS.items():
        (sum_,) = re.findall(rf"`{level}` = ([\w\s+-]+?)[;.]", TEXT)
        parts = [p.strip() for p in sum_.split("+")]
        assert {n for p in parts for n in LEVELS.get(p, (p,))} == set(names)


def test_the_figures_of_noise_are_those_of_the_code() -> None:
    assert f"up to {FEW} tokens" in TEXT
    assert (f"up to {LONE:,} tokens" in TEXT, f"under {ALPHA:g}." in TEXT, SUPPORT) == (True, True, 3)
