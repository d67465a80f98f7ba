"""Noise at its documented limits: 50 and 1,000 tokens, one stray alone, three tokens in a row, odds of one in 1,000."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from minihistory import history

from loadtest.analysis.noise import Noise, main, stray, weigh
from loadtest.history import History

H = history("load a v0 0 1 ok\nload b v0 0 1 ok\nstream a 5: v0 v0")  # 2 markers among the ids 0 to 5001
BIG = replace(H, prompts=np.array([99_999], np.int32))


def weighed(h: History, tokens: int, own: int, leaks: int = 0, served: int = 0, plain: int = 0) -> tuple[str, bool]:
    found = weigh(h, tokens, plain, (own, leaks), served)
    assert (found.tokens, found.plain, found.strays, found.leaks) == (tokens, plain, own + leaks, leaks)
    return found.believed, found.unexplained


@pytest.mark.parametrize(
    ("tokens", "strays", "served", "believed"),
    [
        (50, 1, 0, "all"),  # drift would rather show none
        (51, 1, 0, "served"),  # nobody served it: it is not believed, and the run does not pass
        (51, 1, 1, "all"),
        (1000, 1, 1, "all"),
        (1001, 1, 1, "none"),  # one alone is never believed in more
        (1000, 1, 0, "served"),
        (1001, 1, 0, "none"),
        (50, 2, 0, "all"),
        (51, 2, 0, "all"),
        (1001, 2, 0, "all"),  # two are under 0.27 * share^2
        (1001, 2, 2, "all"),
        (51, 2, 1, "served"),  # one in service does not make the other one any likelier
        (1001, 2, 1, "none"),  # and is one alone
        (1001, 3, 2, "served"),
        (50, 3, 2, "all"),
    ],
)
def test_what_a_run_of_so_many_tokens_makes_of_strays_without_a_plain_one(
    tokens: int, strays: int, served: int, believed: str
) -> None:
    for h in (H, BIG):  # 2 markers in 5,002 ids, or in 100,000: a pair is under one in 1,000 either way
        assert weighed(h, tokens, strays, served=served)[0] == believed


def test_only_a_vocabulary_in_which_markers_are_rare_makes_two_strays_evidence() -> None:
    """In more than 1,000 tokens; share^2 is held against one in 1,000: a share of 0.0316."""

    def two(markers: int) -> str:
        versions = tuple(replace(v, markers=tuple(range(markers))) for v in H.versions)
        return weighed(replace(H, versions=versions, ids=np.array([999], np.int32)), 1001, 2)[0]

    assert (two(31), two(32)) == ("all", "none")


def test_beside_a_plain_token_a_fair_coin_must_not_explain_leaks() -> None:
    """P(9 of 9) = 0.002, P(10 of 10) = 0.00098, P(13 of 14) = 0.00092, P(12 of 13) = 0.0017."""
    assert weighed(H, 30, 0, leaks=10, served=10, plain=1)[0] == "none"  # 10 of 11
    assert weighed(H, 30, 0, leaks=12, served=12, plain=1)[0] == "none"
    assert weighed(H, 30, 0, leaks=13, served=13, plain=1)[0] == "leaks"
    assert weighed(H, 30, 13, leaks=0, served=13, plain=1)[0] == "none"  # of the stream's own adapter: never
    assert weighed(H, 30, 3, leaks=13, served=16, plain=1)[0] == "leaks"


def test_ten_leaks_without_a_plain_token_are_evidence_whatever_the_vocabulary() -> None:
    versions = tuple(replace(v, markers=tuple(range(90))) for v in H.versions)
    narrow = replace(H, versions=versions, ids=np.array([99], np.int32))  # nine in ten ids are markers: half at most
    assert weigh(narrow, 9999, 0, (0, 10), 10).share == 0.5
    assert weighed(narrow, 9999, 0, leaks=9, served=9) == ("none", True)
    assert weighed(narrow, 9999, 0, leaks=10, served=10) == ("all", False)
    assert weighed(narrow, 9999, 1, leaks=10, served=10) == ("served", True)


def test_the_vocabulary_reaches_to_the_largest_id_seen_wherever_that_is() -> None:
    def share(**changed: object) -> float:
        return weigh(replace(H, **changed), 9, 0, (0, 0), 0).share  # type: ignore[arg-type]

    assert share() == 2 / 5002  # a marker that no stream showed
    assert share(ids=np.array([7000, 3, 9], np.int32)) == 2 / 7001
    assert share(prompts=np.array([3, 8000, 9], np.int32)) == 2 / 8001
    assert share(ids=np.array([-1, -1], np.int32)) == 2 / 5002  # text only
    assert share(versions=()) == 0.0
    assert share(versions=(), ids=np.empty(0, np.int32)) == 0.0


def test_a_stray_is_shorter_than_three_and_not_what_its_stream_shows_most() -> None:
    stream = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3], np.int64)
    content = np.array([1, 2, 1, 1, 2, 1, 1, 2, 1], np.int32)
    count = np.array([5, 3, 2, 1, 2, 9, 2, 2, 1], np.int64)
    assert main(stream, count).tolist() == [True, False, False, False, False, True, True, False, True]
    assert stray(stream, content, count).tolist() == [False, False, False, False, True, False, False, True, False]
    nothing = np.empty(0, np.int64)
    assert stray(nothing, nothing.astype(np.int32), nothing).tolist() == []


@pytest.mark.parametrize(
    ("plain", "strays", "leaks", "unexplained"),
    [
        (0, 0, 0, False),
        (9, 0, 0, False),
        (0, 1, 0, False),  # one of the stream's own adapter, which chance explains
        (0, 1, 1, True),  # a leak where drift never showed
        (1, 1, 1, False),
        (1, 2, 2, True),  # P(2 of 3) = 0.0003 of markers at one in a hundred
        (8, 2, 2, False),  # P(2 of 10) = 0.004
        (3, 2, 0, True),  # P(2 of 5) = 0.00098, also of the stream's own adapter
        (4, 2, 0, False),  # P(2 of 6) = 0.0015
    ],
)
def test_what_is_not_believed_is_doubted_where_chance_does_not_explain_it(
    plain: int, strays: int, leaks: int, unexplained: bool
) -> None:
    assert Noise(9999, plain, strays, 0.01, "none", leaks).unexplained == unexplained
    assert not Noise(9999, plain, strays, 0.01, "leaks", leaks).unexplained
