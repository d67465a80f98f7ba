"""Histories written from docs/guarantees.md alone, each with the verdict that its author derived by hand (by_hand.txt).

`+` continues from what all examples of the document continue from, `=` from nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from minihistory import history

from loadtest.analysis.verdict import Require, judge

COMMON = "load a v0 0 1 ok\nload b v0 0 1 ok\nload a v1 10 12 ok\n"
BLOCKS = (Path(__file__).parent / "by_hand.txt").read_text().strip().split("\n\n")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: str(b).partition("\n")[0])
def test_a_history_is_judged_as_somebody_who_read_the_document_would(block: str) -> None:
    title, *lines, said = block.split("\n")
    text = (COMMON if title[0] == "+" else "") + "\n".join(lines)
    found = judge(history(text), Require()).guarantees
    broken = {f"{g.name} {kind} {n}" for g in found if g.status == "FAIL" for kind, n in g.kinds.items()}
    assert broken == set(said.removeprefix("judged: ").split(", ")) - {"nothing"}
