"""Histories written as raw files by somebody who does not trust the checker: innocent ones, planted faults, lines that
contradict each other. Every verdict must add up, and every witness must be there in the raw lines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outside import MS, SWAPS, Row, World, mark, ns, served, swap_at, verdict, world

from loadtest import history
from loadtest.analysis.verdict import Require, judge

CUT = {"outcome": "fail", "reason": "cut", "done": False, "finish": ""}
Build = Callable[[World], Any]
ROWS: list[tuple[str, Build, str, set[str], set[str]]] = []


def row(status: str, kinds: str = "", gates: str = "") -> Callable[[Build], Build]:
    """A history: the status, every `guarantee:kind` and every failed gate that its verdict must have, and no other."""

    def add(build: Build) -> Build:
        ROWS.append((build.__name__, build, status, set(kinds.split()), set(gates.split())))
        return build

    return add


def declare(w: World, *versions: int, **more: Any) -> None:
    for k in versions:
        about = {"sha": f"a{k}", "markers": [mark("a", k)], **more}
        w.add("version", 0, adapter="a", version=f"v{k}", path="", **about)


def show(w: World, start: float, end: float, k: int) -> None:
    """Streams of a sent in [start, end) show version k."""
    for r in w.streams():
        if ns(start) <= r["sent_ns"] < ns(end):
            w.put(r, [mark("a", k)] * r["tokens"])


def gone(w: World, start: float, end: float) -> Row:
    """Streams of a sent in [start, end) are answered 404; the last of them."""
    no = {"status": 404, "outcome": "fail", "reason": "rejected", "done": False, "finish": "", "usage": -1}
    found = [r for r in w.streams() if ns(start) <= r["sent_ns"] < ns(end)]
    for r in found:
        r.update(no, tokens=0, chunks=0, first_ns=0, last_ns=0, ended_ns=r["sent_ns"] + MS)
    return found[-1]


def last(w: World, adapter: str = "a") -> Row:
    """The last stream of the second engine's file."""
    return w.streams(adapter, "e1")[-1]


NEW, OLD, BYSTANDER = mark("a", SWAPS), mark("a", SWAPS - 1), mark("b", 0)
BASE = list(range(300, 340))


# -- innocent ---------------------------------------------------------------------------------------------------------


@row("PASS")
def nothing_at_all(w: World) -> None:
    pass


@row("PASS")
def a_load_that_timed_out_applies_late_and_again(w: World) -> None:
    declare(w, 13)
    op = w.op("a", "v13", 2105, None)
    w.add("ack", 2150, op=op, outcome="info", acked_ns=ns(2150), reason="timeout")
    show(w, 2500, 2590, 13)
    show(w, 2900, 2990, 13)


@row("PASS")
def overlapping_loads_acked_in_the_other_order(w: World) -> None:
    declare(w, 13, 14)
    w.op("a", "v13", 2105, 2145)
    w.op("a", "v14", 2110, 2130, engine="e1", by="operator")
    show(w, 2130, 2145, 14)
    show(w, 2145, 2220, 13)


@row("PASS")
def two_labels_of_one_content(w: World) -> None:
    declare(w, 13, sha="a5", markers=[mark("a", 5)])
    w.op("a", "v13", 3950, 3955, by="operator")
    show(w, 3955, 4500, 5)


@row("PASS")
def two_adapters_share_a_marker(w: World) -> None:
    w.find("version", adapter="b", version="v0")["markers"] = [mark("b", 0), mark("a", 3)]


@row("PASS")
def fifty_swaps_of_half_a_millisecond(w: World) -> None:
    declare(w, *range(30, 81))
    show(w, 3900, 3921, 69)
    show(w, 3940, 4500, 80)
    for i in range(50):
        w.op("a", f"v{30 + i}", 3900 + i / 2, 3900.4 + i / 2, by="operator")
        w.stream("a", 3900.42 + i / 2, [mark("a", 30 + i)] * 20)
    w.op("a", "v80", 3930, 3940, by="operator")


@row("PASS")
def streams_of_one_token_and_of_none(w: World) -> None:
    for i in range(300):
        sent = 600 + 11 * i
        w.stream("a", sent, [mark("a", served(sent))], "e1")
        w.stream("base", sent, [100 + i], "e1")
        w.stream("b", sent, [], "e1", finish="stop", ignore_eos=False, max_tokens=5)


@row("PASS")
def replicas_take_a_swap_one_after_another(w: World) -> None:
    for engine in w.boot:
        w.find("run", engine=engine)["replicas"] = ["http://x", "http://y"]
    for r in w.streams() + w.streams("b") + w.streams("base"):
        r["replica"] = 1
    for k in range(1, SWAPS + 1):
        op = w.find("invoke", version=f"v{k}")["op"]
        for replica, acked in ((0, 5), (1, 20)):
            at = ns(swap_at(k) + acked)
            w.add("replica_ack", swap_at(k) + 20, op=op, replica=replica, outcome="ok", acked_ns=at)
        for i in range(4):
            w.stream("a", swap_at(k) + 6 + 3 * i, [mark("a", k)] * 40, replica=0)
            w.stream("a", swap_at(k) + 7 + 3 * i, [mark("a", k - 1)] * 40, replica=1)


@row("PASS")
def what_happens_at_one_moment_is_concurrent(w: World) -> None:
    for k in range(1, SWAPS + 1):
        w.stream("a", swap_at(k) + 20, [mark("a", k - 1)] * 10, "e1")  # sent as the swap was acked
        w.stream("a", swap_at(k) + 18, [mark("a", k)] * 10, at=[swap_at(k) + 20] * 10)  # and read at that moment
    declare(w, 13)
    w.op("a", "v13", 4300, 4310, by="rollback")
    w.stream("a", 4299, [mark("a", 13)] * 10, at=[4300] * 10)  # read as it was invoked


@row("PASS")
def ids_that_nobody_sent(w: World) -> None:
    w.stream("a", 4000, [-1] * 40)


@row("UNKNOWN", gates="client_lag")
def nobody_knows_how_late_the_client_was_for_some_swaps(w: World) -> None:
    only(w, lambda e, r: r["kind"] != "health" or r["at_ns"] <= ns(2000))


@row("UNKNOWN", gates="noise")
def a_bad_load_that_timed_out_may_serve_anything(w: World) -> None:
    w.op("a", "bad:corrupt", 3905, None, arm="bad")
    for r in w.streams():
        if ns(3950) < r["sent_ns"] < ns(4490):
            w.put(r, BASE)


@row("PASS")
def traffic_before_the_setup_shows_what_was_there(w: World) -> None:
    for i in range(5):
        w.stream("a", -900 + i, [mark("a", i)] * 20)


@row("PASS")
def a_token_after_more_than_71_minutes(w: World) -> None:
    declare(w, 13)
    hour = 4_300_000.0
    w.op("a", "v13", hour, hour + 5, by="rollback")
    for _ in w.boot:
        w.find("end", at_ns=ns(9000)).update(at_ns=ns(hour + 10))
    w.stream(
        "a", 4600, [mark("a", 13)] * 5, at=[4600 + (2**32 - 1) / 1000] * 5, last_ns=ns(hour + 9), ended_ns=ns(hour + 9)
    )


@row("FAIL", "complete:rejected")
def the_hole_of_a_reload(w: World) -> None:
    invoke = w.find("invoke", version="v5")
    invoke["mode"] = "reload"
    w.find("ack", op=invoke["op"])["gone_ns"] = ns(2001)
    gone(w, 2000, 2020)


@row("FAIL", "complete:rejected")
def a_reload_refused_in_its_hole_and_then_a_bad_load(w: World) -> None:
    w.op("a", "v12", 3905, 3910, "fail", mode="reload", gone=3907, arm="sham")
    w.op("a", "bad:missing", 4005, 4010, "fail", arm="bad")
    gone(w, 3907, 4490)


@row("FAIL", "complete:rejected")
def an_unload_that_timed_out_and_then_a_bad_load(w: World) -> None:
    w.op("a", "", 3905, None, mode="unload", by="operator")
    w.op("a", "bad:missing", 4005, 4010, "fail", arm="bad")
    gone(w, 4008, 4490)


@row("FAIL", "complete:rejected durable:wiped")
def the_first_of_two_bad_loads_wipes(w: World) -> None:
    w.op("a", "bad:missing", 3905, 3910, "fail", arm="bad")
    w.op("a", "bad:missing", 4005, 4010, "fail", arm="bad")
    gone(w, 3908, 4490)


@row("UNKNOWN", gates="clock")
def a_file_of_another_machine(w: World) -> None:
    """Its clock is a hundred seconds ahead, and its server three times as slow: no hangover."""
    w.find("run", engine="e1")["boot_id"] = "another"
    for line in [r for e, _, r in w.lines if e == "e1"]:
        line.update({k: t + 100_000 * MS for k, t in line.items() if k.endswith("_ns") and t > 10**12})
    w.columns["e1"][1][:] = [3 * us for us in w.columns["e1"][1]]


@row("FAIL", "valid:fallback", "clock")
def the_base_answers_on_another_machine(w: World) -> None:
    a_file_of_another_machine(w)
    w.put(last(w), BASE)


# -- planted: one stream, in the last second, in the second engine's file --------------------------------------------

TORN, STALE = "fresh:stale untorn:torn monotonic:inversion", "fresh:stale monotonic:inversion"


def plain(w: World) -> None:
    """One token that nothing marks: the engine drifts."""
    r = w.streams("a", "e1")[30]
    w.put(r, [*w.ids(r)[:20], 333, *w.ids(r)[21:]])


def short(w: World, adapter: str, ids: Callable[[float], list[int]], count: int = 200) -> None:
    """Streams of few tokens, all over the run."""
    for i in range(count):
        sent = 600 + 3400.0 * i / count
        w.stream(adapter, sent, ids(sent), "e1")


PLANTED: list[tuple[str, str, Build]] = [
    ("torn", TORN, lambda w: w.put(last(w), [OLD] * 3 + [NEW] * 37)),
    ("torn the other way", f"{TORN} ordered:flip", lambda w: w.put(last(w), [NEW] * 37 + [OLD] * 3)),
    ("torn and cut", f"{TORN} complete:cut", lambda w: (w.put(last(w), [OLD] * 20 + [NEW] * 20), last(w).update(CUT))),
    ("stale", STALE, lambda w: w.put(last(w), [OLD] * 40)),
    ("stale, of one token", STALE, lambda w: w.stream("a", 4300, [OLD], "e1")),
    ("stale and leaking", f"{STALE} valid:leak", lambda w: w.put(last(w), [OLD] * 20 + [BYSTANDER] * 20)),
    ("before its load", "valid:prophetic", lambda w: w.put(w.streams("a", "e1")[30], [NEW] * 40)),
    ("leak", "valid:leak", lambda w: w.put(last(w), [NEW] * 20 + [BYSTANDER] * 3 + [NEW] * 17)),
    ("leak to a bystander", "valid:leak isolated:leak", lambda w: w.put(last(w, "b"), [BYSTANDER] * 37 + [NEW] * 3)),
    ("base answers", "valid:fallback", lambda w: w.put(last(w), BASE)),
    ("base is answered for", "valid:leak isolated:leak", lambda w: w.put(last(w, "base"), [NEW] * 40)),
    ("token dropped", "complete:truncated", lambda w: last(w).update(usage=41, max_tokens=41)),
    ("token doubled", "complete:duplicated", lambda w: last(w).update(usage=39, max_tokens=39)),
    ("no DONE", "complete:truncated", lambda w: last(w).update(done=False)),
    ("lost", "fresh:stale durable:lost", lambda w: show(w, 3400, 4490, SWAPS - 1)),
    ("refused and live", "valid:aborted", lambda w: (loads(w, 13, 3910, "fail"), None)),
    ("torn in a sham swap", f"{TORN} ordered:flip",
     lambda w: (w.op("a", "v12", 3905, 3910, arm="sham"), w.put(last(w), [NEW] * 20 + [OLD] * 20))),
]  # fmt: skip
ROWS += [(name.replace(" ", "_"), build, "FAIL", set(kinds.split()), set()) for name, kinds, build in PLANTED]

# Too little in each stream to accuse anybody, too much in all of them for a PASS.
TOGETHER: list[tuple[str, Build]] = [
    ("base is answered for, token by token", lambda w: short(w, "base", lambda sent: [mark("a", served(sent))])),
    ("base is answered for, three at a time", lambda w: short(w, "base", lambda sent: [mark("a", served(sent))] * 3)),
    ("base answers five tokens", lambda w: short(w, "a", lambda sent: BASE[:5], 10)),
    ("base answers seven tokens", lambda w: [w.put(r, w.ids(r)[:33] + BASE[:7]) for r in w.streams()[20:23]]),
    ("stale in ones, and drift", lambda w: (plain(w), short(w, "a", lambda sent: [mark("a", 0)], 40))),
    ("stale in twos, and drift", lambda w: (plain(w), short(w, "a", lambda sent: [mark("a", 0)] * 2, 40))),
]
ROWS += [(name.replace(" ", "_"), build, "UNKNOWN", set(), {"noise"}) for name, build in TOGETHER]


@row("PASS")
def one_odd_token_of_each_kind(w: World) -> None:
    plain(w)
    w.stream("base", 3000, [mark("a", 3), 101, 102], "e1")
    short(w, "a", lambda sent: [mark("a", served(sent))] * 2, 40)


# -- lines that contradict each other: named, and no more than UNKNOWN ------------------------------------------------


def again(w: World, row: Row, engine: str = "e0", **other: Any) -> None:
    """A line a second time, with other values."""
    w.lines.append((engine, 5000, {**row, **other}))


def ack(w: World, version: str = "v5", by: str = "") -> Row:
    by = by or w.find("invoke", version=version)["by"]
    return w.find("ack", op=w.find("invoke", version=version, by=by)["op"])


def loads(w: World, k: int, acked: float | None = 3910, how: str = "ok") -> int:
    """A load of version k at 3900 ms, which streams show from 3910 ms on."""
    declare(w, *([k] if k > SWAPS else []))
    show(w, 3910, 4490, k)
    return w.op("a", f"v{k}", 3900, acked, how, by="operator")


def only(w: World, kept: Callable[[str, Row], bool]) -> None:
    w.lines = [line for line in w.lines if kept(line[0], line[2])]


def without(w: World, kind: str, **fields: Any) -> None:
    w.drop(w.find(kind, **fields))


def asked(w: World, **more: Any) -> None:
    """Every stream of the second engine has its `send`, the last one's with other fields."""
    fields = ("stream", "adapter", "user", "intended_ns", "sent_ns", "max_tokens", "ignore_eos")
    found = [r for a in ("a", "b", "base") for r in w.streams(a, "e1")]
    for r in found:
        line = {k: r[k] for k in fields} | (more if r is last(w) else {})
        w.add("send", (r["sent_ns"] - ns(0)) / MS, "e1", **line)


@row("PASS")
def every_stream_repeats_what_its_send_said(w: World) -> None:
    asked(w)


def unloads(w: World, again: float | None = None, end: float | None = None) -> None:
    w.op("a", "", 3905, 3910, mode="unload", by="operator")
    if again is not None:
        w.op("a", "v12", again, end, mode="load", by="operator")


@row("UNKNOWN", gates="unloaded")
def an_unload_that_was_acked_and_not_done(w: World) -> None:
    unloads(w)


@row("UNKNOWN", gates="unloaded")
def an_unload_not_done_and_a_load_much_later(w: World) -> None:
    unloads(w, 4400, 4405)


@row("PASS")
def an_unload_and_a_load_before_the_next_stream(w: World) -> None:
    unloads(w, 3911, 3940)


@row("PASS")
def an_unload_before_which_a_load_timed_out(w: World) -> None:
    w.op("a", "v12", 3901, None)
    unloads(w)


@row("FAIL", "complete:rejected")
def an_unload_that_was_done(w: World) -> None:
    unloads(w)
    gone(w, 3910, 4490)


def undo(w: World, *states: str) -> None:
    for at, state in enumerate(states, 4520):
        about = {"path": "/x", "local_path": "/x", "url": "http://x"}
        w.add("undo", at, adapter="a", version="v0", state=state, at_ns=ns(at), **about)


@row("UNKNOWN", gates="undone")
def a_rollback_that_was_refused(w: World) -> None:
    ack(w, "v0", by="rollback").update(outcome="fail", status=500)


@row("UNKNOWN", gates="undone")
def an_undo_that_failed(w: World) -> None:
    undo(w, "planned", "failed")


@row("PASS")
def a_rollback_that_failed_and_was_played_later(w: World) -> None:
    ack(w, "v0", by="rollback").update(outcome="fail", status=500)
    undo(w, "planned", "failed", "played")


@row("PASS")
def a_sham_swap_of_what_is_served(w: World) -> None:
    w.op("a", "v12", 3905, 3910, arm="sham")


@row("PASS")
def a_sham_swap_of_what_timed_out_before(w: World) -> None:
    w.op("a", "v12", 3901, None)
    w.op("a", "v11", 3941, 3942)
    w.op("a", "v12", 3971, 3972, arm="sham")
    show(w, 3942, 3971, 11)


def reversed_arrivals(w: World) -> None:
    part = slice(last(w)["offset"], last(w)["offset"] + 40)
    w.columns["e1"][1][part] = w.columns["e1"][1][part][::-1]


DECLARED = {"adapter": "a", "version": "v5", "path": ""}


def answered(w: World, replica: int, op: int = 5) -> None:
    w.add("replica_ack", 2000, op=op, replica=replica, outcome="ok", acked_ns=ns(2000))


def ended_before_a_stream(w: World) -> None:
    only(w, lambda e, r: r["kind"] != "health" or r["at_ns"] <= ns(4000))
    w.find("end").update(at_ns=ns(4100))
    w.lines = [(e, at, r) for e, at, r in w.lines if r["kind"] not in ("ack", "invoke") or at < 4100]


CONTRADICTIONS: list[tuple[str, str, Build]] = [
    ("stream ended twice", "stalled readable", lambda w: again(w, last(w), "e1")),
    ("stream ended in two ways", "stalled readable", lambda w: again(w, last(w), "e1", **CUT)),
    ("ok, with a reason", "stalled readable", lambda w: last(w).update(reason="cut")),
    ("fail, without a reason", "stalled readable", lambda w: last(w).update(outcome="fail")),
    ("fail, by our own side", "stalled readable", lambda w: last(w).update(outcome="fail", reason="cancelled")),
    ("info, by the server", "stalled readable", lambda w: last(w).update(CUT, outcome="info")),
    ("ok, never ended", "stalled readable", lambda w: last(w).update(ended_ns=0)),
    (
        "tokens of another stream",
        "stalled readable",
        lambda w: last(w).update(offset=w.streams("a", "e1")[9]["offset"]),
    ),
    ("tokens read backwards", "stalled readable", reversed_arrivals),
    ("never sent", "readable", lambda w: last(w).update(sent_ns=0)),
    ("answer before the question", "readable", lambda w: (loads(w, 13, 3800), show(w, 3800, 3950, 12))),
    ("answer at no time", "readable", lambda w: ack(w).update(acked_ns=0)),
    ("answer to nobody", "readable", lambda w: w.add("ack", 1, op=99, outcome="ok", acked_ns=ns(1))),
    ("invoke lost", "readable", lambda w: without(w, "invoke", op=loads(w, 13))),
    ("invoke of a known version lost", "readable", lambda w: without(w, "invoke", op=loads(w, 3))),
    ("invoke of a wrong type", "readable", lambda w: w.find("invoke", op=loads(w, 13)).update(phase="x")),
    ("two answers", "readable", lambda w: again(w, ack(w), outcome="fail")),
    ("refused, then not", "readable", lambda w: (loads(w, 13, 3905, "fail"), again(w, ack(w, "v13"), outcome="ok"))),
    ("two operations of one number", "readable", lambda w: again(w, w.find("invoke", version="v5"), version="v6")),
    ("two headers", "readable", lambda w: again(w, w.find("run", engine="e0"))),
    ("two headers, two ends", "readable", lambda w: (again(w, w.find("run")), again(w, w.find("end")))),
    (
        "two ends, none in the other",
        "closed readable",
        lambda w: (w.drop(w.find("end")), again(w, w.find("end"), "e1")),
    ),
    ("two clocks", "clock closed readable", lambda w: again(w, w.find("run", engine="e0"), boot_id="x")),
    ("no header", "clock readable", lambda w: without(w, "run", engine="e1")),
    ("another run's file", "readable", lambda w: w.find("run", engine="e1").update(run="other")),
    ("another format", "readable", lambda w: w.find("run", engine="e1").update(format=2)),
    ("another engine's header", "readable", lambda w: w.find("run", engine="e1").update(engine="e0")),
    ("phases overlap", "readable", lambda w: w.find("phase", index=0, edge="end").update(at_ns=ns(2000))),
    ("phase ends before it begins", "readable", lambda w: w.find("phase", index=1, edge="end").update(at_ns=ns(1000))),
    ("phase begins twice", "readable", lambda w: again(w, w.find("phase", index=1, edge="start"), at_ns=ns(1500))),
    ("one label, two hashes", "readable", lambda w: w.add("version", 1, **DECLARED, sha="?", markers=[20_005])),
    ("one label, two markers", "readable", lambda w: w.add("version", 1, **DECLARED, sha="a5", markers=[20_077])),
    ("version never declared", "readable", lambda w: without(w, "version", version="v12")),
    ("replica that is not there", "readable", lambda w: last(w).update(replica=1)),
    ("sent to another adapter", "stalled readable", lambda w: asked(w, adapter="b")),
    ("sent at another time", "stalled readable", lambda w: asked(w, sent_ns=last(w)["sent_ns"] - MS)),
    ("more was asked for", "stalled readable", lambda w: asked(w, max_tokens=41)),
    ("sent to another replica", "stalled readable", lambda w: asked(w, replica=1)),
    ("answer of a replica that is not there", "readable replicas_met", lambda w: answered(w, 1)),
    ("answer of no replica", "readable replicas_met", lambda w: answered(w, -1)),
    ("two answers of one replica", "readable", lambda w: (answered(w, 0), answered(w, 0))),
    ("a replica's answer to nobody", "readable", lambda w: answered(w, 0, op=99)),
    ("ended before its last health", "readable", lambda w: w.find("end").update(at_ns=ns(4999))),
    ("ended before its last stream", "readable", lambda w: ended_before_a_stream(w)),
    (
        "sham swap to an older version",
        "readable",
        lambda w: (w.op("a", "v3", 3905, 3910, arm="sham"), show(w, 3910, 4490, 3)),
    ),
    ("rejected twice", "stalled readable", lambda w: again(w, gone(w, 4040, 4070))),
    (
        "invoke of a wrong type, unanswered",
        "readable",
        lambda w: w.find("invoke", op=loads(w, 13, None)).update(by="x"),
    ),
    ("marker that is no id", "readable", lambda w: again(w, w.find("version"), version="x", markers=[2**60])),
    ("worker gone, and its file", "closed", lambda w: w.add("event", 9, at_ns=ns(9), what="worker_missing")),
    ("engine silent about its lag", "readable", lambda w: only(w, lambda e, r: e == "e0" or r["kind"] != "health")),
    ("empty file", "readable", lambda w: only(w, lambda e, r: e == "e0")),
]
ROWS += [(name.replace(" ", "_"), build, "UNKNOWN", set(), set(gates.split())) for name, gates, build in CONTRADICTIONS]


def test_an_unreadable_line_may_have_been_any_operation(tmp_path: Path) -> None:
    w = world()
    loads(w, 3)
    w.write(tmp_path)
    lines = tmp_path / "history-e0.jsonl"
    text = lines.read_text()
    lines.write_text("".join("{torn}\n" if '"op": 16' in line else line for line in text.splitlines(keepends=True)))
    assert judge(history.load(tmp_path), Require()).status == "UNKNOWN"


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "status", "kinds", "gates"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_what_a_history_is_judged(build: Build, status: str, kinds: set[str], gates: set[str], tmp_path: Path) -> None:
    w = world()
    build(w)
    d = verdict(tmp_path, w)
    found = {f"{name}:{kind}" for name, g in d["guarantees"].items() for kind in g["kinds"]}
    failed = {g["name"] for g in d["gates"] if g["status"] != "ok"}
    assert (d["status"], found, failed) == (status, kinds, gates)


def test_one_wipe_is_charged_to_one_load(tmp_path: Path) -> None:
    the_first_of_two_bad_loads_wipes(w := world())
    assert [x["swap"] for x in verdict(tmp_path, w)["guarantees"]["durable"]["witnesses"]] == ["e0-16"]
