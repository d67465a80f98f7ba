"""The board of a run that goes on: engines' messages in; points, counts and Prometheus text out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.swarm import board as module
from loadtest.swarm import exposition
from loadtest.swarm.board import Board
from loadtest.traffic.live import bin_of

S = 1_000_000_000
MS = 1_000_000


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100 * S

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    return Board("run-1", "Hotfix", 3, {"a": ["v0", "v1"], "b": ["v0"]}, clock)


def second(at_s: float, tokens: int, **more: Any) -> dict[str, Any]:
    return {"op": "progress", "started_ns": 100 * S, "at_ns": round((100 + at_s) * S), "live_tokens": tokens, **more}


def swap(n: int, version: str, at_s: float, outcome: str = "ok", **more: Any) -> dict[str, Any]:
    invoked = round((100 + at_s) * S)
    words = {"adapter": "a", "version": version, "arm": "real", "by": "scenario", "outcome": outcome, "reason": ""}
    return {"n": n, **words, "ack_ms": 20.0, "invoked_ns": invoked, "acked_ns": invoked + 20 * MS, **more}


def test_a_point_adds_up_rates_and_joins_histograms_of_all_engines(board: Board, clock: Clock) -> None:
    for engine, tokens, gap in (("e0", 100, 4.0), ("e1", 50, 40.0)):
        board.count(engine, second(1, 0))
        board.count(engine, second(2, tokens, itl=[[bin_of(gap), 10]], ttft=[[bin_of(9.0), 1]], open=3))
    clock.now = 102 * S
    board.tick()
    point = board.points[0]
    assert (point.at, point.tokens_per_s, point.open) == (2.0, 150.0, 6)
    assert point.itl_p50 == pytest.approx(4.0, rel=0.06)
    assert point.itl_p99 == pytest.approx(40.0, rel=0.06)
    assert point.ttft_p50 == pytest.approx(9.0, rel=0.06)
    board.tick()
    assert board.points[1].itl_p50 is None  # nothing was seen since


def test_the_first_second_counts_from_the_engines_start(board: Board) -> None:
    board.count("e0", second(0.5, 100))
    board.tick()
    assert board.points[0].tokens_per_s == 200.0


def test_points_stay_bounded_and_say_so(board: Board, clock: Clock) -> None:
    generation = board.generation
    for n in range(4 * module.POINTS):
        clock.now = (100 + n) * S
        board.tick()
    assert len(board.points) < module.POINTS
    assert board.generation > generation
    steps = {round(b.at - a.at) for a, b in zip(board.points, board.points[1:], strict=False)}
    assert steps <= {4, 8}
    assert board.points[-1].at > 4 * module.POINTS - 10


def test_a_reader_gets_only_what_it_lacks_unless_points_were_dropped(board: Board, clock: Clock) -> None:
    for n in range(5):
        clock.now = (100 + n) * S
        board.tick()
    assert [p[0] for p in board.document(2.0, 0)["points"]] == [3.0, 4.0]
    assert len(board.document(2.0, 7)["points"]) == 5


def test_effect_is_from_the_invocation_to_the_first_token_of_a_new_version(board: Board) -> None:
    board.swap(swap(1, "v1", 5))
    board.swap(swap(2, "v1", 8))  # the same again: nobody can tell its tokens from the first one's
    board.swap(swap(3, "v0", 9, arm="sham"))
    board.count("e1", second(6, 1, seen=[["a", "v1", round(105.2 * S)], ["a", "v0", round(109.5 * S)]]))
    board.count("e0", second(6, 1, seen=[["a", "v1", round(105.05 * S)]]))
    assert [s["effect_ms"] for s in board.shown_swaps()] == [None, None, 50.0]


def test_a_token_seen_before_the_swap_is_no_effect_of_it(board: Board) -> None:
    board.swap(swap(1, "v1", 5))
    board.count("e0", second(6, 1, seen=[["a", "v1", 104 * S]]))
    assert board.shown_swaps()[0]["effect_ms"] is None


def test_counts_add_up_over_engines(board: Board) -> None:
    board.count("e0", second(1, 5, sent=4, counts={"ok": 3, "torn": 1}))
    board.count("e1", second(1, 5, sent=2, counts={"ok": 1, "torn": 2, "cut": 1}))
    board.count("e1", second(2, 9, sent=3, counts={"ok": 2, "torn": 2, "cut": 1}))  # totals, not differences
    assert board.counts() == {"ok": 5, "torn": 3, "cut": 1}
    assert board.violations() == {"torn": 3}
    assert board.total("sent") == 7


def test_an_operators_swap_has_a_name_of_its_own_and_a_refused_bad_one_is_as_wanted(board: Board) -> None:
    board.swap(swap(1, "v1", 1, by="operator"))
    board.swap(swap(2, "bad:missing", 2, "fail", arm="bad"))
    assert board.odd_swaps() == 0
    board.swap(swap(3, "v1", 3, "info", ack_ms=None))
    assert board.odd_swaps() == 1
    assert [s["arm"] for s in board.shown_swaps()] == ["real", "bad", "operator"]


def test_phases_are_marked_where_they_begin_and_end(board: Board, clock: Clock) -> None:
    board.edge({"edge": "start", "index": 0, "arm": "aa", "adapter": ""})
    clock.now = 104 * S
    board.edge({"edge": "end", "index": 0, "arm": "aa", "adapter": ""})
    board.edge({"edge": "start", "index": 1, "arm": "real", "adapter": "a"})
    document = board.document(-1, 0)
    assert document["phases"] == [
        {"arm": "aa", "adapter": "", "start": 0.0, "end": 4.0},
        {"arm": "real", "adapter": "a", "start": 4.0, "end": None},
    ]
    assert document["phase"] == "2/3 real on a"


def test_no_time_passes_on_the_page_after_the_run(board: Board, clock: Clock) -> None:
    clock.now = 130 * S
    board.close()
    clock.now = 900 * S
    assert (board.document(-1, 0)["now"], board.state) == (30.0, "judging")


HOSTILE = '\x1b[31m"\\</script>\u202e\n'


def hostile() -> Board:
    board = Board("run-1", HOSTILE, 1, {HOSTILE: [HOSTILE]})
    board.count("e0", second(1, 10, counts={"ok": 1, HOSTILE: 2}, itl=[[3, 4]]))
    board.swap(swap(1, HOSTILE, 1, adapter=HOSTILE, reason=HOSTILE, arm=HOSTILE))
    board.edge({"edge": "start", "index": 0, "arm": HOSTILE, "adapter": HOSTILE})
    board.tick()
    return board


def test_no_control_character_of_a_server_leaves_in_the_document() -> None:
    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [t for k, v in value.items() for t in (k, *texts(v))]
        if isinstance(value, list):
            return [t for v in value for t in texts(v)]
        return [value] if isinstance(value, str) else []

    document = hostile().document(-1, 0)
    assert all(t.isprintable() for t in texts(document))
    json.dumps(document, allow_nan=False)


def families(board: Board | None) -> dict[str, Any]:
    return {f.name: f for f in text_string_to_metric_families(exposition.render(board, "0.1"))}


def test_a_parser_of_prometheus_reads_every_figure(board: Board, clock: Clock) -> None:
    more = {"counts": {"ok": 3, "cut": 1, "torn": 2, "judged": 3}, "sent": 5, "open": 1, "lag_ms": 2.5, "cpu": 0.25}
    board.count("e0", second(1, 50, itl=[[bin_of(4.0), 9]], **more))
    board.swap(swap(1, "v1", 1, ack_ms=120.0))
    board.tick()
    board.state, board.verdict = "ended", {"status": "FAIL", "headline": ""}
    found = families(board)

    def value(name: str, **labels: str) -> float:
        return next(
            s.value for f in found.values() for s in f.samples if s.name == name and labels.items() <= s.labels.items()
        )

    assert value("loadtest_streams_ended_total", reason="cut") == 1
    assert value("loadtest_violations_total", kind="torn") == 2
    assert value("loadtest_tokens_total") == 50
    assert value("loadtest_loop_lag_seconds", engine="e0") == 0.0025
    assert value("loadtest_swap_ack_seconds_bucket", le="0.1") == 0
    assert value("loadtest_swap_ack_seconds_bucket", le="0.25") == value("loadtest_swap_ack_seconds_count") == 1
    assert value("loadtest_verdict", status="FAIL") == 1
    assert value("loadtest_run_state", state="ended", run="run-1") == 1
    assert value("loadtest_itl_seconds", quantile="0.99") == pytest.approx(0.004, rel=0.06)
    assert {f.type for f in found.values()} == {"gauge", "counter", "histogram"}
    assert all(f.documentation for f in found.values())


def test_labels_of_a_hostile_server_stay_inside_their_quotes() -> None:
    found = families(hostile())
    reasons = {s.labels["reason"] for s in found["loadtest_streams_ended"].samples}
    assert reasons == {"ok", HOSTILE}


def test_before_the_first_run_there_is_a_version() -> None:
    assert list(families(None)) == ["loadtest_info"]
