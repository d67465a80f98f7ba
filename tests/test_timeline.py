"""Loads as intervals: who could have emitted it, was it superseded by then, what had a stream to see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from minihistory import history, ns

from loadtest.analysis.gaps import gaps
from loadtest.analysis.ledger import ledger
from loadtest.analysis.timeline import APART, NEVER, Timeline, floor, floors, in_service, lookup, timeline
from loadtest.analysis.verdict import Require, judge
from loadtest.history import FAIL, INFO, OK, History

LOADS = "load a v0 0 1 ok\nload b v0 0 1 ok\n"


def test_clocks_of_two_boots_make_everything_concurrent() -> None:
    h = history(LOADS + "engine e1 other")
    assert (timeline(h, 5).epsilon, timeline(history(LOADS), 5).epsilon) == (APART, 5)
    assert timeline(replace(history(LOADS), runs=()), 5).epsilon == 5
    assert timeline(history(LOADS)).epsilon == 0  # stamps of one machine are exact, unless somebody says otherwise


def test_loads_are_sorted_by_content_and_start_and_lost_ones_never_end() -> None:
    line = timeline(
        history("declare a v9\nload a v1 10 12 ok operator\nload a v0 20 - info\nload a v1 5 7 fail\nload b v0 1 2 ok")
    )
    assert line.contents.labels == (("a", "v0"), ("a", "v1"), ("a", "v9"), ("b", "v0"))
    assert line.content.tolist() == [0, 1, 1, 2, 3]
    assert line.start.tolist() == [ns(20), ns(5), ns(10), -NEVER, ns(1)]
    assert line.end.tolist() == [NEVER, ns(7), ns(12), -NEVER + 1, ns(2)]
    assert (line.of(1).tolist(), line.of(1, refused=True).tolist()) == ([2], [1])
    assert line.unknown_from.tolist() == [NEVER, NEVER, NEVER]
    look = lookup(line)
    assert look.rows.tolist() == [0, 2, 3, 4]
    assert look.first_start.tolist() == [ns(20), ns(10), -NEVER, ns(1)]
    assert look.first_info.tolist() == [ns(20), NEVER, NEVER, NEVER]


def test_the_newest_load_of_a_content_begun_by_a_moment() -> None:
    look = lookup(timeline(history("load a v0 0 50 ok\nload a v0 10 12 ok\nload a v1 20 22 ok\nload a v0 30 32 ok")))

    def asked(content: int, at: float) -> tuple[int, int]:
        c, t = np.array([content], np.int32), np.array([ns(at)], np.int64)
        return int(look.newest(c, t)[0]), int(look.latest(c, t)[0])

    assert [asked(0, t)[0] for t in (-1, 0, 9.999, 10, 29.999, 30, 99)] == [-1, 0, 0, 1, 1, 2, 2]
    assert [asked(1, t)[0] for t in (19.999, 20, 99)] == [-1, 3, 3]
    assert [asked(0, t)[1] for t in (-1, 0, 10, 30)] == [-NEVER, ns(50), ns(50), ns(50)]
    assert [asked(1, t)[1] for t in (19.999, 20)] == [-NEVER, ns(22)]


def test_a_stream_must_see_the_newest_load_acked_before_it_was_sent() -> None:
    """v1 is asked for first and acked last: from 20 on v2 counts, and v1's later ack does not take that back."""
    line = timeline(
        history(LOADS + "load a v1 10 40 ok\nload a v2 15 20 ok\nload a bad:x 50 51 ok bad\nload a v3 60 - info")
    )
    below = floor(line, 0)
    names = [op.version if op else "" for op in line.ops]

    def seen(at: float, epsilon: int = 0) -> tuple[int, str]:
        start, load = below.at(np.array([ns(at)]), epsilon)
        return int(start[0]), names[int(load[0])] if load[0] >= 0 else ""

    assert [seen(t)[1] for t in (1, 1.001, 20, 20.001, 40.001, 55, 99)] == ["", "v0", "v0", "v2", "v2", "v2", "v2"]
    assert (seen(1)[0], seen(21)[0]) == (-NEVER, ns(15))
    assert (seen(20.002, 2000)[1], seen(20.003, 2000)[1]) == ("v0", "v2")


def test_an_adapter_without_a_load_has_no_floor_and_no_ledger() -> None:
    h = history("stream a 5: x*3")
    below = floor(timeline(h), 0)
    assert [x.tolist() for x in below.at(h.streams.sent, 0)] == [[-NEVER], [-1]]
    case = judge(h, Require()).case
    assert len(ledger(case, gaps(case), []).ack) == 0


def since(values: np.ndarray, line: Timeline, adapter: str) -> float | None:
    """ms of an adapter's entry; None for never, -inf for always."""
    value = int(values[line.contents.adapters.index(adapter)])
    return None if value == NEVER else -np.inf if value == -NEVER else (value - ns(0)) / 1e6


ALWAYS = -np.inf


@pytest.mark.parametrize(
    ("ops", "ours"),
    [
        ("load c v0 10 20 ok", 20),
        ("load c v0 10 20 ok\nload c v1 30 40 ok", 20),
        ("load c v0 10 20 fail\nload c v1 30 40 ok", 40),
        ("load c v0 10 - info\nload c v1 30 40 ok", 40),
        ("load c v0 10 - ok\nload c v1 30 40 ok", 40),  # an ack without a time
        ("load c v0 10 20 fail", None),
        ("load c v0 10 - info", None),
        ("load c v0 10 50 ok\nload c v0 12 30 ok", 30),  # the first ack, not the first load's
        ("load c v0 10 20 fail\nunload c 30 40 ok\nload c v1 50 60 ok", 60),
        ("load c v0 10 20 ok operator", ALWAYS),  # not set up by this run: what was there before may be served
        ("load c v0 10 20 ok rollback\nload c v1 30 40 ok setup", ALWAYS),
        ("stream c 5: x", ALWAYS),
    ],
)
def test_an_adapter_is_this_runs_own_from_the_first_ack_of_its_setup_on(ops: str, ours: float | None) -> None:
    h = history(LOADS + ops)
    line = timeline(h)
    assert (since(line.ours_from, line, "c"), since(line.ours_from, line, "a")) == (ours, 1)
    two = replace(h, runs=(*h.runs, replace(h.runs[0], boot_id="other")))  # whose clocks nobody can compare
    assert since(timeline(two).ours_from, line, "c") == ALWAYS


@pytest.mark.parametrize(
    ("ops", "unknown"),
    [
        ("load a bad:x 20 30 ok bad", 20),
        ("load a bad:x 20 - info bad", 20),
        ("load a bad:x 20 30 fail bad", None),
        ("load a bad:x 20 30 ok bad\nload a bad:y 15 31 ok bad\nload a bad:z 10 11 fail bad", 15),
        ("load b bad:x 20 30 ok bad", None),
    ],
)
def test_a_load_without_markers_explains_anything_from_its_invocation_on(ops: str, unknown: float | None) -> None:
    h = history(LOADS + ops)
    line = timeline(h)
    assert since(line.unknown_from, line, "a") == unknown
    blind = timeline(replace(h, blind=True), 5)
    assert ({since(blind.unknown_from, line, a) for a in ("a", "b", "base")}, blind.epsilon) == ({ALWAYS}, APART)


@pytest.mark.parametrize(
    ("ops", "unknown"),
    [
        ("stream c 10: x", ALWAYS),  # nobody said what it serves
        ("declare c v0\nstream c 10: x", None),
        ("load c v1 10 20 ok operator\nstream c 10: x", None),
        ("load c v1 10.001 20 ok operator\nstream c 10: x", ALWAYS),
        ("load c v1 10.001 20 ok operator\nstream c 10: x\ndeclare c v0", None),
        ("load c v1 10.001 20 ok operator\nstream c 10: x\ndeclare d v0", ALWAYS),
        ("load c v1 10.001 20 ok setup\nstream c 10: x", None),  # before it anything may be served: `ours_from`
        ("unload c 5 6 ok\nload c v1 10.001 20 ok operator\nstream c 10: x", ALWAYS),
        ("load c v1 5 6 ok operator\nload c v2 30 31 ok operator\nstream c 10: x\nstream c 40: x", None),
        ("load c v1 10.001 20 ok operator\nstream c 30: x\nstream c 10: x", ALWAYS),
        ("load c v1 10.001 20 ok operator\nstream a 10: v0", None),
    ],
)
def test_traffic_before_any_load_shows_that_nobody_knows_what_was_served(ops: str, unknown: float | None) -> None:
    line = timeline(history(LOADS + ops))
    assert since(line.unknown_from, line, "c") == unknown
    assert (since(line.unknown_from, line, "base"), since(line.unknown_from, line, "a")) == (None, None)


@pytest.mark.parametrize(
    ("ops", "loads"),
    [
        ("declare a v9", []),  # this run set the adapter up: what it did not load is not there
        ("declare c v9", [(-NEVER, OK)]),
        ("declare c v9\nload c v8 10 20 ok operator", [(-NEVER, OK)]),
        ("declare c v9\nload c v8 10 20 ok setup", []),
        ("declare c v9\nload c v9 10 20 fail operator", [(ns(10), FAIL)]),
        ("declare c v9\nload d v9 10 20 ok operator", [(-NEVER, OK)]),
        ("declare base v9\ndeclare a v9", []),
    ],
)
def test_a_declared_version_that_nobody_loaded_was_there_before(ops: str, loads: list[tuple[int, int]]) -> None:
    line = timeline(history(LOADS + ops))
    code = {label: i for i, label in enumerate(line.contents.labels)}
    assert ("base", "v9") not in code
    mine = line.content == code.get(("c", "v9"), code.get(("a", "v9"), -1))
    assert list(zip(line.start[mine].tolist(), line.outcome[mine].tolist(), strict=True)) == loads


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ("20 30 fail bad of=v0", 1),
        ("20 30 ok bad of=v0", 0),
        ("20 - info bad of=v0", 0),
        ("20 - fail bad of=v0", 0),  # when it was refused is not on record
        ("20 30 fail bad of=v7", 0),  # a version that nobody declared
        ("20 30 fail bad", 0),
    ],
)
def test_a_refused_bad_load_is_a_refused_load_of_the_version_inside_it(how: str, refused: int) -> None:
    line = timeline(history(f"{LOADS}load a bad:x {how}"))
    assert len(line.of(line.contents.labels.index(("a", "v0")), refused=True)) == refused
    assert len(line.of(line.contents.labels.index(("a", "v0")))) == 1
    assert len(line.of(line.contents.labels.index(("b", "v0")), refused=True)) == 0


def test_an_answer_without_a_time_and_one_that_could_not_be_read_never_end() -> None:
    line = timeline(history("load a v0 0 1 ok\nload a v1 10 - ok\nload a v2 20 - fail\nload a v3 30 31 info"))
    assert line.end.tolist() == [ns(1), NEVER, NEVER, NEVER]
    assert line.outcome.tolist() == [OK, INFO, INFO, INFO]


FLOORED = LOADS + "load a v1 10 20 ok\nload a v2 30 40 ok\nload a v3 50 60 fail\nload a v4 70 - info\n"


def test_each_stream_has_the_floor_of_its_own_adapter() -> None:
    line = timeline(history(FLOORED))
    a, b, base = (line.contents.adapters.index(n) for n in ("a", "b", "base"))
    times = (1, 1.001, 20, 20.001, 40, 40.001, 99)
    sent = np.array([ns(t) for t in times], np.int64)

    def seen(adapter: int) -> list[str]:
        start, load = floors(line, np.full(len(sent), adapter, np.int32), sent)
        assert start.tolist() == [int(line.start[i]) if i >= 0 else -NEVER for i in load.tolist()]
        return [getattr(line.ops[i], "version", "") if i >= 0 else "" for i in load.tolist()]

    assert seen(a) == ["", "v0", "v0", "v1", "v1", "v2", "v2"]
    assert seen(b) == ["", *["v0"] * 6]
    assert seen(base) == [""] * 7
    mixed, _ = floors(line, np.array([a, b, base, a], np.int32), np.array([ns(30)] * 4, np.int64))
    assert mixed.tolist() == [ns(10), ns(0), -NEVER, ns(10)]


@pytest.mark.parametrize(
    ("label", "read", "sent", "epsilon", "served"),
    [
        ("v0", -1, -1, 0, False),  # not asked for yet, and nothing else either
        ("v1", 10, 5, 0, True),  # read as it was asked for
        ("v1", 9.999, 5, 0, False),
        ("v1", 9, 5, 1, True),
        ("v1", 8.999, 5, 1, False),
        ("v0", 99, 20, 0, True),  # sent as v1 was acked
        ("v0", 99, 20.001, 0, False),
        ("v0", 99, 21, 1, True),
        ("v0", 99, 21.001, 1, False),
        ("v1", 99, 40, 0, True),
        ("v1", 99, 40.001, 0, False),
        ("v3", 99, 99, 0, False),  # refused
        ("v4", 99, 99, 0, True),  # may come at any time
        ("v4", 69.999, 99, 0, False),
    ],
)
def test_a_content_is_in_service_from_its_invocation_until_a_newer_ones_ack(
    label: str, read: float, sent: float, epsilon: int, served: bool
) -> None:
    look = lookup(timeline(history(FLOORED), epsilon * 10**6))
    code = look.line.contents.labels.index(("a", label))
    at, since_then = np.array([ns(read)], np.int64), np.array([ns(sent)], np.int64)
    assert in_service(look, np.array([code], np.int32), at, since_then).tolist() == [served]


@pytest.mark.parametrize(("start", "served"), [(1, True), (1.001, False), (0.5, True)])
def test_a_load_asked_for_as_another_is_acked_is_concurrent_with_it(start: float, served: bool) -> None:
    look = lookup(timeline(history(f"load a v0 0 1 ok\nload a v1 {start} 9 ok")))
    late = np.array([ns(50)], np.int64)
    assert in_service(look, np.array([0], np.int32), late, late).tolist() == [served]


def test_a_newer_load_that_never_ended_leaves_older_ones_candidates_for_ever() -> None:
    h: History = history("load a v0 0 1 ok\nload a v0 10 - info\nload a v1 20 30 ok\nload a v0 40 41 ok")
    look = lookup(timeline(h))
    asked = look.latest(np.zeros(3, np.int32), np.array([ns(5), ns(15), ns(50)], np.int64))
    assert asked.tolist() == [ns(1), NEVER, NEVER]
    assert look.first_info.tolist() == [ns(10), NEVER]
    assert look.first_start.tolist() == [ns(0), ns(20)]
