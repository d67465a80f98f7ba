"""The verdict's own decisions at their limits, and the document figure by figure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from minihistory import history, ns

from loadtest.analysis.export import plain
from loadtest.analysis.verdict import Require, judge, to_json
from loadtest.calibration import Calibration
from loadtest.history import History
from loadtest.records import Event, ReplicaAck
from loadtest.report.text import client_line

LOADS = "load a v0 0 1 ok\nload b v0 0 1 ok\n"


def document(text: str | History, **require: Any) -> dict[str, Any]:
    return to_json(judge(history(LOADS + text) if isinstance(text, str) else text, Require(**require)))


def steps(start: float, count: int, gap: float, word: str) -> str:
    return " ".join(f"{word}@{start + i * gap}" for i in range(1, count + 1))


def around_a_swap(after: float) -> str:
    """Eight streams of gaps of 2 ms before the swap [1000, 1010], eight of `after` ms behind it, one at a time."""
    lines = ["load a v1 1000 1010 ok"]
    for start, gap, word in ((10, 2.0, "v0"), (1100, after, "v1")):
        lines += [f"stream a {start + 20 * gap * i}: {steps(start + 20 * gap * i, 10, gap, word)}" for i in range(8)]
    return "\n".join(lines)


@pytest.mark.parametrize(("limit", "status"), [(1.5, "PASS"), (1.499, "FAIL"), (1.501, "PASS")])
def test_a_hangover_on_its_budget_is_within(limit: float, status: str) -> None:
    """Every gap is 2 ms before and 3 ms after: ratio and interval are 1.5."""
    d = document(around_a_swap(3.0), hangover=limit)
    assert (d["hangover"]["interval"], d["budgets"]["hangover"]["status"]) == ([1.5, 1.5], status)
    steady = d["guarantees"]["steady"]
    assert (steady["status"], steady["exposed"], steady["violations"]) == (status, 1, int(status == "FAIL"))
    assert (steady["kinds"], steady["unit"]) == ({"hangover": 1} if status == "FAIL" else {}, "runs")


def test_without_a_budget_a_fifth_more_is_steady() -> None:
    for after, status in ((2.3, "PASS"), (2.5, "FAIL")):
        d = document(around_a_swap(after))
        assert (d["guarantees"]["steady"]["status"], d["guarantees"]["steady"]["required"]) == (status, False)


ACKS = "".join(f"load a v{i} {1000 * i} {1000 * i + 40} ok\n" for i in range(1, 11))


@pytest.mark.parametrize(
    ("lag", "limit", "status"), [(15, 25, "UNKNOWN"), (15, 24.9, "FAIL"), (10, 39, "FAIL"), (1, 40, "PASS")]
)
def test_a_late_clients_own_delay_is_taken_off_an_ack(lag: float, limit: float, status: str) -> None:
    """Acks of 40 ms. A client that is up to 10 ms late is not late."""
    d = document(ACKS + f"health 0 99999 {lag}", swap_ack_p99_ms=limit)
    budget = d["budgets"]["swap_ack_p99"]
    assert (budget["status"], budget["value"], budget["limit"]) == (status, 40.0, limit)
    assert ("late itself" in budget["because"]) == (status == "UNKNOWN")


def test_the_ack_budget_is_about_real_swaps_that_were_not_refused() -> None:
    more = "load a v10 20000 20900 ok sham\nload a v11 21000 21900 fail\nload a v12 22000 22041 ok\n"
    budget = document(ACKS + more, swap_ack_p99_ms=41)["budgets"]["swap_ack_p99"]
    assert (budget["value"], budget["status"], budget["because"]) == (
        41.0,
        "PASS",
        "p99 of 11 real swaps: 41.0 ms, budget 41 ms",
    )
    assert document(ACKS + "load a v11 21000 - info", swap_ack_p99_ms=41)["budgets"]["swap_ack_p99"]["status"] == "FAIL"


def test_gates_of_a_required_number_of_swaps_turn_at_it() -> None:
    text = ACKS + "".join(f"stream a {1000 * i - 10}: v{i - 1}*5 v{i - 1}@{1000 * i + 20}\n" for i in range(1, 11))
    text += "".join(f"stream b {1000 * i - 10}: v0@{1000 * i + 20}\n" for i in range(1, 11))
    assert document(text, min_swaps=10)["status"] == "PASS"
    assert document(text, min_swaps=11)["status"] == "UNKNOWN"


# The document


def test_every_time_is_milliseconds_to_a_microsecond() -> None:
    """300.1234567 ms are 300.123, and what is less is cut by rounding, not by luck."""
    h = history(LOADS + "load a v1 100.1234567 150.9876543 ok\nstream a 90: v0@95\nstream a 160: v0@300.1236567")
    answers = (ReplicaAck(2, 0, "ok", ns(120.1236567), 200), ReplicaAck(2, 1, "fail", ns(130.1234567), 500, "x", "y"))
    h = replace(h, ops=(*h.ops[:2], replace(h.ops[2], answers=answers)))
    d = document(h)
    row = d["swaps"]["list"][0]
    assert (row["invoked_ms"], row["acked_ms"]) == (100.123, 150.988)
    assert [a["acked_ms"] for a in row["replicas"]] == [120.124, 130.123]
    assert [(a["replica"], a["outcome"], a["status"]) for a in row["replicas"]] == [(0, "ok", 200), (1, "fail", 500)]
    w = d["guarantees"]["fresh"]["witnesses"][0]
    assert (w["at_ms"], w["at_ns"]) == (300.124, ns(300.1236567))
    assert next(g for g in d["gates"] if g["name"] == "replicas_agree")["status"] == "failed"


def test_a_document_of_nothing_measured_holds_no_number_that_was_not() -> None:
    d = document(replace(history(LOADS), health=()))
    client = d["client"]
    assert client["loop_lag_ms"] == client["stamp_error_ms"] | {"max": None} == {"p50": None, "p99": None, "max": None}
    assert (client["cpu"], client["cpu_us_per_token"], client["open_streams"], client["dropped"]) == (None, None, 0, 0)
    assert (d["tokens"]["total"], d["tokens"]["share"], d["tokens"]["method"]) == (0, None, {})
    assert d["streams"] == {"attempted": 0, "ok": 0, "fail": 0, "info": 0, "by_reason": {}}
    assert d["swaps"] == {"ok": 0, "fail": 0, "info": 0, "by_arm": {}, "list": []}


def test_the_clients_figures_by_hand() -> None:
    h = history(
        LOADS + "health 0 1000 2\nhealth 1000 3000 8 1\nstream a 5: v0*3\nstream b 6: v0 x\nstream b 7: | cancelled"
    )
    late = h.streams.sent - np.array([0, 4_000_000, 6_000_000])
    health = tuple(
        replace(x, open_streams=n, lag_max_ms=m) for x, n, m in zip(h.health, (3, 2), (9.0, 4.0), strict=True)
    )
    again = (Event(5, "resent", "x"), Event(6, "resent", "x"), Event(7, "restart", ""))
    d = document(replace(h, health=health, streams=replace(h.streams, intended=late), events=again))
    client = d["client"]
    assert client["resent"] == 2
    assert ", 2 requests sent again" in client_line(d)
    assert "sent again" not in client_line({"client": client | {"resent": 0}})
    assert client["loop_lag_ms"] == {"p50": 2.0, "p99": 8.0, "max": 9.0}
    assert client["schedule_delay_ms"] == {"p50": 4.0, "p99": 6.0}
    assert (client["open_streams"], client["dropped"]) == (3, 1)
    assert client["cpu"] == pytest.approx(0.2 / 3, rel=1e-5)  # 0.1 s in each of two intervals, three seconds in all
    assert client["cpu_us_per_token"] == pytest.approx(0.2e6 / 5)
    assert (d["tokens"]["total"], d["tokens"]["attributed"], d["tokens"]["share"]) == (5, 3, 0.6)
    assert (d["tokens"]["streams_attributed"], d["tokens"]["unexplained"]) == (1, {"a": 0, "b": 1})
    assert d["streams"]["by_reason"] == {"cancelled": 1}


def test_streams_are_counted_by_outcome_and_by_replica() -> None:
    h = history(
        LOADS + "stream a 5: v0\nstream a 6: v0 | cut\nstream a 7: v0 | replica=1\nstream a 8: | stalled replica=1"
    )
    fleet = replace(h, runs=(replace(h.runs[0], replicas=("http://one", "http://two")),))
    s = document(fleet)["streams"]
    assert (s["attempted"], s["ok"], s["fail"], s["info"]) == (4, 2, 1, 1)
    assert s["by_replica"] == [
        {"url": "http://one", "attempted": 2, "ok": 1, "fail": 1, "info": 0},
        {"url": "http://two", "attempted": 2, "ok": 1, "fail": 0, "info": 1},
    ]


def test_streams_of_a_replica_that_the_run_does_not_name_are_counted_as_such() -> None:
    h = history(LOADS + "".join(f"stream a {9 + i}: v0 | replica={n}\n" for i, n in enumerate((0, 2, -1, 2, 1))))
    fleet = replace(h, runs=(h.runs[0], replace(h.runs[0], replicas=("http://one", "http://two"))))
    seen = [(r["url"], r["attempted"]) for r in document(fleet)["streams"]["by_replica"]]
    assert seen == [("http://one", 1), ("http://two", 1), ("unknown", 1), ("unknown", 2)]


def test_swaps_are_counted_by_outcome_and_refused_ones_have_no_latency() -> None:
    d = document("load a v1 100 110 ok\nload a v2 200 230 fail\nload a v3 300 - info\nload a bad:x 400 490 fail bad\n")
    assert {k: d["swaps"][k] for k in ("ok", "fail", "info")} == {"ok": 1, "fail": 2, "info": 1}
    assert d["swaps"]["by_arm"] == {"bad": {"ok": 0, "fail": 1, "info": 0}, "real": {"ok": 1, "fail": 1, "info": 1}}
    assert [r["outcome"] for r in d["swaps"]["list"]] == ["ok", "fail", "info", "fail"]
    assert [r["acked_ms"] for r in d["swaps"]["list"]] == [110.0, 230.0, None, 490.0]
    assert [r["ack_ms"] for r in d["swaps"]["list"]] == [10.0, 30.0, "inf", 90.0]
    by_arm = d["swap_latency_by_arm_ms"]
    assert (by_arm["real"]["ack"]["n"], by_arm["real"]["ack"]["p50"], by_arm["real"]["ack"]["p99"]) == (2, 10.0, "inf")
    assert (by_arm["bad"]["ack"]["n"], by_arm["bad"]["ack"]["p50"]) == (1, 90.0)  # how long a refusal takes
    assert d["swap_latency_ms"] == by_arm["real"]


def test_infinities_keep_their_sign_and_numbers_six_digits() -> None:
    assert plain([np.float32(np.inf), -math.inf, 1234567.0, -0.0, np.bool_(True)]) == [
        "inf",
        "-inf",
        1234570.0,
        0.0,
        True,
    ]


def test_effects_leave_out_what_was_never_answered() -> None:
    text = "".join(
        f"load a v{i // 2} {1000 * i} {1000 * i + (30 if i % 2 else 10)} ok {'sham' if i % 2 else 'real'}\n"
        for i in range(2, 20)
    )
    d = document(text + "load a v30 90000 - info real")["effects"]["ack_ms"]
    assert (d["real"], d["sham"], d["real_minus_sham"]) == (10.0, 30.0, -20.0)
    assert d["interval"] == [-20.0, -20.0]


def test_a_stamps_error_is_the_worse_of_what_was_said_and_what_was_measured() -> None:
    h = history(LOADS + "health 0 1000 2\nhealth 1000 2000 8\nstream a 5: v0")  # of itself: 2 and 8 ms

    def error(p50: float, p99: float) -> dict[str, float]:
        found = document(replace(h, calibration=Calibration(500, 20.0, p50, p99, 99.0, 1.0, 7.0)))["client"]
        assert found["calibration"]["lag_max_ms"] == 99.0
        return dict(found["stamp_error_ms"])

    assert error(1.0, 9.0) == {"p50": 2.0, "p99": 9.0}
    assert error(3.0, 7.0) == {"p50": 3.0, "p99": 8.0}
    unsaid = document(replace(h, health=(), calibration=Calibration(500, 20.0, 3.0, 7.0, 99.0, 1.0, 7.0)))
    assert unsaid["client"]["stamp_error_ms"] == {"p50": 3.0, "p99": 7.0}
