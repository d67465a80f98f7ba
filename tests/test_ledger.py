"""What a swap did, at the limits of its definitions: times met exactly, contents that come back, loads refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from minihistory import history

from loadtest.analysis.case import open_case
from loadtest.analysis.gaps import gaps
from loadtest.analysis.guarantees import complete
from loadtest.analysis.ledger import Ledger, figure, ledger, stall_effect
from loadtest.analysis.versions import fresh

LOADS = "load a v0 0 1 ok\nload b v0 0 1 ok\n"
SWAP = "load a v1 100 110 ok\n"


def book_of(text: str) -> Ledger:
    case = open_case(history(LOADS + text))
    return ledger(case, gaps(case), [complete(case), fresh(case)])


def shown(values: np.ndarray) -> list[float | None]:
    """Rounded ms; None where it means nothing."""
    return [None if math.isnan(v) else round(v, 4) for v in values.tolist()]


def test_an_ack_counts_from_the_invocation_whatever_the_answer() -> None:
    assert shown(book_of(SWAP + "load a v2 200 230 fail\nload b v1 300 - info").ack) == [10, 30, math.inf]


@pytest.mark.parametrize(
    ("stream", "exposed", "across"),
    [
        ("100: v0@130", 1, 0),  # sent as the swap was asked for
        ("99.999: v0@130", 1, 1),
        ("90: v0@100", 1, 0),  # ended as it was asked for
        ("90: v0@100.001", 1, 1),
        ("90: v0@99.999", 0, 0),
        ("110: v1@130", 1, 0),
        ("110.001: v1@130", 0, 0),
    ],
)
def test_a_swap_meets_streams_that_were_there_before_it_and_after(stream: str, exposed: int, across: int) -> None:
    book = book_of(SWAP + f"stream a {stream}\nstream b {stream.replace('v1', 'v0')}")
    assert (book.exposed.tolist(), book.attributable.tolist(), book.across.tolist()) == ([exposed], [exposed], [across])
    text = book_of(SWAP + f"stream a {stream} | text")
    assert (text.exposed.tolist(), text.attributable.tolist(), text.across.tolist()) == ([exposed], [0], [0])


@pytest.mark.parametrize(
    ("tokens", "effect"),
    [
        ("90: v0 v1@100", 0),  # read as it was asked for
        ("90: v0 v1@99.999", None),  # what was there before it is not its effect
        ("105: v1@107.5", 7.5),
        ("500: v1@600", 500),
        ("500: v0@600", None),
    ],
)
def test_the_effect_is_the_first_token_of_the_new_content_since_the_invocation(
    tokens: str, effect: float | None
) -> None:
    assert shown(book_of(SWAP + f"stream a {tokens}\nstream a 700: v1@800").effect) == [
        700 if effect is None else effect
    ]
    assert shown(book_of(SWAP + f"stream a {tokens}").effect) == [effect]


def test_what_is_read_since_the_next_load_of_a_content_is_that_loads_effect() -> None:
    twice = SWAP + "load a v2 200 210 ok\nload a v1 300 310 ok\n"
    assert shown(book_of(twice + "stream a 250: v1@299.999 v1@330").effect) == [199.999, None, None]
    assert shown(book_of(twice + "stream a 250: v1@300").effect) == [None, None, 0]
    assert shown(book_of(twice + "stream a 320: v1@330").effect) == [None, None, 30]
    assert shown(book_of(twice + "load a v1 400 410 ok\nstream a 320: v1@330").effect) == [None, None, 30, None]
    refused = twice.replace("300 310 ok", "300 310 fail")
    assert shown(book_of(refused + "stream a 320: v1@330").effect) == [230, None, None]


@pytest.mark.parametrize(
    ("between", "drain"),
    [
        ("", 60),
        ("load a v7 50 60 fail\n", 60),  # a refused load puts nothing in service
        ("load a v7 50 - info\n", None),  # nobody knows what was served
        ("load b v7 50 60 ok\n", 60),
        ("load a v7 50 60 ok\n", None),
        ("unload a 50 60 ok\n", 60),
    ],
)
def test_the_old_content_is_that_of_the_last_load_that_may_have_applied(between: str, drain: float | None) -> None:
    book = book_of(between + SWAP + "stream a 20: v0@30 v0@170")
    assert shown(book.drain)[-1] == drain


@pytest.mark.parametrize(
    ("again", "drain"),
    [
        ("", 170),
        ("load a v0 200 210 ok\n", 90),  # until it is asked for again
        ("load a v0 200 - info\n", 90),
        ("load a v0 200 210 fail\n", 170),
        ("load a v2 200 210 ok\n", 170),
        ("load b v0 200 210 ok sham\n", 170),
    ],
)
def test_the_old_content_drains_until_it_is_loaded_again(again: str, drain: float) -> None:
    book = book_of(SWAP + again + "stream a 90: v0@95 v0@280\n")
    assert shown(book.drain)[0] == drain
    late = book_of(SWAP + again + "stream a 90: v0@95 v0@130\nstream a 190: v0@200 v0@280\n")
    assert shown(late.drain)[0] == (20 if drain == 90 else 170)


def test_without_a_known_content_before_it_a_swap_drains_nothing() -> None:
    first = "load c v1 100 110 ok operator\nstream c 90: v1@130\n"
    book = book_of(first)
    assert (shown(book.effect), shown(book.drain)) == ([30], [None])
    assert shown(book_of(first + "declare c v0\nstream c 91: v0@95 v0@130").drain) == [None]


def test_a_swap_to_what_is_served_or_that_was_refused_changes_nothing_to_be_seen() -> None:
    streams = "stream a 90: v0@95 v0@130\nstream a 120: v1@140"
    for how, effect, drain in (
        ("v0 100 110 ok sham", None, None),
        ("v1 100 110 fail", None, None),
        ("v1 100 - info", 40, None),
        ("v1 100 110 ok", 40, 20),
    ):
        book = book_of(f"load a {how}\n{streams}")
        assert (shown(book.effect), shown(book.drain)) == ([effect], [drain])


def test_two_adapters_have_their_swaps_in_rows_of_their_own() -> None:
    book = book_of(
        "load a v1 100 110 ok\nload b v1 120 130 ok\nload a v2 400 410 ok\n"
        "stream a 90: v0@95 v0@150\nstream b 90: v0@95 v0@145\nstream b 170: v1@180\nstream a 180: v1@210 v1@411"
    )
    assert shown(book.effect) == [110, 60, None]
    assert shown(book.drain) == [40, 15, 1]
    assert shown(book.stall) == [201, 50, 201]  # a gap counts for every swap in whose window it lies
    assert shown(book.matched) == [55, None, None]
    assert book.exposed.tolist() == [1, 1, 1]


def test_violations_stand_beside_the_swap_that_their_streams_lived_through() -> None:
    book = book_of(
        SWAP + "load a v2 200 210 ok\nstream a 90: v0 | cut ended=120\nstream a 150: v0*3\nstream a 195: v0 v0@205"
    )
    assert {name: n.tolist() for name, n in book.flagged.items()} == {"complete": [1, 0], "fresh": [0, 1]}
    assert book.exposed.tolist() == [1, 1]


def test_an_interval_of_a_latency_is_none_below_zero_and_open_above_where_swaps_are_few() -> None:
    few = figure(np.array([5.0, 7.0, math.nan, 6.0]))
    assert (few["p50"], few["n"]) == (6.0, 3.0)
    assert [few[f"interval{q}"] for q in ("", "_p90", "_p99")] == [(low, math.inf) for low in (0.0, 5.0, 6.0)]
    many = figure(np.arange(1.0, 101.0))
    assert [many[q] for q in ("p50", "p90", "p99")] == [50.0, 90.0, 99.0]
    assert [many[f"interval{q}"] for q in ("", "_p90", "_p99")] == [(40.0, 61.0), (84.0, 96.0), (97.0, math.inf)]
    assert set(many) == {"p50", "p90", "p99", "n", "interval", "interval_p90", "interval_p99"}


def test_a_real_swaps_stall_needs_a_sham_swap_to_be_held_against() -> None:
    swaps = "stream a 500: v0@790 v0@900 v0@1000 v0@1150\nload a v0 1000 1010 ok {arm}\n"
    found = {}
    for arm in ("real", "sham", "bad"):
        case = open_case(history(LOADS + swaps.format(arm=arm)))
        found[arm] = stall_effect(case, ledger(case, gaps(case), []))
    assert (found["real"].real, found["sham"].sham) == (40.0, 40.0)  # 150 ms, and 110 ms just before
    assert [math.isnan(v) for v in (found["real"].sham, found["sham"].real, found["bad"].real, found["bad"].sham)] == [
        True
    ] * 4
    assert found["real"].interval == (-math.inf, math.inf)
    nothing = open_case(history(LOADS))
    none = stall_effect(nothing, ledger(nothing, gaps(nothing), []))
    assert (math.isnan(none.real_minus_sham), none.p) == (True, 1.0)
