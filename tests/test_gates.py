"""Gates at their limits: what a run must show, and what it must not, before it may pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from minihistory import history, ns

from loadtest.analysis.case import open_case
from loadtest.analysis.gaps import gaps
from loadtest.analysis.gates import Gate, gates
from loadtest.analysis.guarantees import complete, valid
from loadtest.analysis.ledger import ledger
from loadtest.history import History
from loadtest.records import End, Event, ReplicaAck, Undo

LOADS = "load a v0 0 1 ok\nload b v0 0 1 ok\n"


def gate_of(h: History, name: str, min_swaps: int = 1, epsilon: int = 0) -> Gate | None:
    case = open_case(h, epsilon)
    found = gaps(case)
    book = ledger(case, found, [complete(case), valid(case)])
    return next((g for g in gates(case, book, min_swaps) if g.name == name), None)


def gate(text: str, name: str, min_swaps: int = 1) -> tuple[bool, float, float]:
    """(ok, value, limit)"""
    found = gate_of(history(LOADS + text), name, min_swaps)
    assert found is not None
    return found.ok, found.value, found.limit


MET = "load a v1 10 20 ok\nload a v2 40 50 ok\nload a v2 60 61 ok sham\nstream a 5: v0@15\nstream a 50: v2@55 v2*2\n"


def test_a_swap_is_exposed_by_a_stream_beside_it_and_overlapped_by_one_already_there() -> None:
    assert gate(MET, "exposed_swaps", 2) == (True, 2, 2)
    assert gate(MET, "exposed_swaps", 3) == (False, 2, 3)
    assert gate(MET, "overlap", 1) == (True, 1, 1)
    assert gate(MET, "overlap", 2) == (False, 1, 2)
    assert gate(MET.replace("10 20 ok", "10 20 fail"), "exposed_swaps") == (True, 1, 1)
    assert gate(MET.replace("v0@15", "x@15"), "exposed_swaps") == (True, 1, 1)  # nobody can say what it showed


def test_half_of_the_streams_beside_swaps_must_be_attributable() -> None:
    swap = "load a v1 10 20 ok\nstream a 5: v0@15\nstream a 30: x | text\nstream b 6: x@15 | text\n"
    assert gate(swap, "attributable") == (True, 1.0, 0.5)
    assert gate(swap + "stream a 6: x@15 | text", "attributable") == (True, 0.5, 0.5)
    assert gate(swap + "stream a 6: x@15 | text\nstream a 7: x@15 | text", "attributable") == (False, 1 / 3, 0.5)
    assert gate("stream a 5: v0@15", "attributable") == (False, 0.0, 0.5)


def test_four_plain_tokens_in_a_hundred_are_tolerated() -> None:
    assert gate("stream a 5: " + "v0*24 x " * 4, "noise") == (True, 0.04, 0.04)
    assert gate("stream a 5: " + "v0*24 x " * 3 + "v0*12 x v0*11 x", "noise") == (False, 0.05, 0.04)
    assert gate("stream a 5: | rejected", "noise") == (True, 0.0, 0.04)


def test_replicas_must_answer_alike() -> None:
    h = history(LOADS + "load a v1 10 20 ok")
    assert gate_of(h, "replicas_agree") is None

    def answered(*outcomes: str) -> Gate | None:
        answers = tuple(ReplicaAck(2, i, o, ns(15)) for i, o in enumerate(outcomes))
        return gate_of(replace(h, ops=(*h.ops[:2], replace(h.ops[2], answers=answers))), "replicas_agree")

    assert answered("ok", "ok") == Gate("replicas_agree", True, 0, 0, getattr(answered("ok", "ok"), "because", ""))
    split = answered("ok", "fail", "ok")
    assert split is not None
    assert (split.ok, split.value) == (False, 1)


@pytest.mark.parametrize(
    ("streams", "idle"),
    [
        ("stream a 5: v0@15\nstream a 6: v0@15 | replica=1", 0),
        ("stream a 5: v0@15\nstream a 30: v1 | replica=1", 1),  # after the swap only
        ("stream a 5: v0@15\nstream b 6: v0@15 | replica=1", 1),  # of an adapter that is not swapped
        ("stream a 5: v0@15\nstream a 6: v0@15 | replica=1 text", 1),
    ],
)
def test_every_replica_must_be_looked_at_during_a_swap(streams: str, idle: int) -> None:
    h = history(LOADS + "load a v1 10 20 ok\n" + streams)
    assert gate_of(h, "replicas_met") is None
    answers = (ReplicaAck(2, 0, "ok", ns(15)), ReplicaAck(2, 1, "ok", ns(20)))
    found = gate_of(replace(h, ops=(*h.ops[:2], replace(h.ops[2], answers=answers))), "replicas_met")
    assert found is not None
    assert (found.ok, found.value) == (not idle, idle)


def test_a_bad_load_must_be_refused_by_everybody() -> None:
    assert gate_of(history(LOADS + "load a v1 10 20 ok"), "bad_refused") is None
    refused = "load a bad:x 10 20 fail bad\nload a bad:y 30 - info bad\nload a v1 50 60 ok\n"
    assert gate(refused, "bad_refused") == (True, 0, 0)
    assert gate(refused + "load a bad:z 70 80 ok bad", "bad_refused") == (False, 1, 0)


def test_every_bystander_must_stream_during_a_swap() -> None:
    assert gate_of(history(LOADS + "stream a 5: v0@15"), "bystanders") is None
    swap = "load a v1 10 20 ok\nstream a 5: v0@15\n"
    assert gate(swap, "bystanders") == (False, 1, 0)
    assert gate(swap + "stream b 20: v0", "bystanders") == (True, 0, 0)
    assert gate(swap + "stream b 20.001: v0", "bystanders") == (False, 1, 0)
    assert gate(swap + "stream b 20: v0\nstream base 30: x", "bystanders") == (False, 1, 0)


def test_what_the_record_must_show() -> None:
    h = history(LOADS + "stream a 5: v0\nstream a 6: v0\nstream a 7: v0 | stalled\nstream a 8: | unfinished")

    def seen(name: str, h: History = h) -> tuple[bool, float, float]:
        found = gate_of(h, name)
        assert found is not None
        return found.ok, found.value, found.limit

    assert seen("stalled") == (False, 0.5, 0)
    assert seen("stalled", history(LOADS)) == (True, 0, 0)
    assert seen("clock") == (True, 1, 1)
    assert seen("clock", replace(h, runs=())) == (False, 0, 1)
    other = replace(h.runs[0], boot_id="other")
    assert seen("clock", replace(h, runs=(*h.runs, other, other))) == (False, 2, 1)
    assert seen("closed") == (True, 0, 0)
    assert seen("closed", replace(h, ends=h.ends * 2)) == (True, 0, 0)
    assert seen("closed", replace(h, runs=h.runs * 3)) == (False, 2, 0)
    assert seen("closed", replace(h, ends=(End(1, "target_died"),))) == (False, 0, 0)
    for changed, words in (
        ({"runs": h.runs * 3}, "the run did not end in order: 2 of 3 files have no end"),
        ({"ends": (End(1, "target_died"), End(1, "crash"))}, "the run did not end in order: crash, target_died"),
    ):
        assert getattr(gate_of(replace(h, **changed), "closed"), "because", "") == words
    assert seen("target_alive") == (True, 0, 0)
    assert seen("target_alive", replace(h, ends=(End(1, "target_died"),))) == (False, 0, 0)
    died = Event(ns(9), "target_died", "exit code 1")
    assert seen("target_alive", replace(h, events=(died, died, Event(ns(9), "other")))) == (False, 2, 0)
    for detail, words in (("exit code 1", "the target died: exit code 1"), ("", "the target died: target_died")):
        found = gate_of(replace(h, events=(Event(ns(9), "target_died", detail),)), "target_alive")
        assert getattr(found, "because", "") == words
    assert seen("readable") == (True, 0, 0)
    assert seen("readable", replace(h, problems=("one", "two"))) == (False, 2, 0)


def test_health_gates_read_the_worst_interval() -> None:
    assert gate("health 0 9 10 0\nhealth 10 19 10 0", "client_lag") == (True, 10.0, 10.0)
    assert gate("health 0 9 10.5 0", "client_lag") == (False, 10.5, 10.0)
    assert gate("health 0 9 1 2\nhealth 10 19 1 3", "dropped") == (False, 3, 0)
    unrecorded = replace(history(LOADS), health=())
    lag, dropped = gate_of(unrecorded, "client_lag"), gate_of(unrecorded, "dropped")
    assert lag is not None
    assert dropped is not None
    assert (lag.ok, lag.value, lag.limit, dropped.ok, dropped.value) == (False, 0, 10.0, True, 0)


@pytest.mark.parametrize(
    ("second", "refused"), [("load a v0 2 3 ok setup", 1), ("load a v0 2 3 fail setup", 2), ("load b v1 9 9 ok", 2)]
)
def test_the_last_setup_of_an_adapter_counts(second: str, refused: int) -> None:
    found = gate_of(history(f"load a v0 0 1 fail\nload b v0 0 - info\n{second}"), "setup")
    assert found is not None
    assert (found.ok, found.value, found.limit) == (False, refused, 0)


# What was served after an unload


def unloaded(text: str, epsilon: float = 0) -> tuple[float, bool] | None:
    found = gate_of(history(LOADS + text), "unloaded", epsilon=round(epsilon * 1e6))
    assert found is None or found.limit == 0
    return None if found is None else (found.value, found.ok)


@pytest.mark.parametrize("how", ["30 40 fail", "30 - info"])
def test_only_an_unload_that_was_acked_can_be_held_against_a_server(how: str) -> None:
    assert unloaded("stream a 41: v0") is None
    assert unloaded(f"unload a {how}\nstream a 41: v0") is None
    assert unloaded("unload a 30 - ok\nstream a 41: v0") == (0, True)  # when, nobody knows
    assert unloaded("unload c 30 40 ok\nstream a 41: v0") == (0, True)  # of an adapter without traffic
    assert unloaded("unload a 30 40 ok\nunload c 30 40 ok\nstream a 41: v0") == (1, False)


@pytest.mark.parametrize(
    ("stream", "served"),
    [
        ("a 40: v0", 0),  # sent as it was acked
        ("a 40.001: v0", 1),
        ("a 41: | rejected", 0),
        ("a 41: v0 | cut", 1),
        ("b 41: v0", 0),
        ("base 41: x", 0),
    ],
)
def test_a_stream_sent_after_an_unload_must_get_no_token(stream: str, served: int) -> None:
    assert unloaded(f"unload a 30 40 ok\nstream {stream}") == (served, not served)


@pytest.mark.parametrize(
    ("load", "served"),
    [
        ("a v1 45 46 ok", 0),  # as it was asked for, the stream's first token was read
        ("a v1 45.001 46 ok", 1),
        ("a v1 45 - info", 0),
        ("a v1 45 46 fail", 1),
        ("b v1 44 46 ok", 1),
        ("a v1 20 30 ok", 0),  # acked as the unload was asked for: nobody knows which came last
        ("a v1 20 29.999 ok", 1),
        ("a v1 20 - info", 0),  # may come at any time
        ("a v1 20 - ok", 0),
        ("a v1 20 35 fail", 1),
        ("a v1 20 35 ok", 0),
        ("a v1 50 51 ok", 1),
        ("a v1 44 46 ok\nload a v2 60 61 ok", 0),
        ("a v1 20 29 ok\nload a v2 60 61 ok", 1),
    ],
)
def test_a_load_that_may_have_come_after_the_unload_explains_what_is_served(load: str, served: int) -> None:
    assert unloaded(f"unload a 30 40 ok\nload {load}\nstream a 41: v0@45") == (served, not served)


def test_a_stream_after_two_unloads_is_one_stream() -> None:
    twice = "unload a 30 40 ok\nload a v1 50 51 ok\nunload a 60 70 ok\n"
    assert unloaded(twice + "stream a 41: v0\nstream a 71: v1") == (2, False)
    assert unloaded(twice.replace("load a v1 50 51 ok\n", "") + "stream a 71: v0") == (1, False)


def test_clocks_that_are_a_millisecond_wrong_excuse_a_millisecond() -> None:
    unload = "unload a 30 40 ok\n"
    assert [unloaded(f"{unload}stream a {sent}: v0", 1) for sent in (41, 41.001)] == [(0, True), (1, False)]
    for acked, served in ((28.999, 1), (29, 0)):
        assert unloaded(f"{unload}load a v1 20 {acked} ok\nstream a 50: v0", 1) == (served, not served)
    for first, served in ((58.999, 1), (59, 0)):
        assert unloaded(f"{unload}load a v1 60 61 ok\nstream a 50: v0@{first}", 1) == (served, not served)


# What is left when the run has ended


def undone(h: History) -> str:
    found = gate_of(h, "undone")
    assert found is None or (found.ok, found.limit, found.value > 0) == (False, 0, True)
    return "" if found is None else f"{found.value}: {found.because}"


def entry(adapter: str, state: str, url: str = "http://one") -> Undo:
    return Undo(adapter, "v0", "/x", "/x", state, ns(90), url)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "left"),
    [
        ([], ""),
        ([("a", "planned")], ""),  # the run may have ended with its swap taken back by a rollback
        ([("a", "planned"), ("a", "failed")], "1: left hotfixed, for the rollback failed: a"),
        ([("a", "failed"), ("a", "played")], ""),
        ([("a", "played"), ("a", "failed")], "1: left hotfixed, for the rollback failed: a"),
        ([("b", "failed"), ("a", "failed"), ("c", "played")], "2: left hotfixed, for the rollback failed: a, b"),
    ],
)
def test_the_last_word_of_the_undo_journal_counts(states: list[tuple[str, str]], left: str) -> None:
    assert undone(replace(history(LOADS), undo=tuple(entry(*s) for s in states))) == left


def test_an_undo_is_that_of_one_server() -> None:
    split = (entry("a", "failed"), entry("a", "played", "http://two"))
    assert undone(replace(history(LOADS), undo=split)) == "1: left hotfixed, for the rollback failed: a"


@pytest.mark.parametrize(
    ("rollbacks", "left"),
    [
        (["80 81 ok"], False),
        (["80 81 fail"], True),
        (["80 - info"], True),
        (["80 81 fail", "82 83 ok"], False),
        (["80 81 ok", "82 83 fail"], True),
    ],
)
def test_the_last_rollback_of_an_adapter_counts_unless_it_was_played_later(rollbacks: list[str], left: bool) -> None:
    h = history(LOADS + "load a v1 10 20 ok\n" + "\n".join(f"load a v0 {r} rollback" for r in rollbacks))
    assert bool(undone(h)) == left
    assert bool(undone(replace(h, undo=(entry("a", "planned"),)))) == left
    assert bool(undone(replace(h, undo=(entry("b", "played"),)))) == left
    assert undone(replace(h, undo=(entry("a", "played"),))) == ""


# What gates say


def because(text: str, name: str) -> str:
    return getattr(gate_of(history(text), name), "because", "")


def test_replicas_that_nobody_looked_at_are_named_in_order() -> None:
    h = history(LOADS + "load a v1 10 20 ok\nload a v2 30 40 ok\nstream a 5: v0@15 | replica=1")

    def seen(name: str, *outcomes: str) -> tuple[float, str]:
        answers = tuple(ReplicaAck(2, i, o, ns(15)) for i, o in enumerate(outcomes))
        found = gate_of(replace(h, ops=(*h.ops[:2], *(replace(op, answers=answers) for op in h.ops[2:]))), name)
        assert found is not None
        return found.value, found.because

    words = "replicas without an attributable stream during a swap: "
    assert seen("replicas_met", "ok", "ok", "ok") == (2, f"{words}0, 2")
    assert seen("replicas_met", "ok", "ok") == (1, f"{words}0")
    assert seen("replicas_agree", "ok", "info", "ok")[0] == 2  # both operations
    two = history(LOADS + "load a v1 10 20 ok\nstream a 5: v0@15\nstream a 5: v0@15 | replica=1")
    answers = (ReplicaAck(2, 0, "ok", ns(15)), ReplicaAck(2, 1, "ok", ns(15)))
    met = gate_of(replace(two, ops=(*two.ops[:2], replace(two.ops[2], answers=answers))), "replicas_met")
    assert met == Gate("replicas_met", True, 0, 0, f"{words}none")


def test_a_bystander_that_nobody_asked_is_named() -> None:
    swap = LOADS + "load a v1 10 20 ok\nstream a 5: v0@15\n"
    assert because(swap, "bystanders") == "bystanders without a stream during a swap: b"
    assert because(swap + "stream base 30: x", "bystanders") == "bystanders without a stream during a swap: b, base"
    assert because(swap + "stream b 12: v0\nstream base 12: x", "bystanders") == "2 had streams"


def test_setups_that_were_not_acked_are_named() -> None:
    assert because(LOADS, "setup") == "every adapter was set up"
    assert because("load a v0 0 1 ok\nload b v0 0 1 fail", "setup") == "setup loads that were not acked: e0-1"


@pytest.mark.parametrize(
    ("missing", "files", "words"),
    [
        (1, 1, "the run did not end in order: missing: w0 (engine e0)"),
        (4, 1, "the run did not end in order: missing: w0 (engine e0), w1 (engine e1), w2 (engine e2)"),
        (1, 2, "the run did not end in order: 1 of 2 files have no end"),
        (0, 1, "the run ended in order"),
    ],
)
def test_a_worker_that_is_missing_is_no_end_in_order(missing: int, files: int, words: str) -> None:
    h = history(LOADS)
    gone = tuple(Event(ns(9), "worker_missing", f"w{i} (engine e{i})") for i in range(missing))
    found = gate_of(replace(h, runs=h.runs * files, events=(*gone, Event(ns(9), "error", "no worker"))), "closed")
    assert found is not None
    assert (found.ok, found.because) == (not missing, words)


@pytest.mark.parametrize(
    ("reason", "ok"), [("complete", True), ("run_time", True), ("interrupt", False), ("target_died", False)]
)
def test_a_run_ends_in_order_when_it_is_complete_or_its_time_is_over(reason: str, ok: bool) -> None:
    found = gate_of(history(f"{LOADS}end {reason}"), "closed")
    assert found is not None
    assert found.ok == ok


# What noise may hide


@pytest.mark.parametrize(
    ("streams", "doubt"),
    [
        (["v0*2"], ""),
        (["v0*2", "v0"], "2 of 2"),  # a plain token in 50 is drift: P(2 of 2) = 0.0004
        (["b/v0*2", "v0"], "2 of 2"),
        (["v0*2", "v0", "v1"], ""),  # P(2 of 3) = 0.0012
        (["v0*2", "v0", "v1*3"], "2 of 2"),  # three tokens in a row are believed
        (["v0", "v0", "v0"] + ["v1"] * 7, "3 of 10"),  # P(3 of 10) = 0.00086
        (["v0", "v0", "v0"] + ["v1"] * 8, ""),  # P(3 of 11) = 0.0012
        (["v1", "v1*2"], ""),
    ],
)
def test_short_streams_that_drift_silenced_must_not_be_too_many_for_drift(streams: list[str], doubt: str) -> None:
    lines = [f"stream a {30 + i}: {what}" for i, what in enumerate(streams)]
    long = "load a v1 10 12 ok\nstream b 13: " + "v0*60 x v0*60\n"
    found = gate_of(history(LOADS + long + "\n".join(lines)), "noise")
    assert found is not None
    assert found.ok == (not doubt)
    words = f"{doubt} streams of one or two tokens show a superseded version or another adapter's, too many for drift"
    assert found.because.partition("; ")[2] == (words if doubt else "")


@pytest.mark.parametrize(
    ("acked", "epsilon", "ok"), [(10, 0, True), (9.999, 0, False), (9, 1, True), (8.999, 1, False)]
)
def test_a_version_acked_as_the_next_was_asked_for_is_not_superseded(acked: float, epsilon: int, ok: bool) -> None:
    text = f"load a v0 0 {acked} ok\nload b v0 0 1 ok\nload a v1 10 12 ok\nstream b 13: v0*60 x v0*60\n"
    found = gate_of(history(text + "stream a 30: v0*2\nstream a 31: v0"), "noise", epsilon=epsilon * 10**6)
    assert found is not None
    assert found.ok == ok


def test_strays_that_are_neither_noise_nor_evidence_are_told() -> None:
    found = because(LOADS + "load a v1 10 12 ok\nstream a 15: v1*2000 b/v0 v1*9", "noise")
    assert found == (
        "0.00 % of the tokens of marker adapters are no marker, 4 % are tolerated; 1 tokens carry another content's "
        "marker, which chance explains with probability 0.0006 and which accuses nobody beside 0 plain ones"
    )
    assert ";" not in because(LOADS + "stream a 15: v0*9", "noise")


def test_noise_is_a_share_of_all_tokens_of_marker_adapters() -> None:
    assert because(LOADS + "stream a 15: v0*9 x\nstream b 15: v0*10\nstream base 9: x*9", "noise").startswith("5.00 %")
