"""Processes killed, stopped or out of disk in mid-run: what bench/crash.py does 300 times, a few times here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from crash import Lab, lab

# (victim, through Locust, seconds after the first load)
ROUNDS = [
    ("engine", False, 0.7),
    ("host", False, 0.7),
    ("server", False, 0.7),
    ("host", True, 0.9),
    ("engine", False, 0.05),
    ("full disk", False, 0.6),
    ("stopped engine", False, 0.6),
    ("stopped server", False, 0.6),
]


@pytest.fixture(scope="module")
def arena() -> Iterator[Lab]:
    with lab(seed=1, stop_s=1.5) as made:
        yield made


@pytest.mark.parametrize(("victim", "locust", "at_s"), ROUNDS)
def test_what_is_left_of_a_run_is_true(arena: Lab, victim: str, locust: bool, at_s: float) -> None:
    found = arena.round(victim, locust, at_s, loaded=True)
    assert not found.wrong, found
    assert found.ops > 0  # the kill came after the first load, so there is something to be wrong about


def test_the_last_of_them_owes_nothing_after_a_run_in_peace(arena: Lab) -> None:
    found = arena.round("nobody", False, 1e9)
    assert not found.wrong, found
    assert found.whole
    assert found.played == found.owed
