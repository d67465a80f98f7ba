"""What the guarantees share, at its limits: equal times, the first row of everything, counts exactly met."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from minihistory import history, ns

from loadtest.analysis import stats
from loadtest.analysis.case import (
    Case,
    by_stream,
    first_streams,
    ids_around,
    in_flight,
    open_case,
    overlapping,
    swap_of,
    told,
    who,
)
from loadtest.analysis.client import lag_ms, late, swap_lag_ms, worst_ms
from loadtest.analysis.effects import false_alarms
from loadtest.analysis.guarantees import complete
from loadtest.history import FAIL, INFO, OK

LOADS = "load a v0 0 1 ok\nload b v0 0 1 ok\n"
# Two swaps, [10, 20] and [40, 50]; streams whose lives touch them, end just before them or begin just after them.
TOUCHING = """load a v1 10 20 ok
load a v2 40 50 ok
stream a 5: v0@9.999
stream a 5: v0@10
stream a 15: v1@45
stream a 20: v1@21
stream a 20.001: v1@39.999
stream a 50.001: v2@60
"""


def case_of(text: str, epsilon: int = 0) -> Case:
    return open_case(history(LOADS + text), epsilon)


def test_a_stream_meets_the_swap_that_begins_as_it_ends_and_the_one_that_ends_as_it_begins() -> None:
    case = case_of(TOUCHING)
    everyone = np.ones(6, bool)
    assert overlapping(case).tolist() == [False, True, True, True, False, False]
    assert not overlapping(case, 1).any()  # nobody swaps b
    assert in_flight(case, everyone, case.swaps.invoked, case.swaps.end).tolist() == [3, 1]
    assert in_flight(case, ~everyone, case.swaps.invoked, case.swaps.end).tolist() == [0, 0]
    assert case.cluster.tolist() == [-1, 0, 1, 0, 0, 1]  # the newest swap invoked by the end


def test_a_long_swap_is_met_by_streams_that_began_after_a_shorter_one_inside_it() -> None:
    case = case_of("load a v1 10 90 ok\nload b v1 20 30 ok\nstream a 50: v0@60\nstream a 90.001: v1@95")
    assert overlapping(case).tolist() == [True, False]


def test_hotfixes_are_what_scenario_and_operator_asked_for() -> None:
    case = case_of(
        "load a v1 10 20 ok\nload a v2 30 40 fail\nload a v3 50 - info\nload a v4 60 - ok\n"
        "load b v1 70 80 ok operator\nload b bad:x 85 86 fail operator\nload a v0 90 91 ok rollback\nunload a 95 96 ok"
    )
    assert case.swaps.outcome.tolist() == [OK, FAIL, INFO, INFO, OK, FAIL]
    assert case.swaps.end.tolist() == [ns(t) for t in (20, 40, 50, 60, 80, 86)]
    assert case.swaps.arms == ("real", "real", "real", "real", "real", "bad")
    assert case.swaps.adapter.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_stream_whose_end_was_not_recorded_ends_with_its_last_sign_of_life() -> None:
    case = case_of("stream a 15: v0@18 | unfinished\nstream a 16: | unfinished\nstream a 17: v0@18 | cut ended=20")
    assert case.ended.tolist() == [ns(18), ns(16), ns(20)]


def test_times_count_from_the_first_start_or_the_first_stream() -> None:
    h = history(LOADS + "stream a 15: v0*3\nstream a 16: v0*3")
    assert open_case(h).ms(ns(15)) == 15.0
    two = replace(h, runs=(replace(h.runs[0], started_ns=ns(7)), replace(h.runs[0], started_ns=ns(4))))
    assert open_case(two).ms(ns(15)) == 11.0
    unknown = replace(h, runs=(replace(h.runs[0], started_ns=0),))
    assert open_case(unknown).ms(ns(17)) == 2.0


def test_the_interval_of_a_rate_counts_the_swaps_that_streams_met() -> None:
    case = case_of(TOUCHING)
    nobody, everyone = np.zeros(6, bool), np.ones(6, bool)
    first, alone = everyone & (np.arange(6) == 0), everyone & (np.arange(6) == 3)

    def found(flagged: np.ndarray, exposed: np.ndarray) -> tuple[int, int, tuple[float, float]]:
        f = by_stream(case, "x", flagged, exposed, {"kind": flagged}, ())
        assert f.kinds == ({"kind": f.violations} if f.violations else {})
        assert (f.unknown == "") == (f.exposed > 0)
        return f.violations, f.exposed, f.interval

    assert found(nobody, everyone) == (0, 6, (0.0, stats.none_seen(2)))  # who met no swap is no evidence
    assert found(nobody, first) == (0, 1, (0.0, stats.none_seen(1)))  # but for nothing else being there
    assert found(nobody, nobody) == (0, 0, (0.0, 1.0))
    assert found(first, everyone) == (1, 6, stats.cluster_rate(np.array([1, 0, 0]), np.array([1, 3, 2])))
    assert found(alone, everyone) == (1, 6, stats.cluster_rate(np.array([1, 0]), np.array([3, 2])))
    assert found(alone, nobody) == (1, 1, (1 - stats.none_seen(1), 1.0))  # a violation is exposed to itself


def test_the_earliest_streams_get_the_witnesses_and_ties_go_by_name() -> None:
    case = case_of("\n".join("stream a 15: v0*2" for _ in range(25)))
    names = [case.history.streams.name[i] for i in first_streams(case, np.ones(25, bool))]
    assert names == sorted(f"e0-{i}" for i in range(25))[:20]


def test_ids_around_an_interval_stay_inside_the_stream() -> None:
    case = case_of("stream a 15: v0 x*6\nstream a 16: x*7\nstream a 17: v0*3")
    ids = case.history.ids.tolist()
    assert ids_around(case, 1, 0, 0) == tuple(ids[7:10])
    assert ids_around(case, 1, 3, 3) == tuple(ids[8:13])
    assert ids_around(case, 1, 2, 3) == tuple(ids[7:13])
    assert ids_around(case, 1, 6, 6) == tuple(ids[11:14])


def test_a_swap_as_seen_from_a_moment() -> None:
    case = case_of("load a v1 10 20 ok\nload a v2 30 40 fail\nload a v3 50 - info\nload a v0 60 61 ok rollback")
    good, refused, lost = case.swaps.ops
    assert told(case, good, ns(9)) == "swap e0-2, acked 11.0 ms after"
    assert told(case, good, ns(10)) == "swap e0-2, invoked 0.0 ms before, acked 10.0 ms after"
    assert told(case, good, ns(20)) == "swap e0-2, invoked 10.0 ms before, acked 0.0 ms before"
    assert told(case, good, ns(20.5)) == "swap e0-2, acked 0.5 ms before"
    assert told(case, refused, ns(45)) == "swap e0-3, refused 5.0 ms before"
    assert told(case, lost, ns(45)) == "swap e0-4, invoked 5.0 ms after, never answered"
    untimed = case_of("load a v1 10 - ok").swaps.ops[0]  # an ack without a time dates nothing
    assert told(case, untimed, ns(45)) == "swap e0-2, invoked 35.0 ms before, never answered"
    assert told(case, replace(refused, outcome="info"), ns(45)) == "swap e0-3, invoked 15.0 ms before, never answered"
    assert told(case, None, ns(45)) == "a content loaded before this run"
    assert told(case, case.history.ops[0], ns(3)) == "load e0-0, acked 2.0 ms before"
    assert told(case, case.history.ops[-1], ns(63)) == "load e0-5, acked 2.0 ms before"


def test_the_load_that_made_a_content_appear_may_be_the_first_of_all() -> None:
    case = case_of("load a v1 10 20 ok")
    first = case.look.line.contents.labels.index(("a", "v0"))
    assert first == 0
    assert getattr(swap_of(case, first, ns(0)), "name", "") == "e0-0"
    assert swap_of(case, first, ns(-1)) is None


def test_a_stream_of_a_fleet_is_named_with_its_replica() -> None:
    h = history(LOADS + "stream a 15: v0 | replica=1")
    assert who(open_case(h), 0) == "stream e0-0 of a"
    fleet = replace(h, runs=(replace(h.runs[0], replicas=("http://one", "http://two")),))
    assert who(open_case(fleet), 0) == "stream e0-0 of a on replica 1"
    beside = replace(h, runs=(*fleet.runs, h.runs[0]))  # a second file that names no replicas
    assert who(open_case(beside), 0) == "stream e0-0 of a on replica 1"


# The client's own lateness


@pytest.mark.parametrize(
    ("start", "end", "lag"), [(200, 210, 50.0), (200.001, 210, None), (50, 100, 50.0), (50, 99.999, None)]
)
def test_health_counts_where_it_touches_a_window(start: float, end: float, lag: float | None) -> None:
    case = case_of("health 100 200 50")
    assert lag_ms(case, np.array([ns(start)]), np.array([ns(end)])) == lag


def test_nine_in_ten_intervals_or_99_in_100_samples_must_keep_the_limit() -> None:
    case = case_of("".join(f"health {100 * i} {100 * i + 99} {i}\n" for i in range(1, 11)))
    whole = np.array([ns(0)]), np.array([ns(9999)])
    assert lag_ms(case, *whole) == 9.0
    assert swap_lag_ms(case) == 9.0
    sampled = tuple(replace(h, lags_us=tuple(range(10 * i, 10 * i + 10))) for i, h in enumerate(case.history.health))
    assert lag_ms(open_case(replace(case.history, health=sampled)), *whole) == 0.098  # of 0 to 99 µs
    assert lag_ms(case, np.array([ns(550)]), np.array([ns(560)])) == 5.0


def test_a_client_is_late_beyond_its_limit() -> None:
    assert late(10.0) == ""
    assert late(10.001) == "the client was 10.0 ms late itself"
    assert late(None) != ""


@pytest.mark.parametrize(("lag", "worst"), [(10.0, 0.0), (10.001, 10.001)])
def test_a_lag_within_its_limit_is_no_standstill(lag: float, worst: float) -> None:
    case = case_of("health 0 99 1")
    case = open_case(replace(case.history, health=(replace(case.history.health[0], lag_max_ms=lag),)))
    assert worst_ms(case, np.array([ns(10)]), np.array([ns(20)])).tolist() == [worst]


# What nothing can have caused


def test_false_alarms_count_streams_that_lived_inside_a_quiet_phase() -> None:
    streams = (
        "stream a 9.999: v0@50\nstream a 10: v0@50\nstream a 20: v0@100\nstream a 30: v0@100.001\nstream a 40: | cut\n"
    )

    def counted(more: str) -> tuple[object, object]:
        case = case_of("phase aa 10 100\n" + streams + more)
        row = false_alarms(case, [complete(case)])["aa"]["complete"]
        assert row["interval"] == stats.clopper_pearson(1, int(str(row["streams"])))
        return row["violations"], row["streams"]

    assert counted("") == (1, 3)
    assert counted("load a v1 100.001 101 ok") == (1, 3)
    assert counted("load a v1 100 101 ok") == (1, 2)  # a stream that ended as the swap was asked for may have met it
    assert counted("load a v0 41 42 ok sham\nload a v1 100.001 101 ok") == (1, 3)
