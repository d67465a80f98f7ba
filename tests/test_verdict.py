"""The verdict: order of statuses, levels, gates, budgets, the document, and golden histories with pinned verdicts."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minihistory import history

from loadtest import records
from loadtest.analysis.export import plain
from loadtest.analysis.guarantees import GUARANTEES, LEVELS
from loadtest.analysis.verdict import Require, combine, judge, to_json
from loadtest.errors import EXIT_FAIL, EXIT_PASS, EXIT_UNKNOWN
from loadtest.history import History

GOLDEN = Path(__file__).parent / "golden"


def text_of(name: str) -> str:
    return (GOLDEN / f"{name}.txt").read_text()


def document(text: str, **require: Any) -> dict[str, Any]:
    return to_json(judge(history(text), Require(**require)))


def failed_gates(d: dict[str, Any]) -> set[str]:
    return {g["name"] for g in d["gates"] if g["status"] != "ok"}


def test_fail_beats_unknown_beats_pass() -> None:
    order = ["PASS", "UNKNOWN", "FAIL"]
    for found in itertools.product(order, repeat=3):
        assert combine(found) == max(found, key=order.index)  # type: ignore[arg-type]
    assert combine([]) == "UNKNOWN"


PINNED: dict[str, dict[str, Any]] = {
    "pass": {
        "status": "PASS",
        "exit_code": EXIT_PASS,
        "level_held": "stream-atomic",
        "level_broken": None,
        "violations": dict.fromkeys(GUARANTEES, 0),
        "gates": set(),
    },
    "fail": {
        "status": "FAIL",
        "exit_code": EXIT_FAIL,
        "level_held": "token-atomic",
        "level_broken": "stream-regular",
        "violations": {**dict.fromkeys(GUARANTEES, 0), "untorn": 11},
        "gates": set(),
    },
    "unknown": {
        "status": "UNKNOWN",
        "exit_code": EXIT_UNKNOWN,
        "level_held": "stream-atomic",
        "level_broken": None,
        "violations": dict.fromkeys(GUARANTEES, 0),
        "gates": {"exposed_swaps", "overlap"},
    },
}


@pytest.mark.parametrize("name", PINNED)
def test_golden_histories_keep_their_verdicts(name: str) -> None:
    d = document(text_of(name))
    seen = {k: d[k] for k in ("status", "exit_code", "level_held", "level_broken")}
    seen["violations"] = {g: d["guarantees"][g]["violations"] for g in GUARANTEES}
    seen["gates"] = failed_gates(d)
    assert seen == PINNED[name]


def test_the_golden_fail_shows_its_evidence() -> None:
    w = document(text_of("fail"))["guarantees"]["untorn"]["witnesses"][0]
    assert w["text"] == (
        "stream e0-0 of a: token 1 is v0, token 2 is v1 (swap e0-2, invoked 20.0 ms before, acked 20.0 ms after): "
        "torn at 1..2"
    )
    assert (w["tokens"], w["versions"], w["swap"], w["at_ms"]) == ([1, 2], ["v0", "v1"], "e0-2", 1020.0)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_required_by_its_own_guarantees_only(level: str) -> None:
    d = document(text_of("fail"), level=level)
    assert d["status"] == ("FAIL" if "untorn" in LEVELS[level] else "PASS")
    needed = {n for n, g in d["guarantees"].items() if g["required"]}
    assert needed == {*LEVELS[level], "durable", "isolated"}


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="level 'strict' is none of safe, token-regular"):
        judge(history(text_of("pass")), Require(level="strict"))


def test_levels_say_what_held_and_what_broke() -> None:
    stale = document(text_of("pass") + "stream a 5500: v1*3\n")
    assert (stale["level_held"], stale["level_broken"]) == ("safe", "token-regular")
    flip = document(text_of("pass") + "stream a 4900: v4@4920 v5@5020 v4@5030\n")
    assert (flip["level_held"], flip["level_broken"]) == ("token-regular", "token-atomic")
    cut = document(text_of("pass") + "stream a 4900: v4@4920 | cut\n")
    assert (cut["level_held"], cut["level_broken"]) == (None, "safe")


def changed(h: History, **fields: Any) -> History:
    return replace(h, **fields)


@pytest.mark.parametrize(("slow", "failed"), [(9, set()), (11, {"client_lag"})])
def test_the_clients_lag_is_that_of_all_its_samples(slow: int, failed: set[str]) -> None:
    """A second has a hundred samples: by their p99 one hiccup in each would make any client late."""
    h = history(text_of("pass"))
    lags = [(50_000, *[500] * 99)] * slow + [(500,) * 100] * (10 - slow) + [(50_000,)] * (slow - 9)
    health = [replace(h.health[0], lag_p99_ms=50.0, lags_us=x) for x in lags]
    found = to_json(judge(changed(h, health=tuple(health)), Require()))
    assert failed_gates(found) == failed
    assert found["client"]["loop_lag_ms"]["p99"] == (50.0 if failed else 0.5)
    assert found["client"]["stamp_error_ms"]["p99"] == (50.0 if failed else 0.5)


GATES = {
    "client_lag": lambda h: changed(h, health=tuple(replace(x, lag_p99_ms=11.0) for x in h.health)),
    "client_lag, not recorded": lambda h: changed(h, health=()),
    "dropped": lambda h: changed(h, health=tuple(replace(x, dropped=1) for x in h.health)),
    "clock": lambda h: changed(h, runs=(*h.runs, replace(h.runs[0], boot_id="other")), ends=h.ends * 2),
    "closed": lambda h: changed(h, ends=()),
    "closed, interrupted": lambda h: changed(h, ends=(records.End(1, "interrupted"),)),
    "closed, one file of two": lambda h: changed(h, runs=h.runs * 2),
    "target_alive": lambda h: changed(h, events=(records.Event(5, "target_died", "gone"),)),
    "readable": lambda h: changed(h, problems=("history-e0.jsonl:9: torn last line ignored",)),
}


@pytest.mark.parametrize("name", GATES)
def test_a_failed_gate_turns_pass_into_unknown_and_leaves_fail(name: str) -> None:
    for golden, status in (("pass", "UNKNOWN"), ("fail", "FAIL")):
        d = to_json(judge(GATES[name](history(text_of(golden))), Require()))
        assert (d["status"], failed_gates(d)) == (status, {name.split(",")[0]})


GATES_BY_TRAFFIC = {
    "stalled": "stream a 5500: v5*3 | stalled\n",
    "bystanders": "load c v0 1 2 ok setup\n",
    "setup": "load c v0 1 - info setup\nstream c 4990: v0@5020\n",
    "bad_refused": "load a bad:corrupt 12500 12510 ok bad\n",
    "noise": "stream b 5500: " + "v0*3 x*3 " * 5 + "\n",
    "attributable": "".join(f"stream a {i}999: x*50 | text\n" for i in range(11) for _ in range(3)),
}


@pytest.mark.parametrize("name", GATES_BY_TRAFFIC)
def test_gates_on_what_the_run_covered(name: str) -> None:
    d = document(text_of("pass") + GATES_BY_TRAFFIC[name])
    assert (d["status"], failed_gates(d)) == ("UNKNOWN", {name})


def test_a_bystander_that_streams_only_between_swaps_is_idle() -> None:
    d = document(text_of("pass") + "load c v0 1 2 ok setup\nstream c 500: v0*3\n")
    assert failed_gates(d) == {"bystanders"}
    assert next(g for g in d["gates"] if g["name"] == "bystanders")["because"].endswith("during a swap: c")


def test_limits_are_kept_by_what_lies_on_them() -> None:
    on_it = to_json(judge(late(history(text_of("pass")), 10.0), Require()))
    assert on_it["status"] == "PASS"
    h = history(text_of("pass"))
    both = changed(h, runs=h.runs * 2, ends=(records.End(1, "complete"), records.End(2, "run_time")))
    assert judge(both, Require()).status == "PASS"


def test_without_a_swap_the_clients_lag_is_that_of_the_whole_run() -> None:
    quiet = "load a v0 0 1 ok\nhealth 500 900 50\nstream a 5: v0*3"
    (lag,) = (g for g in document(quiet)["gates"] if g["name"] == "client_lag")
    assert (lag["status"], lag["value"]) == ("failed", 50.0)


def test_a_run_without_swaps_proves_nothing_but_can_fail() -> None:
    quiet = "load a v0 0 1 ok\nphase aa 0 100\n" + "\n".join(f"stream a {t}: v0*3" for t in range(5, 50, 5))
    d = document(quiet)
    assert (d["status"], d["level_held"]) == ("UNKNOWN", "safe")
    assert {"exposed_swaps", "overlap", "attributable"} <= failed_gates(d)
    assert document(quiet + "\nstream a 60: v0 | cut")["status"] == "FAIL"
    assert alarms(d, "aa", "complete") == (0, 9)


def test_a_history_of_nothing_is_unknown() -> None:
    for text in ("", "noend", "load a v0 0 1 ok"):
        d = document(text)
        assert (d["status"], d["level_held"], d["streams"]["attempted"]) == ("UNKNOWN", None, 0)
        json.dumps(d, allow_nan=False)


def test_the_ack_budget_is_about_the_swaps_that_were_made() -> None:
    d = document(text_of("pass"), swap_ack_p99_ms=40)
    assert d["budgets"]["swap_ack_p99"]["status"] == d["status"] == "PASS"
    assert d["budgets"]["swap_ack_p99"]["interval"][1] == "inf"
    d = document(text_of("pass"), swap_ack_p99_ms=39.9)
    assert (d["budgets"]["swap_ack_p99"]["status"], d["status"]) == ("FAIL", "FAIL")
    timed_out = text_of("pass") + "load a v12 12000 - info\n"
    assert document(timed_out, swap_ack_p99_ms=1000)["budgets"]["swap_ack_p99"]["value"] == "inf"
    refused = text_of("pass") + "load a v12 12000 12900 fail bad\n"
    assert document(refused, swap_ack_p99_ms=40)["budgets"]["swap_ack_p99"]["status"] == "PASS"
    assert document("load a v0 0 1 ok", swap_ack_p99_ms=40)["budgets"]["swap_ack_p99"]["status"] == "UNKNOWN"


def around(after: float) -> str:
    """The golden run between two stretches of 8 streams of 10 tokens, 2 ms apart before and `after` ms apart after."""
    stretches = []
    for start, gap, version in ((3, 2.0, "v0"), (12100, after, "v11")):
        for i in range(8):
            at = start + i * 20 * gap
            steps = " ".join(f"{version}@{at + (k + 1) * gap}" for k in range(10))
            stretches.append(f"stream a {at}: {steps}")
    return text_of("pass") + "\n".join(stretches)


def steady(after: float, **require: Any) -> dict[str, Any]:
    return document(around(after), **require)


def test_steady_passes_fails_and_is_required_only_with_a_budget() -> None:
    for after, status in ((2.0, "PASS"), (2.3, "PASS"), (6.0, "FAIL")):
        d = steady(after, hangover=1.2)
        assert (d["guarantees"]["steady"]["status"], d["budgets"]["hangover"]["status"]) == (status, status)
        assert d["status"] == status
        free = steady(after)
        assert (free["guarantees"]["steady"]["status"], free["status"], free["budgets"]) == (status, "PASS", {})
        assert not free["guarantees"]["steady"]["required"]
    assert steady(6.0)["hangover"]["ratio"] == 3.0
    missing = document(text_of("pass"), hangover=1.2)
    assert (missing["guarantees"]["steady"]["status"], missing["status"]) == ("UNKNOWN", "UNKNOWN")


def test_the_document_adds_up() -> None:
    more = "stream a 5500: v5*3 | stalled\nstream a 5501: v5 | cut max=4\nstream b 5502: | rejected\n"
    d = document(text_of("pass") + more + "load a v12 12000 12010 fail bad\nload a v11 12100 12110 ok sham\n")
    s = d["streams"]
    assert s["attempted"] == s["ok"] + s["fail"] + s["info"] == sum(g["streams"] for g in d["arms"])
    assert s["attempted"] == sum(g["streams"] for g in d["adapters"])
    assert s["by_reason"] == {"cut": 1, "rejected": 1, "stalled": 1}
    assert sum(s["by_reason"].values()) == s["fail"] + s["info"]
    w = d["swaps"]
    assert (w["ok"], w["fail"], w["info"], len(w["list"])) == (12, 1, 0, 13)
    assert w["by_arm"]["real"] == {"ok": 11, "fail": 0, "info": 0}
    assert w["by_arm"]["bad"] == {"ok": 0, "fail": 1, "info": 0}
    assert d["swap_latency_ms"]["ack"]["n"] == 11
    assert d["swap_latency_by_arm_ms"]["sham"]["ack"]["n"] == 1
    assert d["tokens"]["attributed"] == d["tokens"]["total"]


def test_the_ledger_says_what_each_swap_did() -> None:
    row = document(text_of("fail"))["swaps"]["list"][2]
    assert (row["op"], row["version"], row["arm"], row["outcome"]) == ("e0-4", "v3", "real", "ok")
    assert (row["invoked_ms"], row["acked_ms"], row["ack_ms"], row["effect_ms"]) == (3000.0, 3040.0, 40.0, 20.0)
    assert (row["exposed"], row["across"], row["violations"]["untorn"]) == (1, 1, 1)


def test_designs_keys_are_there() -> None:
    d = document(text_of("pass"))
    assert {
        *("status", "required_level", "level_held", "level_broken", "exit_code", "guarantees", "streams", "swaps"),
        *("swap_latency_ms", "hangover", "gates", "client"),
    } <= d.keys()
    assert tuple(d["guarantees"]) == GUARANTEES
    for g in d["guarantees"].values():
        assert {"status", "violations", "exposed", "interval", "because", "witnesses", "kinds", "required"} <= g.keys()
    for figure in ("ack", "effect", "drain", "stall"):
        assert {"p50", "p90", "p99", "n"} <= d["swap_latency_ms"][figure].keys()
    assert {"loop_lag_ms", "cpu", "schedule_delay_ms"} <= d["client"].keys()


def test_the_document_is_json_without_nan_and_deterministic() -> None:
    for name in PINNED:
        first, second = document(text_of(name)), document(text_of(name))
        assert json.loads(json.dumps(first, allow_nan=False)) == second


def test_what_json_has_no_word_for() -> None:
    values = {"a": float("nan"), "b": (float("inf"), -float("inf")), "c": np.float64(1 / 3), "d": np.int64(7), 3: True}
    assert plain(values) == {"a": None, "b": ["inf", "-inf"], "c": 0.333333, "d": 7, "3": True}


def alarms(d: dict[str, Any], arm: str, name: str) -> tuple[int, int]:
    found = d["false_alarms"][arm][name]
    assert d["guarantees"][name]["false_alarms"][arm] == found
    return found["violations"], found["streams"]


ARMS = """load a v0 0 1 ok
phase aa 0 100
phase sham 100 200 a
load a v0 110 111 ok sham
stream a 10: v0*3
stream a 95: v0*9
stream a 120: v0*3
stream a 130: v0 | cut
"""


def test_false_alarms_are_counted_in_arms_without_a_new_content() -> None:
    d = document(ARMS)
    assert alarms(d, "aa", "complete") == (0, 1)  # the stream of 95 ended in the next phase
    assert alarms(d, "sham", "complete") == (1, 2)
    assert d["guarantees"]["complete"]["because"] == (
        "1 of 4 streams violate it (1 cut); where nothing changed: aa 0 of 1, sham 1 of 2"
    )
    assert d["false_alarms"]["aa"]["complete"]["interval"] == [0.0, 0.975]
    assert "durable" not in d["false_alarms"]["aa"]


def test_what_a_real_swap_may_have_caused_is_no_false_alarm() -> None:
    d = document(ARMS + "phase real 200 300 a\nload a v1 210 211 ok\nphase aa 300 400\nstream a 310: v0*3")
    assert alarms(d, "aa", "fresh") == (0, 1)
    assert d["guarantees"]["fresh"]["violations"] == 1


def test_effects_are_real_minus_sham() -> None:
    lines, current = ["load a v0 0 1 ok"], "v0"
    for i in range(20):  # sham, real, sham, real ...; five of the real ones tear their stream, and two of the sham ones
        at, real = 100 * (i + 1), i % 2 == 1
        current = f"v{i}" if real else current
        lines.append(f"load a {current} {at} {at + (30 if real else 10)} ok {'real' if real else 'sham'}")
        lines.append(f"stream a {at + 1}: {current}*4 {'v98' if i % 4 == 1 or i % 10 == 0 else current}")
    d = document("\n".join(lines))["effects"]
    assert (d["ack_ms"]["real"], d["ack_ms"]["sham"], d["ack_ms"]["real_minus_sham"]) == (30.0, 10.0, 20.0)
    assert d["ack_ms"]["p"] is None
    torn = d["untorn"]
    assert (torn["real"], torn["sham"], torn["real_minus_sham"]) == (0.5, 0.2, 0.3)
    assert torn["interval"][0] < 0.3 < torn["interval"][1]
    quiet = document(text_of("pass"))["effects"]["untorn"]
    assert (quiet["real"], quiet["sham"], quiet["real_minus_sham"]) == (0.0, None, None)


def late(h: History, ms: float = 50.0) -> History:
    return changed(h, health=tuple(replace(x, lag_p99_ms=ms) for x in h.health))


def test_a_late_client_accuses_nobody_of_latency() -> None:
    def judged(text: str, **require: Any) -> dict[str, Any]:
        return to_json(judge(late(history(text)), Require(**require)))

    d = judged(around(6.0), hangover=1.2)
    assert (d["hangover"]["ratio"], d["hangover"]["because"]) == (3.0, "the client was 50.0 ms late itself")
    assert (d["guarantees"]["steady"]["status"], d["status"]) == ("UNKNOWN", "UNKNOWN")
    assert judged(text_of("pass"), swap_ack_p99_ms=39.9)["budgets"]["swap_ack_p99"]["status"] == "UNKNOWN"
    assert judged(text_of("pass"), swap_ack_p99_ms=40)["budgets"]["swap_ack_p99"]["status"] == "PASS"
    slower = text_of("pass").replace("load a v7 7000 7040", "load a v7 7000 7140")
    assert judged(slower, swap_ack_p99_ms=60)["budgets"]["swap_ack_p99"]["status"] == "FAIL"
    assert judged(text_of("fail"))["status"] == "FAIL"


@pytest.mark.parametrize(("lag", "start", "end", "failed"), [
    (999.9, 7000, 7100, set()), (1000.0, 7000, 7100, {"client_lag"}), (5000.0, 50000, 51000, set()),
])  # fmt: skip
def test_a_standstill_in_a_swaps_window_is_no_pass_whatever_the_p99_says(
    lag: float, start: float, end: float, failed: set[str]
) -> None:
    h = history(text_of("pass") + "health 0 99999 1\n" + f"health {start} {end} 1\n")
    h = changed(h, health=(*h.health[:-1], replace(h.health[-1], lag_max_ms=lag, lags_us=(500,) * 100)))
    found = to_json(judge(h, Require()))
    assert (failed_gates(found), found["status"]) == (failed, "UNKNOWN" if failed else "PASS")
    (gate,) = (g for g in found["gates"] if g["name"] == "client_lag")
    assert ("stood still for 1.0 s" in gate["because"]) == bool(failed)


STILL = [  # (the loop's longest lag, from, to, budget, whether the slow ack may be the client's own)
    (80.0, 7000, 7100, 60, True), (79.9, 7000, 7100, 60, False), (5000.0, 5000, 6999, 60, False),
    (5000.0, 5000, 7000, 60, True), (5000.0, 7240, 7300, 60, True), (5000.0, 7240.001, 7300, 60, False),
    (10.0, 7000, 7100, 135, False), (10.1, 7000, 7100, 135, True), (80.0, 7000, 7100, 39.9, False),
]  # fmt: skip


@pytest.mark.parametrize(("lag", "start", "end", "budget", "excused"), STILL)
def test_a_client_that_stood_still_during_a_swap(
    lag: float, start: float, end: float, budget: float, excused: bool
) -> None:
    calm, slow = "health 0 99999 1\n", text_of("pass").replace("load a v7 7000 7040", "load a v7 7000 7140")
    h = history(slow + calm + f"health {start} {end} 1\n")
    h = changed(h, health=(h.health[0], replace(h.health[1], lag_max_ms=lag)))
    found = to_json(judge(h, Require(swap_ack_p99_ms=budget)))["budgets"]["swap_ack_p99"]
    assert found["status"] == ("UNKNOWN" if excused else "FAIL")
    assert (f"the client was {lag:.1f} ms late itself" in found["because"]) == excused


@pytest.mark.parametrize(("second", "told"), [(8150, 120.0), (8060, 90.0)])
def test_of_standstills_that_explain_slow_acks_the_longest_is_told(second: int, told: float) -> None:
    """A swap that took just the budget of 60 ms needs no excuse."""
    slow = text_of("pass").replace("7000 7040", "7000 7140").replace("8000 8040", f"8000 {second}")
    h = history(slow + "health 0 99999 1\nhealth 7000 7100 1\nhealth 8000 8100 1\n")
    lags = (0.0, 90.0, 120.0)
    h = changed(h, health=tuple(replace(x, lag_max_ms=lag) for x, lag in zip(h.health, lags, strict=True)))
    found = to_json(judge(h, Require(swap_ack_p99_ms=60)))["budgets"]["swap_ack_p99"]
    assert (found["status"], f"the client was {told} ms late itself" in found["because"]) == ("UNKNOWN", True)


@pytest.mark.parametrize(("lag", "status"), [(80.0, "UNKNOWN"), (79.9, "FAIL")])
def test_a_lag_that_brings_the_p99_to_its_budget_excuses_it(lag: float, status: str) -> None:
    slow = history(text_of("pass").replace("load a v7 7000 7040", "load a v7 7000 7140"))
    found = to_json(judge(late(slow, lag), Require(swap_ack_p99_ms=60)))["budgets"]["swap_ack_p99"]
    assert (found["status"], "late itself" in found["because"]) == (status, status == "UNKNOWN")


def test_a_client_that_stood_still_does_not_excuse_what_was_never_answered() -> None:
    h = history(text_of("pass") + "load a v12 12000 42000 info\nhealth 0 99999 1\n")
    h = changed(h, health=tuple(replace(x, lag_max_ms=5000.0) for x in h.health))
    assert to_json(judge(h, Require(swap_ack_p99_ms=1000)))["budgets"]["swap_ack_p99"]["status"] == "FAIL"


CUT = [  # (when the last swap, sent at 12,000 ms, was given up, why, budget, what the budget says)
    ("-", "unfinished", 40, "UNKNOWN"), ("-", "unfinished", 39.9, "FAIL"), ("12100", "cancelled", 100, "UNKNOWN"),
    ("12100", "cancelled", 99.9, "FAIL"), ("12100", "cancelled", 39.9, "FAIL"), ("12100", "timeout", 100, "FAIL"),
]  # fmt: skip


@pytest.mark.parametrize(("end", "reason", "limit", "status"), CUT)
def test_a_swap_that_the_tester_did_not_wait_for_accuses_nobody(
    end: str, reason: str, limit: float, status: str
) -> None:
    h = history(text_of("pass") + f"load a v12 12000 {end} info\n")
    h = changed(h, ops=(*h.ops[:-1], replace(h.ops[-1], reason=reason)))
    budget = to_json(judge(h, Require(swap_ack_p99_ms=limit)))["budgets"]["swap_ack_p99"]
    cut = reason == "unfinished" or (reason == "cancelled" and limit >= 100)
    assert (budget["value"], budget["status"]) == (40.0 if cut else "inf", status)
    assert budget["because"].endswith(f"budget {limit:g} ms" + "; 1 more cut short by our own end" * cut)


def test_a_swap_given_up_while_the_tester_stood_still() -> None:
    h = history(text_of("pass") + "load a v12 12000 12100 info\nhealth 0 99999 1\n")
    ops = (*h.ops[:-1], replace(h.ops[-1], reason="cancelled"))
    h = changed(h, ops=ops, health=(replace(h.health[0], lag_max_ms=60.0),))
    assert to_json(judge(h, Require(swap_ack_p99_ms=40)))["budgets"]["swap_ack_p99"]["status"] == "UNKNOWN"
    alone = to_json(judge(changed(h, ops=(ops[0], ops[-1])), Require(swap_ack_p99_ms=40)))["budgets"]["swap_ack_p99"]
    assert (alone["status"], alone["because"]) == ("UNKNOWN", "no real swap; 1 more cut short by our own end")


def test_every_status_says_why() -> None:
    good, bad = document(text_of("pass"))["guarantees"], document(text_of("fail"))["guarantees"]
    assert good["fresh"]["because"] == "none of 43 streams violates it"  # of 47, four were sent before v1 was acked
    assert good["durable"]["because"] == "none of 13 loads violates it"  # twelve of a, one of b
    assert bad["untorn"]["because"] == "11 of 11 streams violate it (11 torn); where nothing changed: aa 0 of 3"
    assert good["steady"]["because"] == "0 streams ended before the first swap, 0 began after the last"
