"""The fast checker against the brute-force oracle, and laws that hold for every history."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minihistory import history
from oracle import FOREVER, Load, Stream, Token, candidates

from loadtest.analysis import versions
from loadtest.analysis.case import Case, Finding, open_case
from loadtest.analysis.durable import durable
from loadtest.analysis.guarantees import valid
from loadtest.analysis.monotonic import monotonic
from loadtest.analysis.verdict import Require, judge
from loadtest.history import History

COUNT = int(os.environ.get("ORACLE_HISTORIES", "1500"))
SEED = int(os.environ.get("ORACLE_SEED", "20240601"))
CHECKS: dict[str, Callable[[Case], Finding]] = {
    "valid": valid,
    "fresh": versions.fresh,
    "untorn": versions.untorn,
    "ordered": versions.ordered,
    "monotonic": monotonic,
}


def write(loads: list[Load], streams: list[Stream]) -> str:
    """The history in the mini-language; half a unit of time keeps equal times equal."""
    lines = []
    for k in loads:
        ack = "-" if k.end == FOREVER else str(k.end)
        lines.append(f"load a {k.label} {k.start} {ack} {k.outcome} {'real scenario' if lines else 'setup'}")
    for s in streams:
        words = " ".join(f"{t.label}@{t.at}" for t in s.tokens)
        lines.append(f"stream a {s.sent}: {words}" + " | rejected" * s.gone)
    return "\n".join(lines)


def random_load(rng: random.Random, labels: list[str], start: int) -> Load:
    outcome = rng.choice(["ok", "ok", "ok", "info", "fail"])
    end = FOREVER if outcome == "info" else start + rng.randrange(0, 5)
    return Load(rng.choice(labels), start, end, outcome)


def random_history(rng: random.Random) -> tuple[list[Load], list[Stream]]:
    labels = [f"v{i}" for i in range(rng.choice([2, 2, 3]))]
    starts = sorted(rng.randrange(2, 16) for _ in range(rng.randrange(1, 5)))
    loads = [Load("v0", 0, 1, "ok"), *(random_load(rng, labels, s) for s in starts)]
    streams = []
    for _ in range(rng.randrange(1, 5)):
        sent = rng.randrange(1, 18)
        times = sorted(sent + rng.randrange(0, 9) for _ in range(rng.randrange(1, 4)))
        streams.append(Stream(sent, tuple(Token(rng.choice(labels), t) for t in times)))
    return loads, sorted(streams, key=lambda s: s.sent)


def flagged(case: Case, name: str) -> set[int]:
    return set(np.flatnonzero(CHECKS[name](case).flagged).tolist())


def compare(loads: list[Load], streams: list[Stream]) -> dict[str, set[int]]:
    """What is flagged, on which both agree."""
    text = write(loads, streams)
    case = open_case(history(text))
    seen = {name: flagged(case, name) for name in CHECKS}
    known = {k.label for k in loads}
    truth = {
        "valid": oracle.invalid(loads, streams),
        "fresh": oracle.stale(loads, streams),
        "untorn": oracle.torn(streams),
        "ordered": oracle.flipped(loads, streams),
    }
    assert {n: seen[n] for n in truth} == truth, f"labels loaded: {known}\n{text}"
    assert bool(seen["monotonic"]) == oracle.inverted(loads, streams), text
    return seen


def test_the_checker_agrees_with_every_assignment_tried() -> None:
    rng = random.Random(SEED)
    broken = dict.fromkeys(CHECKS, 0)
    for _ in range(COUNT):
        for name, found in compare(*random_history(rng)).items():
            broken[name] += bool(found)
    # The histories are worth something only when each guarantee is broken and kept often.
    assert all(0.03 * COUNT < n < 0.97 * COUNT for n in broken.values()), broken


def test_the_checker_agrees_on_every_history_of_two_loads_and_two_streams_of_two_tokens() -> None:
    grid = [(kind, a, b) for kind in ("ok", "info", "fail") for a, b in (("v0", "v1"), ("v1", "v0"))]
    for kind, a, b in grid:
        loads = [Load("v0", 0, 1, "ok"), Load("v1", 4, FOREVER if kind == "info" else 6, kind)]
        for first in (2, 4, 6, 7):
            for second in (first, 6, 7, 8):
                if second < first:
                    continue
                for x in ("v0", "v1"):
                    streams = [
                        Stream(first, (Token(x, first + 1), Token(a, first + 2))),
                        Stream(second, (Token(b, second + 1), Token(x, second + 1))),
                    ]
                    compare(loads, streams)


def random_durable(rng: random.Random) -> tuple[list[Load], list[Stream]]:
    """A few loads far apart and many short streams, by a server that forgets, goes back, loses or mixes."""
    count = rng.randrange(1, 4)
    starts = sorted(rng.randrange(4, 90) for _ in range(count))
    outcomes = rng.choices(["ok", "ok", "fail", "info"], k=count)
    labels = [rng.choice([f"v{i + 1}", f"v{i + 1}", "v0", "v1"]) for i in range(count)]
    loads = [Load("v0", 0, 1, "ok")]
    for start, outcome, label in zip(starts, outcomes, labels, strict=True):
        loads.append(Load(label, start, FOREVER if outcome == "info" else start + rng.randrange(0, 5), outcome))
    way, turn, streams = rng.choice(["right", "stuck", "back", "mix", "gone", "late"]), rng.randrange(5, 110), []
    for sent in sorted(rng.randrange(2, 110) for _ in range(rng.randrange(3, 40))):
        known = [k.label for k in loads if k.outcome != "fail" and k.start < sent - (20 if way == "late" else 0)] or [
            "v0"
        ]
        wrong = way == "stuck" or (way == "back" and sent > turn) or (way == "mix" and rng.random() < 0.5)
        label = known[max(-2, -len(known))] if wrong else known[-1]
        label = rng.choice(labels) if rng.random() < 0.03 else label
        gone = way == "gone" and sent > turn and rng.random() < 0.95
        streams.append(Stream(sent, () if gone else (Token(label, sent + rng.randrange(0, 3)),), gone))
    return loads, streams


def test_durable_agrees_with_a_reading_of_its_rules_stream_by_stream() -> None:
    rng, seen = random.Random(SEED + 1), dict.fromkeys(("lost", "reverted", "wiped", "none"), 0)
    for _ in range(COUNT):
        loads, streams = random_durable(rng)
        text = write(loads, streams)
        found = durable(open_case(history(text))).kinds
        assert found == oracle.undurable(loads, streams), text
        for name in found or ["none"]:
            seen[name] += 1
    assert all(n > 0.004 * COUNT for n in seen.values()), seen


seeds = st.integers(0, 2**32)
laws = settings(max_examples=60, deadline=None)


def made(seed: int) -> tuple[list[Load], list[Stream]]:
    return random_history(random.Random(seed))


def summary(h: History) -> dict[str, tuple[str, int, dict[str, int]]]:
    return {g.name: (g.status, g.violations, dict(g.kinds)) for g in judge(h, Require()).guarantees}


@laws
@given(seeds, st.integers(-900_000_000, 10**15))
def test_shifting_all_times_changes_nothing(seed: int, shift: int) -> None:
    h = history(write(*made(seed)))
    t = h.streams
    moved = replace(
        h,
        runs=tuple(replace(r, started_ns=r.started_ns + shift) for r in h.runs),
        streams=replace(
            t,
            **{c: getattr(t, c) + shift for c in ("intended", "sent", "head", "first", "last", "ended")},
        ),
        at=h.at + shift,
        ops=tuple(replace(o, invoked=o.invoked + shift, acked=o.acked + shift if o.acked else 0) for o in h.ops),
        health=tuple(replace(x, from_ns=x.from_ns + shift, at_ns=x.at_ns + shift) for x in h.health),
    )
    a, b = judge(h, Require()), judge(moved, Require())
    assert summary(h) == summary(moved)
    assert [w.text for g in a.guarantees for w in g.witnesses] == [w.text for g in b.guarantees for w in g.witnesses]
    assert (a.status, a.level_held, a.level_broken) == (b.status, b.level_held, b.level_broken)


@laws
@given(seeds, st.permutations(["v0", "v1", "v2"]))
def test_relabelling_versions_changes_nothing(seed: int, names: list[str]) -> None:
    loads, streams = made(seed)
    new = dict(zip(["v0", "v1", "v2"], names, strict=True))
    relabelled = (
        [replace(k, label=new[k.label]) for k in loads],
        [replace(s, tokens=tuple(replace(t, label=new[t.label]) for t in s.tokens)) for s in streams],
    )
    assert summary(history(write(loads, streams))) == summary(history(write(*relabelled)))


@laws
@given(seeds, st.randoms(use_true_random=False))
def test_the_order_of_streams_in_the_files_changes_nothing(seed: int, rng: random.Random) -> None:
    loads, streams = made(seed)
    shuffled = list(streams)
    rng.shuffle(shuffled)
    assert summary(history(write(loads, streams))) == summary(history(write(loads, shuffled)))


def failed(text: str) -> set[str]:
    return {g.name for g in judge(history(text), Require()).guarantees if g.status == "FAIL"}


@laws
@given(seeds, seeds)
def test_one_more_stream_never_removes_a_fail(seed: int, other: int) -> None:
    loads, streams = made(seed)
    _, more = made(other)
    known = {k.label for k in loads} | {t.label for s in streams for t in s.tokens}
    extra = [s for s in more if all(t.label in known for t in s.tokens)][:1]
    without, together = failed(write(loads, streams)), failed(write(loads, [*streams, *extra]))
    # durable is a claim about all streams of a window: one that shows the version refutes "lost".
    assert without - {"durable"} <= together


@laws
@given(seeds, st.integers(0, 20))
def test_weaker_evidence_never_adds_a_fail(seed: int, which: int) -> None:
    loads, streams = made(seed)
    places = [(i, j) for i, s in enumerate(streams) for j in range(len(s.tokens))]
    i, j = places[which % len(places)]
    text = write(loads, streams)
    plain = [replace(t, label="x") if n == j else t for n, t in enumerate(streams[i].tokens)]
    weaker = write(loads, [replace(s, tokens=tuple(plain)) if n == i else s for n, s in enumerate(streams)])
    assert failed(weaker) <= failed(text)


@laws
@given(seeds, st.integers(0, 5))
def test_a_load_whose_answer_was_lost_never_adds_a_fail(seed: int, which: int) -> None:
    loads, streams = made(seed)
    k = which % len(loads)
    if loads[k].outcome == "fail" or k == 0:
        return
    lost = [replace(x, end=FOREVER, outcome="info") if i == k else x for i, x in enumerate(loads)]
    names = {"valid", "fresh", "untorn", "ordered", "monotonic"}
    assert failed(write(lost, streams)) & names <= failed(write(loads, streams)) & names


def kinds(text: str, epsilon: int) -> dict[str, set[str]]:
    found = judge(history(text), Require(clock_error_ns=epsilon)).guarantees
    return {g.name: set(g.kinds) for g in found if g.status == "FAIL"}


@laws
@given(seeds, st.floats(0, 5), st.sampled_from([random_history, random_durable]))
def test_a_larger_clock_error_never_adds_a_fail(seed: int, ms: float, made: Callable[..., Any]) -> None:
    loads, streams = made(random.Random(seed))
    text = write(loads, streams)
    exact, vague = kinds(text, 0), kinds(text, round(ms * 1e6))
    # Rule 1: a token without a candidate has no say. A clock error that excuses a prophetic token gives it one, and
    # what was a violation of valid, or excused because the stream was sent before the setup was acked, may then be one
    # of order: an accusation changes its name, none comes out of nothing.
    orphans = any(not candidates(loads, token) for stream in streams for token in stream.tokens)
    renamed = {"ordered", "monotonic", "durable"} if orphans else set()
    # `reverted` weighs a share of old streams, and a share may rise or fall with the streams that count as old.
    added = {name for name in vague if name not in exact and vague[name] != {"reverted"}}
    assert added - renamed == set()


@pytest.mark.parametrize("field", ["chunks", "head", "intended"])
def test_how_bytes_were_split_says_nothing_about_versions(field: str) -> None:
    h = history(write(*made(5)))
    column = getattr(h.streams, field)
    other = replace(h, streams=replace(h.streams, **{field: column - 1}))
    assert summary(h) == summary(other)
