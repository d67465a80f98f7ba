"""The fuzzers of bench/fuzz.py with a small count; a documented run had more than a million."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from fuzz import TARGETS, fuzz, plain

COUNT = int(os.environ.get("LOADTEST_FUZZ", "3000"))


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_misread(name: str) -> None:
    fuzz(name, round(COUNT * TARGETS[name][1]), seed=7)


def test_the_plain_reader_of_chunks_by_hand() -> None:
    assert plain(b"1\r\nx\r\nA;b=c\r\n0123456789\r\n0\r\nT: u\r\n\r\nrest") == (b"x0123456789", True)
    assert plain(b"2\r\nx") == (b"x", False)
    assert plain(b"1\r\nxy") is None
    assert plain(b"z\r\n") is None
