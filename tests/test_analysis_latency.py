"""Swap latencies, gaps, stalls, hangover and the budgets of bystanders, by hand on literal histories."""

from __future__ import annotations

import math

import numpy as np
import pytest
from minihistory import history

from loadtest.analysis.case import Case, open_case
from loadtest.analysis.gaps import extent, gaps, matched_windows, median_length, outside, stalls, swap_windows
from loadtest.analysis.guarantees import complete
from loadtest.analysis.isolated import Budget, bystander_names, bystanders, isolated
from loadtest.analysis.latency import by_adapter, by_arm, hangover
from loadtest.analysis.ledger import Ledger, figure, ledger, stall_effect
from loadtest.analysis.timeline import TIMELESS

LOADS = "load a v0 0 1 ok\nload b v0 0 1 ok\n"


def case_of(text: str) -> Case:
    return open_case(history(LOADS + text))


def book_of(text: str) -> Ledger:
    case = case_of(text)
    return ledger(case, gaps(case), [])


def only(values: np.ndarray) -> float:
    assert len(values) == 1
    return float(values[0])


def test_the_four_latencies_of_one_swap() -> None:
    book = book_of(
        "load a v1 100 150 ok\nstream a 90: v0@95 v0@120 v0@180\nstream a 110: v1@130 v1@135\nstream a 160: v1*3"
    )
    assert (only(book.ack), only(book.effect), only(book.drain)) == (50.0, 30.0, 30.0)
    assert only(book.stall) == 60.0  # 120 to 180
    assert (only(book.exposed), only(book.attributable), only(book.across)) == (2, 2, 1)


def test_a_swap_that_nobody_could_see_has_no_effect_and_no_drain() -> None:
    book = book_of("load a v1 100 150 ok")
    assert all(math.isnan(only(v)) for v in (book.effect, book.drain, book.stall, book.matched))


def test_old_tokens_read_before_the_ack_have_drained_by_then() -> None:
    assert only(book_of("load a v1 100 150 ok\nstream a 90: v0@95 v0@120").drain) == 0.0


def test_a_sham_swap_has_no_effect_and_no_drain() -> None:
    book = book_of("load a v0 100 150 ok sham\nstream a 90: v0@95 v0@120 v0@180\nstream a 160: v0@165")
    assert math.isnan(only(book.effect))
    assert math.isnan(only(book.drain))
    assert only(book.stall) == 60.0


def test_a_swap_that_was_never_answered_took_for_ever() -> None:
    book = book_of("load a v1 100 - info\nstream a 160: v1@165")
    assert (only(book.ack), only(book.effect)) == (math.inf, 65.0)
    assert math.isnan(only(book.drain))


def test_a_content_that_comes_back_is_seen_again() -> None:
    book = book_of(
        "load a v1 100 110 ok\nload a v0 200 210 ok\nstream a 50: v0@55\nstream a 120: v1@125\nstream a 220: v0@230"
    )
    assert book.effect.tolist() == [25.0, 30.0]
    assert book.drain.tolist() == [0.0, 0.0]


def test_figures_carry_their_uncertainty() -> None:
    f = figure(np.array([float(i) for i in range(1, 31)] + [math.nan]))
    assert (f["p50"], f["p90"], f["p99"], f["n"]) == (15.0, 27.0, 30.0, 30.0)
    assert f["interval"] == (10.0, 21.0)
    assert f["interval_p99"][1] == math.inf
    nothing = figure(np.array([]))
    assert math.isnan(nothing["p50"])
    assert nothing["n"] == 0.0


def test_gaps_are_between_reads_and_a_stall_runs_to_the_end() -> None:
    case = case_of(
        "stream a 5: v0@10 v0@10 v0@13\nstream a 6: v0@8 | stalled ended=50\nstream a 7: v0@9 | cancelled ended=60"
    )
    found = gaps(case).every(100)
    assert ((found.end - found.start) / 1e6).tolist() == [3.0, 42.0]
    assert found.stream.tolist() == [0, 1]


def test_windows_end_at_the_next_swap_and_matched_ones_lie_free_of_swaps() -> None:
    case = case_of("load a v1 1000 1100 ok\nload a v2 1200 1250 ok\nload b v1 5000 5010 ok")
    windows = swap_windows(case.swaps, np.ones(3, bool))
    assert ((windows.start - case.origin) / 1e6).tolist() == [1000, 1200, 5000]
    assert ((windows.end - case.origin) / 1e6).tolist() == [1200, 1500, 5260]
    quiet = matched_windows(case.swaps, windows)
    assert quiet.swap.tolist() == [0, 2]  # the second has no room behind the first
    assert ((quiet.start - case.origin) / 1e6).tolist() == [800, 4740]
    rest = outside(windows, case.origin, case.origin + 6_000_000_000)
    assert ((rest.end - rest.start) / 1e6).tolist() == [1000, 3500, 740]


def test_stalls_weigh_a_gap_by_the_time_it_covers() -> None:
    case = case_of("load a v1 1000 1100 ok\nstream a 900: v0@950 v0@1050 v0@1070\nstream a 990: v0@1340 v0@1360")
    s = stalls(gaps(case), swap_windows(case.swaps, np.ones(1, bool)))
    assert s.longest_ms.tolist() == [100.0]
    assert s.weighted.tolist() == [50 * 100 + 20 * 20 + 10 * 20]
    assert s.covered.tolist() == [80.0]


def test_a_gap_that_spans_windows_counts_in_each() -> None:
    case = case_of("load a v1 1000 1010 ok\nload a v2 2000 2010 ok\nstream a 900: v0@950 v0@3000")
    s = stalls(gaps(case), swap_windows(case.swaps, np.ones(2, bool)))
    assert s.longest_ms.tolist() == [2050.0, 2050.0]
    assert s.covered.tolist() == [260.0, 260.0]


def steps(start: float, count: int, gap: float) -> str:
    return " ".join(f"v0@{start + i * gap}" for i in range(1, count + 1))


def test_a_stall_of_real_swaps_is_reported_beyond_that_of_sham_swaps() -> None:
    lines, at = [], 1000.0
    for i in range(20):
        arm, stall = ("sham", 20) if i % 2 else ("real", 120)
        lines.append(f"load a v0 {at} {at + 10} ok {arm}")
        lines.append(f"stream a {at - 500}: {steps(at - 500, 50, 10)} v0@{at + stall} {steps(at + stall, 30, 10)}")
        at += 1000
    case = case_of("\n".join(lines))
    effect = stall_effect(case, ledger(case, gaps(case), []))
    assert (effect.real, effect.sham, effect.real_minus_sham) == (110.0, 10.0, 100.0)
    assert effect.interval == (100.0, 100.0)
    assert effect.p < 0.01


def test_groups_count_every_stream_and_time_only_complete_ones() -> None:
    streams = ("a 5: v0@10 v0@12 v0@16", "a 60: v0@65 | cut max=9", "b 200: v0@210")
    case = case_of("phase aa 0 50\nphase real 50 100 a\n" + "\n".join(f"stream {s}" for s in streams))
    arms = {g.name: g for g in by_arm(case, gaps(case).every(100))}
    assert {n: (g.streams, g.ok, g.fail, g.info) for n, g in arms.items()} == {
        "aa": (1, 1, 0, 0),
        "real": (1, 0, 1, 0),
        "": (1, 1, 0, 0),
    }
    aa = arms["aa"].figures
    assert (aa["ttft_ms"]["p50"], aa["e2el_ms"]["p50"], aa["tpot_ms"]["p50"]) == (5.0, 11.0, 3.0)
    assert (aa["itl_ms"]["p50"], aa["itl_ms"]["p99"], aa["itl_ms"]["n"]) == (2.0, 4.0, 2.0)
    assert arms["aa"].tokens_per_s == pytest.approx(3 / 0.011)
    assert math.isnan(arms["real"].figures["ttft_ms"]["p50"])
    assert [(g.name, g.streams) for g in by_adapter(case, gaps(case).every(100))] == [("a", 2), ("b", 1)]


def test_thinning_keeps_the_figures() -> None:
    case = case_of("stream a 5: v0*100")
    found = gaps(case)
    assert len(found.every(99).start) == 99
    third = found.every(40)
    assert ((third.end - case.origin) / 1e6).tolist() == [7 + 3 * i for i in range(33)]
    assert len(found.of(np.zeros(1, bool)).every(99).start) == 0


def test_blocks_of_tokens_give_the_same_gaps_whatever_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f"stream {'ab'[n % 2]} {5 * n}: v0*{n % 7 + 1}{' | stalled ended=900' if n % 5 == 0 else ''}" for n in range(40)
    ]
    case = case_of("\n".join(lines))
    whole = gaps(case).every(10**6)
    monkeypatch.setattr("loadtest.history.blocks.__defaults__", (6,))
    assert len(list(gaps(case).blocks())) > 10
    parts = gaps(case).every(10**6)
    assert parts.stream.tolist() == whole.stream.tolist()
    assert (parts.end - parts.start).tolist() == (whole.end - whole.start).tolist()


def closed_loop(start: float, count: int, itl: float, users: int = 4) -> str:
    """`users` streams at a time, 10 tokens each, one after another."""
    lines = []
    for u in range(users):
        at = start + u
        for _ in range(count):
            lines.append(f"stream a {at}: {steps(at, 10, itl)}")
            at += 10 * itl + 1
    return "\n".join(lines) + "\n"


def test_a_hangover_is_the_ratio_of_steady_gaps() -> None:
    text = closed_loop(10, 5, 4) + "load a v1 1000 1010 ok\n" + closed_loop(1100, 5, 12).replace("v0", "v1")
    h = hangover(case_of(text))
    assert (h.ratio, h.interval, h.before_ms, h.after_ms, h.because) == (3.0, (3.0, 3.0), 4.0, 12.0, "")
    assert (h.before, h.after) == (20, 20)


def test_a_hangover_needs_streams_on_both_sides_and_the_same_load() -> None:
    swap = "load a v1 1000 1010 ok\n"
    assert hangover(case_of(closed_loop(10, 5, 4))).because == "no swap"
    one_sided = hangover(case_of(closed_loop(10, 5, 4) + swap))
    assert one_sided.because == "20 streams ended before the first swap, 0 began after the last"
    assert math.isnan(one_sided.ratio)
    crowd = closed_loop(1100, 10, 4, users=12).replace("v0", "v1")
    assert "load after the last swap" in hangover(case_of(closed_loop(10, 5, 4, users=2) + swap + crowd)).because


def test_in_an_open_loop_the_arrivals_are_the_load() -> None:
    before = "".join(f"stream a {10 + 20 * i}: {steps(10 + 20 * i, 10, 2)}\n" for i in range(40))
    after = "".join(f"stream a {1100 + 20 * i}: {steps(1100 + 20 * i, 10, 30)}\n" for i in range(40)).replace(
        "v0", "v1"
    )
    h = hangover(case_of(before + "load a v1 1000 1010 ok\n" + after))
    assert (h.ratio, h.because) == (15.0, "")


def test_rollback_ends_the_time_after_the_last_swap() -> None:
    text = closed_loop(10, 5, 4) + "load a v1 1000 1010 ok\n" + closed_loop(1100, 5, 4).replace("v0", "v1")
    text += "load a v0 1150 1160 ok rollback\n"
    assert hangover(case_of(text)).because == "20 streams ended before the first swap, 4 began after the last"


def budgets(
    text: str, error_rate: float | None = None, stall: float | None = None
) -> tuple[dict[str, int], list[Budget]]:
    case = case_of(text)
    finding, found = isolated(case, gaps(case), error_rate, stall)
    return finding.kinds, found


SWAPS = "".join(f"load a v{i} {1000 * i} {1000 * i + 50} ok\n" for i in range(1, 11))


def bystander(i: int, inside: str, outside_: str) -> str:
    at = 1000 * i
    return f"stream b {at}: {inside}\nstream b {at + 500}: {outside_}\n"


def test_errors_of_bystanders_in_swap_windows_break_their_budget() -> None:
    bad = SWAPS + "".join(bystander(i, "| cut max=4", "v0*4") for i in range(1, 11))
    kinds, (budget,) = budgets(bad, error_rate=0.0)
    assert (budget.status, budget.value, kinds) == ("FAIL", 1.0, {"error_rate": 1})
    assert "10 of 10 bystander streams failed in swap windows, 0 of 10 outside" in budget.because


def test_errors_that_come_at_any_time_are_not_the_swaps_doing() -> None:
    bad = SWAPS + "".join(bystander(i, "| cut max=4", "| cut max=4") for i in range(1, 11))
    assert budgets(bad, error_rate=0.0)[1][0].status == "UNKNOWN"
    assert budgets(bad, error_rate=1.0)[1][0].status == "PASS"


def test_no_error_is_within_any_budget_and_no_traffic_proves_nothing() -> None:
    good = SWAPS + "".join(bystander(i, "v0*4", "v0*4") for i in range(1, 11))
    assert budgets(good, error_rate=0.0)[1][0].status == "PASS"
    assert budgets(SWAPS, error_rate=0.0)[1][0].status == "UNKNOWN"


def test_a_stall_of_bystanders_in_swap_windows_breaks_its_budget() -> None:
    def text(gap: float) -> str:
        return SWAPS + "".join(
            bystander(i, steps(1000 * i, 10, gap), steps(1000 * i + 500, 10, 5)) for i in range(1, 11)
        )

    kinds, (budget,) = budgets(text(20), stall=2.0)
    assert (budget.status, kinds) == ("FAIL", {"stall": 1})
    assert budget.value == pytest.approx(4.0)
    assert budgets(text(5), stall=2.0)[1][0].status == "PASS"
    assert budgets(text(20) + "health 0 99999 50", stall=2.0)[1][0].status == "UNKNOWN"
    assert budgets("load a v1 1000 1050 ok\nstream b 1000: v0*9", stall=2.0)[1][0].status == "UNKNOWN"


def test_without_budgets_only_leaks_are_judged() -> None:
    bad = SWAPS + "".join(bystander(i, "| cut max=4", "v0*4") for i in range(1, 11))
    assert budgets(bad) == ({}, [])


def stalls_at(stalled: int, outside_gap: float = 5.0, since: int = 0) -> str:
    """Ten swaps a second apart; in the windows of the first `stalled` a bystander waits 60 ms once."""
    lines = [f"load a v{i} {since + 1000 * i} {since + 1000 * i + 50} ok" for i in range(1, 11)]
    for i in range(1, 11):
        at = since + 1000 * i
        waits = f"v0@{at + 5} v0@{at + 65} " if i <= stalled else ""
        first = at + 65 if waits else at
        lines.append(f"stream b {at}: {waits}{steps(first, 36, 5)}")
        lines.append(f"stream b {at + 500}: {steps(at + 500, 30, 5)} v0@{at + 650 + outside_gap}")
    return "\n".join(lines)


@pytest.mark.parametrize(("stalled", "status"), [(0, "PASS"), (1, "UNKNOWN"), (3, "UNKNOWN"), (4, "FAIL")])
def test_rare_stalls_break_the_budget_when_chance_does_not_explain_where_they_began(stalled: int, status: str) -> None:
    """Windows and a usual gap take up 0.305 s of every second: 0.31^3 = 0.03, 0.31^4 = 0.009."""
    kinds, (budget,) = budgets(stalls_at(stalled), stall=6.0)
    assert (budget.status, kinds) == (status, {"stall": 1} if status == "FAIL" else {})
    assert budget.value < 6.0
    if stalled:
        names = ", ".join(f"e0-{i + 1}" for i in range(1, stalled + 1))
        assert f"in the windows of {stalled} swaps ({names}) a bystander waited up to 60.0 ms" in budget.because
        assert "outside never over 5.0 ms" in budget.because


def test_the_odds_of_rare_stalls_are_the_same_after_a_quarter_of_an_hour() -> None:
    for stalled, status in ((3, "UNKNOWN"), (4, "FAIL")):
        assert budgets(stalls_at(stalled, since=900_000), stall=6.0)[1][0].status == status


def test_stalls_that_are_no_longer_than_those_outside_are_not_the_swaps_doing() -> None:
    assert budgets(stalls_at(4, outside_gap=10.0), stall=6.0)[1][0].status == "PASS"  # 60 ms is not over 6 * 10 ms
    assert budgets(stalls_at(4, outside_gap=9.9), stall=6.0)[1][0].status == "FAIL"


def test_a_late_client_is_not_told_of_rare_stalls() -> None:
    assert budgets(stalls_at(4) + "\nhealth 0 99999 50", stall=6.0)[1][0].status == "UNKNOWN"


@pytest.mark.parametrize(("failed", "status"), [(9, "UNKNOWN"), (10, "FAIL")])
def test_failures_of_bystanders_need_odds_of_a_thousand_to_one(failed: int, status: str) -> None:
    """Half of the streams overlap a swap: 2^-9 = 0.002, 2^-10 = 0.00098."""
    text = SWAPS + "".join(bystander(i, "| cut max=4" if i <= failed else "v0*4", "v0*4") for i in range(1, 11))
    assert budgets(text, error_rate=0.0)[1][0].status == status


def ms(found: np.ndarray, case: Case) -> list[float]:
    """Milliseconds since the run began."""
    return ((found - case.origin) / 1e6).tolist()


def test_a_gap_that_only_touches_a_window_is_none_of_its() -> None:
    case = case_of("load a v1 1000 1010 ok\nstream a 900: v0@950 v0@1000\nstream a 1200: v1@1260 v1@1300")
    window = swap_windows(case.swaps, np.ones(1, bool))
    s = stalls(gaps(case), window)
    assert math.isnan(only(s.longest_ms))
    assert (only(s.covered), only(s.weighted)) == (0.0, 0.0)
    assert len(outside(window, int(window.start[0]), int(window.end[0])).start) == 0


@pytest.mark.parametrize(("second", "matched"), [(1520, [0, 1]), (1519.999, [0])])
def test_a_matched_window_may_begin_as_the_swap_before_it_ends(second: float, matched: list[int]) -> None:
    """A swap of 10 ms fills 260 ms: [1000, 1260], and what is matched with the second begins 260 ms before it."""
    case = case_of(f"load a v1 1000 1010 ok\nload b v1 {second} {second + 10} ok")
    quiet = matched_windows(case.swaps, swap_windows(case.swaps, np.ones(2, bool)))
    assert quiet.swap.tolist() == matched


def test_of_two_swaps_asked_for_at_once_the_first_has_no_window() -> None:
    case = case_of("load a v1 1000 1010 ok\nload a v2 1000 1010 ok")
    windows = swap_windows(case.swaps, np.ones(2, bool))
    assert (ms(windows.start, case), ms(windows.end, case)) == ([1000, 1000], [1000, 1260])
    assert matched_windows(case.swaps, windows).swap.tolist() == [1]


def test_a_stream_that_stalled_before_or_at_its_last_token_has_no_gap_to_its_end() -> None:
    case = case_of(
        "stream a 5: v0@10 v0@13 | stalled ended=13\nstream a 6: | stalled ended=50\nstream a 7: v0 | unfinished"
    )
    found = gaps(case).every(9)
    assert (ms(found.start, case), ms(found.end, case)) == ([10], [13])
    assert extent(gaps(case)) == (case.origin + 10_000_000, case.origin + 13_000_000)
    assert extent(gaps(case_of("stream a 5: v0"))) is None


@pytest.mark.parametrize(
    ("tokens", "median"),
    [
        ("v0@10 v0@17", 7.0),
        ("v0@10 v0@17 v0@20", 5.0),
        ("v0@10 v0@17 v0@20 v0@21", 3.0),
        ("v0@10 v0@17 v0@20 v0@21 v0@41", 5.0),
    ],
)
def test_the_median_gap_by_hand(tokens: str, median: float) -> None:
    assert median_length(gaps(case_of(f"stream a 5: {tokens}"))) == median * 1e6


def test_the_median_of_many_gaps_in_any_order() -> None:
    rng = np.random.default_rng(8)
    for count in range(5, 30):
        lengths = rng.permutation(np.arange(count) ** 2 + 1)
        case = case_of("stream a 5: v0@10 " + " ".join(f"v0@{at}" for at in 10 + np.cumsum(lengths)))
        assert median_length(gaps(case)) == np.median(lengths) * 1e6


def test_thinning_begins_beyond_the_limit_and_takes_every_nth_over_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("stream a 5: v0*8\nstream a 6: v0*5\nstream a 7: v0*9")
    assert [len(gaps(case).every(most).start) for most in (19, 18, 10, 9, 1)] == [19, 10, 10, 7, 1]
    third = gaps(case).every(9)
    monkeypatch.setattr("loadtest.history.blocks.__defaults__", (6,))
    again = gaps(case).every(9)
    assert (again.stream.tolist(), again.start.tolist()) == (third.stream.tolist(), third.start.tolist())


def spaced(start: float, count: int, tokens: int, gap: float, word: str = "v0") -> str:
    """`count` streams, each 20 ms after the one before, of `tokens` tokens."""
    at = [start + 20 * i for i in range(count)]
    return "".join(f"stream a {t}: {steps(t, tokens, gap)}\n" for t in at).replace("v0", word)


@pytest.mark.parametrize(
    ("before", "after", "tokens", "more", "because"),
    [
        (6, 6, 8, "", ""),
        (5, 6, 8, "", "5 streams ended before the first swap, 6 began after the last"),
        (6, 5, 8, "", "6 streams ended before the first swap, 5 began after the last"),
        (6, 6, 7, "", "0 streams ended before the first swap, 0 began after the last"),
        (5, 6, 8, "stream a 900: v0*7 v0@1000", "5 streams ended before the first swap, 6 began after the last"),
        (5, 6, 8, "stream a 900: v0*7 v0@999.999", ""),
        (6, 5, 8, "stream a 1010: v1*8", "6 streams ended before the first swap, 5 began after the last"),
        (6, 5, 8, "stream a 1010.001: v1*8", ""),
        (6, 6, 8, "load a v0 1216 1217 ok rollback", "6 streams ended before the first swap, 5 began after the last"),
        (6, 6, 8, "load a v0 1216.001 1217 ok rollback", ""),
    ],
)
def test_a_hangover_takes_six_streams_of_eight_tokens_a_side(
    before: int, after: int, tokens: int, more: str, because: str
) -> None:
    """The swap is [1000, 1010]; the sixth stream after it is sent at 1200 and read until 1216."""
    text = spaced(10, before, tokens, 2) + "load a v1 1000 1010 ok\n" + spaced(1100, after, tokens, 2, "v1") + more
    h = hangover(case_of(text))
    assert h.because == because
    assert math.isnan(h.ratio) == bool(because)


@pytest.mark.parametrize(("apart", "same"), [(16.0, True), (15.9, False)])
def test_a_quarter_more_arrivals_are_the_same_load(apart: float, same: bool) -> None:
    """Every 20 ms before, three streams open at a time; every 16 ms after, on a server so slow that 25 are."""
    before = "".join(f"stream a {10 + 20 * i}: {steps(10 + 20 * i, 10, 6)}\n" for i in range(41))
    after = "".join(f"stream a {1100 + apart * i}: {steps(1100 + apart * i, 10, 40)}\n" for i in range(41))
    h = hangover(case_of(before + "load a v1 1000 1010 ok\n" + after.replace("v0", "v1")))
    assert (h.because == "") == same
    assert h.ratio == pytest.approx(40 / 6)


@pytest.mark.parametrize(
    ("begin", "end", "same"), [(10, 30, True), (10, 29.9, False), (30, 50, True), (30.1, 50, False)]
)
def test_a_stream_that_begins_or_ends_in_the_middle_of_another_was_beside_it(
    begin: float, end: float, same: bool
) -> None:
    """Five streams before the swap have 30 ms as their middle: with a sixth beside they are as many as eight."""
    around = "".join(f"stream a {10 + i}: {steps(10 + i, 10, 4 - i / 5)}\n" for i in range(5))
    after = "".join(f"stream a {1100 + i / 10}: {steps(1100 + i / 10, 10, 4)}\n" for i in range(8))
    last = f"stream a {begin}: {steps(begin, 10, (end - begin) / 10)}\n"
    h = hangover(case_of(around + last + "load a v1 1000 1010 ok\n" + after.replace("v0", "v1")))
    assert h.because == ("" if same else "the load after the last swap was another than before the first")


def test_a_first_token_read_as_the_swap_is_asked_for_is_its_effect() -> None:
    assert only(book_of("load a v1 100 150 ok\nstream a 90: v1@100").effect) == 0.0
    assert math.isnan(only(book_of("load a v1 100 150 ok\nstream a 90: v1@99.999").effect))
    again = "load a v1 100 110 ok\nload a v0 200 210 ok\nload a v1 300 310 ok\nstream a 290: v1@"
    effects = [book_of(again + at).effect.tolist() for at in ("300", "299.999")]
    assert (math.isnan(effects[0][0]), effects[0][2]) == (True, 0.0)
    assert (effects[1][0], math.isnan(effects[1][2])) == (pytest.approx(199.999), True)


def test_old_content_drains_until_it_is_loaded_again() -> None:
    text = "load a v1 100 110 ok\nload a v0 200 210 ok\nstream a 90: v0@120\nstream a 150: v0@"
    assert book_of(text + "200").drain.tolist()[0] == 10.0
    assert book_of(text + "199 v0@250").drain.tolist()[0] == 90.0
    assert math.isnan(only(book_of("load a v1 100 110 fail\nstream a 90: v0@120").drain))
    assert math.isnan(only(book_of("load a v1 100 110 fail\nstream a 90: v1@120").effect))


def test_a_swap_meets_in_the_middle_who_was_there_before_and_stays() -> None:
    swap = "load a v1 100 150 ok\n"
    assert only(book_of(swap + "stream a 99.999: v0@100.001").across) == 1
    assert only(book_of(swap + "stream a 100: v0@120").across) == 0
    assert only(book_of(swap + "stream a 90: v0@100").across) == 0
    assert only(book_of(swap + "stream a 90: v0@100").exposed) == 1


def test_violations_of_a_swap_are_those_of_streams_beside_it() -> None:
    case = case_of(
        "load a v1 100 150 ok\nload b v1 300 350 ok\nstream a 140: v0 | cut\nstream a 151: v1 | cut\nstream b 310: v1"
    )
    book = ledger(case, gaps(case), [complete(case)])
    assert book.flagged["complete"].tolist() == [1, 0]
    assert (book.exposed.tolist(), book.attributable.tolist(), book.across.tolist()) == ([1, 1], [1, 1], [0, 0])


def test_one_value_has_no_interval_but_a_lower_bound_of_nothing() -> None:
    f = figure(np.array([5.0]))
    assert (f["p50"], f["n"], f["interval"], f["interval_p90"]) == (5.0, 1.0, (0.0, math.inf), (0.0, math.inf))


def test_a_group_without_tokens_has_no_rate() -> None:
    case = case_of("stream a 5: v0@10 v0@14\nstream a 6: v0\nstream b 7: | rejected\nstream base 8: x*3 | text")
    a, b, base = by_adapter(case, gaps(case).every(9))
    assert (a.streams, a.tokens, a.figures["tpot_ms"]["n"], a.figures["tpot_ms"]["p50"]) == (2, 3, 1.0, 4.0)
    assert (a.figures["ttft_ms"]["n"], a.figures["itl_ms"]["n"]) == (2.0, 1.0)
    assert (b.streams, b.fail, b.tokens, math.isnan(b.tokens_per_s)) == (1, 1, 0, True)
    assert base.tokens_per_s == pytest.approx(1000)
    assert math.isnan(base.figures["tpot_ms"]["p50"])  # ids of text-only streams are guesses


def test_a_stream_that_got_nothing_does_not_stretch_the_time_of_a_group() -> None:
    case = case_of("stream b 2: | rejected\nstream b 7: v0*2\nstream b 8: v0*2 | cut ended=90\nstream b 99: | cut")
    (group,) = by_adapter(case, gaps(case).every(9))
    assert (group.tokens, group.tokens_per_s) == (4, pytest.approx(4 / 0.003))
    (empty,) = by_adapter(case := case_of("stream b 7: | usage=0 max=0"), gaps(case).every(9))
    assert (empty.ok, [empty.figures[name]["n"] for name in ("ttft_ms", "tpot_ms", "e2el_ms")]) == (1, [0.0] * 3)


def test_clocks_that_do_not_compare_measure_neither_bystanders_nor_a_hangover() -> None:
    text = SWAPS + "".join(bystander(i, "| cut max=4", "v0*4") for i in range(1, 11))
    for more, status in (("", ["FAIL", "UNKNOWN"]), ("engine e1 other", ["UNKNOWN", "UNKNOWN"])):
        _, found = budgets(text + more, error_rate=0.0, stall=2.0)
        assert [b.status for b in found] == status
        assert [b.because == TIMELESS for b in found] == [bool(more)] * 2
        assert (hangover(case_of(text + more)).because == TIMELESS) == bool(more)


def test_streams_without_ids_leave_the_time_per_token_of_the_others_alone() -> None:
    case = case_of(
        "stream base 8: x@9 x@13 x@19\nstream base 9: x*3 | text\nstream base 9: x\nstream base 9: x@11 x@14"
    )
    (group,) = by_adapter(case, gaps(case).every(9))
    assert group.figures["tpot_ms"] == {"p50": 3.0, "p90": 5.0, "p99": 5.0, "n": 2.0}


@pytest.mark.parametrize(("limit", "status"), [(0.5, "PASS"), (0.499, "UNKNOWN"), (0.18, "FAIL"), (0.19, "UNKNOWN")])
def test_an_error_budget_is_kept_by_a_rate_on_it_and_broken_by_a_whole_interval(limit: float, status: str) -> None:
    """5 of 10 inside: [0.187, 0.813]; none outside, of 90 streams: chance 1e-5."""
    text = SWAPS + "".join(bystander(i, "| cut max=4" if i <= 5 else "v0*4", "v0*4") for i in range(1, 11))
    text += "".join(f"stream b {1000 * i + 500 + k}: v0*2\n" for i in range(1, 11) for k in range(1, 9))
    assert budgets(text, error_rate=limit)[1][0].status == status


def test_failures_where_nobody_streams_outside_of_swaps_are_the_swaps() -> None:
    text = SWAPS + "".join(f"stream b {1000 * i}: | cut max=4\n" for i in range(1, 11))
    kinds, (budget,) = budgets(text, error_rate=0.0)
    assert (budget.status, kinds) == ("FAIL", {"error_rate": 1})


@pytest.mark.parametrize(("windows", "status"), [(6, "PASS"), (5, "UNKNOWN")])
def test_six_windows_with_traffic_bound_a_stall(windows: int, status: str) -> None:
    lines = "".join(bystander(i, steps(1000 * i, 10, 5), steps(1000 * i + 500, 10, 5)) for i in range(1, windows + 1))
    assert budgets(SWAPS + lines, stall=2.0)[1][0].status == status
    few = "".join(line for line in SWAPS.splitlines(True) if int(line.split()[3]) <= 1000 * windows)
    assert budgets(few + lines, stall=2.0)[1][0].status == status
    for text in (SWAPS + lines, few + lines):
        assert (budgets(text, stall=2.0)[1][0].interval == (0.0, math.inf)) == (status == "UNKNOWN")


@pytest.mark.parametrize("times", [1, 2])
def test_a_stall_outside_of_swaps_is_measured_where_bystanders_streamed(times: int) -> None:
    """Gaps are 20 ms in ten swaps' windows and 5 ms outside of them: once is no interval."""
    inside = "".join(f"stream b {1000 * i}: {steps(1000 * i, 10, 20)}\n" for i in range(1, 11))
    beyond = "".join(f"stream b {1000 * i + 500}: {steps(1000 * i + 500, 10, 5)}\n" for i in range(1, times + 1))
    (budget,) = budgets(SWAPS + inside + beyond, stall=9.0)[1]
    assert (budget.value, budget.interval) == (4.0, (0.0, math.inf) if times == 1 else (4.0, 4.0))


@pytest.mark.parametrize(("limit", "status"), [(4.0, "PASS"), (3.99, "FAIL")])
def test_a_stall_budget_is_kept_by_a_ratio_on_it(limit: float, status: str) -> None:
    """All gaps 20 ms inside and 5 ms outside: ratio and interval are exactly 4, but no single gap is over 4 times."""
    text = SWAPS + "".join(bystander(i, steps(1000 * i, 10, 20), steps(1000 * i + 500, 10, 5)) for i in range(1, 11))
    (budget,) = budgets(text, stall=limit)[1]
    assert (budget.value, budget.status) == (4.0, status)


def test_both_budgets_of_bystanders_can_break_and_the_first_reason_stays() -> None:
    text = SWAPS + "".join(
        bystander(i, f"{steps(1000 * i, 10, 20)} | cut max=20", steps(1000 * i + 500, 10, 5)) for i in range(1, 11)
    )
    case = case_of(text)
    finding, found = isolated(case, gaps(case), 0.0, 2.0)
    assert (finding.violations, finding.kinds) == (2, {"error_rate": 1, "stall": 1})
    assert [w.kind for w in finding.witnesses] == ["error_rate", "stall"]
    assert [b.name for b in found] == ["isolated_error_rate", "isolated_stall"]
    quiet = case_of("load a v1 1000 1050 ok\nstream a 990: v0")
    finding, found = isolated(quiet, gaps(quiet), 0.0, 2.0)
    assert (finding.violations, finding.unknown) == (0, "no stream was exposed to it")
    assert [b.status for b in found] == ["UNKNOWN", "UNKNOWN"]


def test_bystanders_are_named_whether_they_stream_or_not() -> None:
    assert bystander_names(case_of("load a v1 10 20 ok\nload c v0 0 1 ok\nstream base 5: x")) == ["b", "base", "c"]
    assert bystander_names(case_of("stream base 5: x")) == []
    assert bystanders(case_of("load a v1 10 20 ok\nstream a 5: v0\nstream b 6: v0")).tolist() == [False, True]
    assert bystanders(case_of("stream a 5: v0")).tolist() == [False]


@pytest.mark.parametrize(("last", "end"), [("90", 90), ("13", 50)])
def test_gaps_extend_from_the_first_of_all_to_the_last(last: str, end: int) -> None:
    found = extent(gaps(case_of(f"stream a 5: v0@10 v0@{last}\nstream a 6: v0@8 | stalled ended=50")))
    assert found == (history("").runs[0].started_ns + 8_000_000, history("").runs[0].started_ns + end * 1_000_000)


@pytest.mark.parametrize(("users", "same"), [(6, True), (5, False), (10, True), (11, False)])
def test_a_quarter_more_or_fewer_streams_beside_are_the_same_load(users: int, same: bool) -> None:
    """Eight streams at a time after the swap: 6 to 10 before it are alike, though a third fewer arrive."""
    text = closed_loop(10, 5, 4, users) + "load a v1 1000 1010 ok\n" + closed_loop(1100, 5, 4, 8).replace("v0", "v1")
    h = hangover(case_of(text))
    assert h.because == ("" if same else "the load after the last swap was another than before the first")
    assert (h.before, h.after) == (5 * users, 40)


@pytest.mark.parametrize(
    ("begins", "status"), [(-5, "FAIL"), (-5.001, "PASS"), (0, "FAIL"), (299.999, "FAIL"), (300, "PASS")]
)
def test_a_rare_stall_is_a_swaps_when_it_began_in_its_window_or_a_usual_gap_before(begins: float, status: str) -> None:
    """Windows are [0, 300] ms from each swap, the usual gap is 5 ms; the first five swaps meet a stall of 60 ms."""
    lines = []
    for i in range(1, 11):
        at = 1000 * i + begins
        lines.append(f"stream b {at - 55}: {steps(at - 55, 11, 5)} " + (f"v0@{at + 60} " if i <= 5 else ""))
        lines.append(f"stream b {1000 * i + 10}: {steps(1000 * i + 10, 30, 5)}")
        lines.append(f"stream b {1000 * i + 500}: {steps(1000 * i + 500, 30, 5)}")
    (budget,) = budgets(SWAPS + "\n".join(lines), stall=11.9)[1]
    assert budget.status == status


def test_streams_that_all_begin_at_once_have_no_rate_of_arrival() -> None:
    before, after = (f"stream a {t}: {steps(t, 10, 4)}\n" * n for t, n in ((10, 6), (1100, 20)))
    h = hangover(case_of(before + "load a v1 1000 1010 ok\n" + after.replace("v0", "v1")))
    assert (h.before, h.after, h.ratio) == (6, 20, 1.0)
