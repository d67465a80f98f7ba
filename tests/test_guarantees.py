"""Each guarantee on literal histories: a planted fault under its own name, and noise that must not be accused."""

from __future__ import annotations

import pytest
from minihistory import history

from loadtest.analysis import guarantees, monotonic, versions
from loadtest.analysis.case import Case, Finding, open_case
from loadtest.analysis.durable import durable
from loadtest.analysis.isolated import isolated

# Two loads: v1 is hotfixed between 10 and 12 ms; b and base are bystanders.
TWO = """
load a v0 0 1 ok
load b v0 0 1 ok
load a v1 10 12 ok
"""
CHECKS = ("complete", "valid", "fresh", "untorn", "ordered", "monotonic", "isolated", "durable")


def findings(text: str) -> dict[str, Finding]:
    """Every finding of a history, by name."""
    return of_case(open_case(history(text)))


def of_case(case: Case) -> dict[str, Finding]:
    from loadtest.analysis.gaps import gaps

    found = (
        guarantees.complete(case),
        guarantees.valid(case),
        versions.fresh(case),
        versions.untorn(case),
        versions.ordered(case),
        monotonic.monotonic(case),
        isolated(case, gaps(case), None, None)[0],
        durable(case),
    )
    return {f.name: f for f in found}


def broken(text: str) -> dict[str, dict[str, int]]:
    """Guarantee → kinds of those that the history violates."""
    return {name: f.kinds for name, f in findings(text).items() if f.violations}


FAULTS = {
    "torn in flight": (TWO + "stream a 5: v0*4 v1@12 v1", {"untorn": {"torn": 1}}),
    "flip": (
        TWO + "stream a 5: v0*4 v1@12 v0",
        {"untorn": {"torn": 1}, "ordered": {"flip": 1}},
    ),
    "new then old in flight is a flip too": (
        TWO + "stream a 8: v1@11 v0@13",
        {"untorn": {"torn": 1}, "ordered": {"flip": 1}},
    ),
    "stale": (TWO + "stream a 13: v0*3", {"fresh": {"stale": 1}}),
    "stale although a refused load came after": (
        TWO + "load a v2 20 21 fail\nstream a 23: v0*3",
        {"fresh": {"stale": 1}},
    ),
    "stale behind a load that a time-out hides": (
        TWO + "load a v2 20 - info\nstream a 23: v0*3",
        {"fresh": {"stale": 1}},
    ),
    "old content after it was seen, before the ack": (
        "load a v0 0 1 ok\nload a v1 10 30 ok\nstream a 11: v1*2\nstream a 20: v0*2",
        {"monotonic": {"inversion": 1}},
    ),
    "live before its load": (TWO + "stream a 5: v1@9", {"valid": {"prophetic": 1}}),
    "prophetic by one token": (TWO + "stream a 5: v0 v0 v1@9", {"valid": {"prophetic": 1}, "untorn": {"torn": 1}}),
    "a refused load takes effect": (
        TWO + "load a v2 20 21 fail\nstream a 25: v2*3",
        {"valid": {"aborted": 1}},
    ),
    "a refused load takes effect before the refusal is read": (
        TWO + "load a v2 20 30 fail\nstream a 22: v2*3",
        {"valid": {"aborted": 1}},
    ),
    "a refused load under a label of its own takes effect": (
        TWO + "declare a v2\nload a bad:rank-too-high 20 21 fail bad of=v2\nstream a 25: v2*3",
        {"valid": {"aborted": 1}},
    ),
    "and is in service before its version is ever loaded": (
        TWO + "load a bad:rank-too-high 20 21 fail bad of=v2\nstream a 25: v2*3\nload a v2 40 41 ok",
        {"valid": {"aborted": 1}},
    ),
    "content that this run never loads": (TWO + "declare a v9\nstream a 15: v9*3", {"valid": {"alien": 1}}),
    "one token of a neighbour": (TWO + "stream a 15: v1*20 b/v0 v1*20", {"valid": {"leak": 1}}),
    "a neighbour's content that this run never loads": (
        TWO + "declare b v9\nstream a 15: v1*5 b/v9*3",
        {"valid": {"leak": 1}},
    ),
    "one token of the hotfixed adapter in a bystander": (
        TWO + "stream b 5: v0*5 a/v1@15 v0",
        {"valid": {"leak": 1}, "isolated": {"leak": 1}},
    ),
    "base answers as an adapter": (TWO + "stream a 15: x*8", {"valid": {"fallback": 1}}),
    "base takes over in flight": (TWO + "stream a 5: v0*20 x*8", {"valid": {"fallback": 1}}),
    "an adapter answers as base": (
        TWO + "stream base 15: a/v1*16",
        {"valid": {"leak": 1}, "isolated": {"leak": 1}},
    ),
    "cut": (TWO + "stream b 5: v0*3 | cut max=8", {"complete": {"cut": 1}}),
    "rejected in the hole of a reload": (
        TWO + "load a v2 20 26 ok reload gone=22\nstream a 23: | rejected",
        {"complete": {"rejected": 1}},
    ),
    "sent to an adapter that was unloaded": (
        TWO + "unload a 20 21 ok\nstream a 23: | rejected",
        {"complete": {"rejected": 1}},
    ),
    "fewer ids than usage says, though the client called it ok": (
        TWO + "stream a 15: v1*7 | usage=8 eos",
        {"complete": {"truncated": 1}},
    ),
    "more ids than usage says": (TWO + "stream a 15: v1*9 | usage=8 eos", {"complete": {"duplicated": 1}}),
    "more ids than asked for": (TWO + "stream a 15: v1*9 | max=8", {"complete": {"duplicated": 1}}),
    "fewer ids than asked for under ignore_eos": (TWO + "stream a 15: v1*7 | max=8", {"complete": {"truncated": 1}}),
    "no finish reason": (TWO + "stream a 15: v1*7 | nofinish", {"complete": {"truncated": 1}}),
    "no [DONE]": (TWO + "stream a 15: v1*7 | nodone", {"complete": {"truncated": 1}}),
    "ok without status 200": (TWO + "stream a 15: v1*7 | status=500", {"complete": {"rejected": 1}}),
    "tokens of a stream that was cut are judged": (
        TWO + "stream a 13: v0*3 | cut max=8",
        {"complete": {"cut": 1}, "fresh": {"stale": 1}},
    ),
    "tokens of a cancelled stream are judged": (TWO + "stream a 13: v0*3 | cancelled", {"fresh": {"stale": 1}}),
    "acked and never applied": (
        TWO + "\n".join(f"stream a {t}: v0*3 | cancelled" for t in (13, 15, 17)),
        {"fresh": {"stale": 3}, "durable": {"lost": 1}},
    ),
    "reverted": (
        TWO
        + "\n".join(f"stream a {t}: v1*2" for t in range(13, 23))
        + "\n"
        + "\n".join(f"stream a {t}: v0*2" for t in range(30, 40)),
        {"fresh": {"stale": 10}, "monotonic": {"inversion": 10}, "durable": {"reverted": 1}},
    ),
    "a refused load wipes the adapter": (
        TWO
        + "stream a 13: v1*2\nload a bad:missing 20 21 fail bad\n"
        + "\n".join(f"stream a {t}: | rejected" for t in (22, 23, 24)),
        {"complete": {"rejected": 3}, "durable": {"wiped": 1}},
    ),
    "a refused load leaves the base in the adapter's place": (
        TWO + "stream a 13: v1*2\nload a bad:missing 20 21 fail bad\nstream a 22: x*8\nstream a 23: x*8",
        {"valid": {"fallback": 2}, "durable": {"wiped": 1}},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_under_its_own_names_only(name: str) -> None:
    text, expected = FAULTS[name]
    assert broken(text) == expected


INNOCENT = {
    "old in flight across the swap (pinned)": "stream a 5: v0*20",
    "new or old while the swap runs": "stream a 10: v0*2\nstream a 11: v1*2\nstream a 12: v0*2",
    "old and new as the ack arrives: equal times are concurrent": "stream a 12: v0*2",
    "new as the load is invoked": "stream a 5: v1@10",
    "seen new at the moment the other was sent": "load a v2 20 40 ok\nstream a 22: v2@25\nstream a 25: v1*2",
    "a time-out that applies late": "load a v2 20 - info\nstream a 100: v2*3\nstream a 110: v1*3\nstream a 120: v2*3",
    "a time-out that applies after a later load": "load a v2 20 - info\nload a v3 30 31 ok\nstream a 40: v2*3",
    "a time-out that overwrites every stream's version": "load a v2 20 - info\nload a v3 30 31 ok\n"
    + "\n".join(f"stream a {t}: v2*3" for t in range(40, 50)),
    "an answer without a time": "load a v2 20 0 info\nstream a 40: v2*3\nstream a 50: v1*2",
    "sham: same content again": "load a v1 20 21 ok sham\nstream a 5: v0*4 | ended=30\nstream a 22: v1*3",
    "rollback to the first version": "load a v0 20 21 ok rollback\nstream a 15: v1*3\nstream a 22: v0*3",
    "cycled markers": "load a v0 20 21 ok\nload a v1 30 31 ok\nstream a 15: v1*2\nstream a 23: v0*2\nstream a 33: v1*2",
    "noise: single tokens that nobody marks": "stream a 15: v1*5 x v1*5 x x v1*5\nstream b 15: v0*9 x",
    "noise hits a marker": "stream a 15: v1*5 x v1*5 v0 v1*5 b/v0 v1*3",
    "noise hits a marker at the edges": "stream a 15: v0 v1*9 x v1*9 v0 v0",
    "seven plain tokens in a row": "stream a 15: v1*9 x*7",
    "a short stream of plain tokens": "stream a 15: x*5",
    "base emits a marker by itself": "stream base 15: x*20 a/v1 x*20 a/v1*3 b/v0",
    "text-only streams say nothing": "stream a 15: x*20 | text",
    "stalled": "stream a 15: v1*3 | stalled",
    "cancelled at the end": "stream a 15: v1*3 | cancelled max=8",
    "stopped early by the model where that is allowed": "stream a 15: v1*3 | max=8 eos",
    "one rejected stream after a refused load": "stream a 13: v1*2\nload a v9 20 21 fail\n"
    "stream a 22: v1*2\nstream a 24: v1*2",
    "a bad load that timed out may serve anything": "load a bad:corrupt 20 - info bad\nstream a 22: x*20",
    "a bad load that was accepted may serve anything": "load a bad:corrupt 20 21 ok bad\nstream a 22: x*20",
    "two operators at once": "load a v2 20 30 ok\nload a v3 22 28 ok\nstream a 35: v2*3\nstream a 45: v3*2",
}


@pytest.mark.parametrize("name", INNOCENT)
def test_noise_is_not_accused(name: str) -> None:
    assert broken(TWO + INNOCENT[name]) == {}


def test_replicas_that_disagree_are_stale_but_not_reverted() -> None:
    streams = "\n".join(f"stream a {13 + 2 * i}: {'v1' if i % 3 else 'v0'}*2" for i in range(40))
    assert broken(TWO + streams).keys() == {"fresh", "monotonic"}


def test_an_adapter_that_was_served_before_this_run_is_given_the_benefit_of_the_doubt() -> None:
    text = "stream a 1: x*20\nload a v1 10 12 ok operator real\nstream a 13: v1*3\nstream a 30: x*20"
    assert broken(text) == {}
    text = "declare a v0\nstream a 1: v0*3\nload a v1 10 12 ok operator real\nstream a 13: v0*3"
    assert broken(text) == {"fresh": {"stale": 1}}


def test_clocks_that_do_not_compare_accuse_nobody_of_order() -> None:
    text = (
        TWO + "engine e1 other-boot\nstream a 13: v0*3\nstream a 5: v1@9\nstream a 20: v1*2 v0*2\nstream b 20: a/v1*2"
    )
    assert broken(text) == {"untorn": {"torn": 1}, "valid": {"leak": 1}, "isolated": {"leak": 1}}


def test_a_clock_error_makes_near_events_concurrent() -> None:
    def within(ms: float, text: str) -> set[str]:
        found = of_case(open_case(history(TWO + text), epsilon=round(ms * 1e6)))
        return {name for name, f in found.items() if f.violations}

    for text, name, distance in (
        ("stream a 13: v0*3", "fresh", 1),  # acked at 12
        ("stream a 5: v1@9", "valid", 1),  # invoked at 10
        ("load a v2 20 40 ok\nstream a 22: v2@25\nstream a 28: v1*2", "monotonic", 3),
    ):
        assert within(distance - 0.001, text) == {name}
        assert within(distance, text) == set()


def test_a_tear_is_an_interval_and_noise_widens_it() -> None:
    w = findings(TWO + "stream a 5: v0*6 x v1*6")["untorn"].witnesses[0]
    assert (w.tokens, w.versions, w.stream, w.swap) == ((5, 7), ("v0", "v1"), "e0-0", "e0-2")
    assert w.text == "stream e0-0 of a: token 5 is v0, token 7 is v1 (swap e0-2, acked 1.0 ms before): torn at 5..7"
    assert len(w.ids) == 7


def test_a_stale_witness_counts_versions_and_milliseconds() -> None:
    text = TWO + "load a v2 20 21 ok\nload a v3 30 31 ok\nstream a 40: v0*2"
    w = findings(text)["fresh"].witnesses[0]
    assert w.versions == ("v0", "v3")
    assert w.text.endswith("stale by 3 versions and 28.0 ms")
    assert w.at_ms == 41.0


def test_a_prophetic_witness_names_the_load() -> None:
    w = findings(TWO + "stream a 5: v1@9")["valid"].witnesses[0]
    assert w.text == "stream e0-0 of a: token 0 is v1, invoked as e0-2 1.0 ms after it was read (prophetic)"
    assert (w.swap, w.kind, w.tokens) == ("e0-2", "prophetic", (0, 0))


def test_an_inversion_names_the_stream_that_showed_the_newer_version() -> None:
    w = findings("load a v0 0 1 ok\nload a v1 10 30 ok\nstream a 11: v1*2\nstream a 20: v0*2")["monotonic"].witnesses[0]
    assert "but 8.0 ms before it was sent stream e0-0 had already shown v1" in w.text
    assert w.versions == ("v1", "v0")


def test_witnesses_are_few_and_counts_complete() -> None:
    text = TWO + "\n".join(f"stream a {13 + i}: v0*2" for i in range(50))
    found = findings(text)["fresh"]
    assert (found.violations, len(found.witnesses)) == (50, 20)
    assert [w.stream for w in found.witnesses] == [f"e0-{i}" for i in range(20)]


def test_stalled_and_unfinished_streams_leave_complete_open_and_cancelled_ones_do_not() -> None:
    assert findings(TWO + "stream a 15: v1*3 | cancelled")["complete"].unknown == "no stream was exposed to it"
    ended = TWO + "stream a 13: v1*3\n"
    assert findings(ended + "stream a 15: v1*3 | cancelled")["complete"].unknown == ""
    for reason in ("stalled", "unfinished"):
        assert "1 streams stalled" in findings(ended + f"stream a 15: v1*3 | {reason}")["complete"].unknown


def test_exposure_is_counted_where_a_violation_could_have_shown() -> None:
    found = findings(
        TWO + "stream a 5: v0*3\nstream a 9: v0*3\nstream a 15: v1*3\nstream b 9: v0*3\nstream base 9: x*9"
    )
    assert {n: f.exposed for n, f in found.items()} == {
        "complete": 5,
        "valid": 5,
        "fresh": 1,  # sent after the ack
        "untorn": 1,  # alive during the swap
        "ordered": 1,
        "monotonic": 2,  # sent after a token was read
        "isolated": 2,
        "durable": 0,
    }


def test_loads_that_too_few_streams_followed_are_not_judged_durable() -> None:
    assert findings(TWO + "stream a 13: v0*3\nstream a 14: v0*3")["durable"].exposed == 0
    three = findings(TWO + "\n".join(f"stream a {t}: v1*3" for t in (13, 14, 15)))["durable"]
    assert (three.exposed, three.violations) == (1, 0)


def test_a_load_seen_late_is_stale_and_not_lost() -> None:
    late = "\n".join(f"stream a {t}: v0*3" for t in (13, 14, 15, 16)) + "\nload a v2 30 31 ok\nstream a 14.5: v0 v1@40"
    assert "durable" not in broken(TWO + late)


def test_a_reload_that_failed_after_its_unload_is_not_called_wiped() -> None:
    gone = "\n".join(f"stream a {t}: | rejected" for t in (22, 23, 24))
    text = TWO + "stream a 13: v1*2\nload a v9 20 21 fail reload gone=20.5\n" + gone
    assert broken(text) == {"complete": {"rejected": 3}}


def test_adapters_without_markers_are_never_accused() -> None:
    text = "load a bad:none 0 1 ok setup\nload a bad:other 10 12 ok\nstream a 5: x*20\nstream a 15: x*20"
    found = findings(text)
    assert not any(f.violations for f in found.values())
    assert "no token can be attributed" in found["valid"].unknown


def waits(seen_after: int, silent: int) -> str:
    """v1 is shown by a stream sent `seen_after` ms after its ack; v2 is never shown in `silent` ms of traffic."""
    late = "".join(f"stream a {12 + t}: v0*2\n" for t in range(2, seen_after, 2))
    tail = "".join(f"stream a {101 + t}: v1*2\n" for t in range(1, silent + 1))
    return TWO + late + f"stream a {12 + seen_after}: v1*2\nload a v2 100 101 ok\n" + tail


@pytest.mark.parametrize(
    ("seen_after", "silent", "lost"), [(20, 18, False), (20, 19, True), (2, 3, True), (2, 2, False)]
)
def test_a_load_is_given_as_long_as_the_slowest_that_was_seen(seen_after: int, silent: int, lost: bool) -> None:
    assert broken(waits(seen_after, silent)).get("durable", {}) == ({"lost": 1} if lost else {})


@pytest.mark.parametrize(("acked", "lost"), [(10, False), (9.999, True)])
def test_a_version_acked_as_the_next_was_asked_for_is_no_older_one(acked: float, lost: bool) -> None:
    text = f"load a v0 0 1 ok\nload a v1 5 {acked} ok\nload a v2 10 12 ok\nstream a 7: v1\n"
    found = broken(text + "".join(f"stream a {t}: v1*3\n" for t in (13, 14, 15)))
    assert found == ({"fresh": {"stale": 3}, "durable": {"lost": 1}} if lost else {})
    seen = "".join(f"stream a {t}: v2*3\n" for t in range(13, 23))
    found = broken(text + seen + "".join(f"stream a {t}: v1*3\n" for t in range(30, 50)))
    older = {"fresh": {"stale": 20}, "monotonic": {"inversion": 20}, "durable": {"reverted": 1}}
    assert found == (older if lost else {})


@pytest.mark.parametrize(
    ("first", "between", "lost"),
    [
        ("0 1", "v0*2", False),
        ("0 1", "| rejected", True),  # shows nothing
        ("0 1", "v0*2 | text", True),
        ("0 1", "| rejected\nstream a 33: v0*2", False),  # sent as the first token of v1 was read
        ("0 1", "| rejected\nstream a 33.001: v0*2", True),  # seen by then: that is stale
        ("0 9.999", "v0*2", False),
        ("0 10", "v0*2", True),  # acked as v1 was asked for: it may be the newer one
    ],
)
def test_only_a_stream_that_shows_an_older_version_tells_how_long_a_load_may_take(
    first: str, between: str, lost: bool
) -> None:
    """18 ms after v1's ack; then v2 is not seen in 10 ms of traffic."""
    text = TWO.replace("load a v0 0 1 ok", f"load a v0 {first} ok") + f"stream a 30: {between}\nstream a 32: v1*2\n"
    text += "load a v2 100 101 ok\n" + "".join(f"stream a {101 + t}: v1*2\n" for t in range(1, 11))
    assert broken(text).get("durable", {}) == ({"lost": 1} if lost else {})


BOUNDARIES = {
    "a token read as its refused load was asked for": (
        "load a v2 20 30 fail\nstream a 15: v2@20",
        {"valid": {"aborted": 1}},
    ),
    "and one read before that": ("load a v2 20 30 fail\nstream a 15: v2@19.999", {"valid": {"prophetic": 1}}),
    "a token read as its load was asked for": ("load a v2 20 30 ok\nstream a 15: v2@20", {}),
    "no token where usage counts one": ("stream a 15: | usage=1 eos", {"complete": {"truncated": 1}}),
    "a token where usage counts none": ("stream a 15: v1 | usage=0 max=4 eos", {"complete": {"duplicated": 1}}),
    "a token where usage is not on record": ("stream a 15: v1 | usage=-1 max=4 eos", {}),
    "as many as usage and max_tokens say": ("stream a 15: v1*4 | usage=4 max=4", {}),
    "no token where one was asked for": ("stream a 15: | usage=-1 max=1", {"complete": {"truncated": 1}}),
    "no token where none was": ("stream a 15: | usage=-1 max=0", {}),
    "text-only streams are not counted": ("stream a 15: v1*4 | usage=3 max=2 text", {}),
    "but must end": ("stream a 15: v1*4 | nodone text", {"complete": {"truncated": 1}}),
    "sent as the load was acked": ("stream a 12: v0@13", {}),
    "sent just after": ("stream a 12.001: v0@13", {"fresh": {"stale": 1}}),
    "loads that touch are concurrent": ("load a v2 12 14 ok\nstream a 15: v1@16", {}),
    "loads that do not are not": ("load a v2 12.001 14 ok\nstream a 15: v1@16", {"fresh": {"stale": 1}}),
    "traffic before the first load of an adapter that was there": (
        "load c v1 10 12 ok operator\nstream c 9.999: x*8",
        {},
    ),
    "traffic from the first load on": (
        "load c v1 10 12 ok operator\nstream c 10: x*8",
        {"valid": {"fallback": 1}},
    ),
    "traffic until this run's own setup is acked": ("load c v0 10 12 ok setup\nstream c 12: x*8", {}),
    "and traffic after that": (
        "load c v0 10 12 ok setup\nstream c 12.001: x*8",
        {"valid": {"fallback": 1}},
    ),
    "traffic of what was declared to be there": (
        "declare c v0\nload c v1 10 12 ok operator\nstream c 5: x*8",
        {"valid": {"fallback": 1}},
    ),
    "traffic of an adapter that this run never loads": ("stream c 10: x*8", {}),
    "a refused load accepts no excuse": (
        "load c v0 0 1 ok\nload c bad:x 10 11 fail bad\nstream c 15: x*8",
        {"valid": {"fallback": 1}},
    ),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_what_lies_on_a_limit_is_innocent_and_what_lies_beyond_is_not(name: str) -> None:
    text, expected = BOUNDARIES[name]
    assert broken(TWO + text) == expected


def exposure(text: str, name: str) -> int:
    return findings(TWO + text)[name].exposed


def test_a_stream_can_be_stale_when_it_was_sent_after_an_ack() -> None:
    assert [exposure(f"stream a {t}: v1@13", "fresh") for t in ("12", "12.001")] == [0, 1]
    assert exposure("load b v1 20 21 fail\nstream b 25: v0", "fresh") == 0  # a refused swap cannot be missed
    early = open_case(history(TWO + "stream a 12.001: v1@13"), epsilon=1000)
    assert of_case(early)["fresh"].exposed == 0


def test_a_stream_can_be_inverted_when_a_token_was_read_before_it_was_sent() -> None:
    assert [exposure(f"stream a 13: v1@15\nstream a {t}: v1@16", "monotonic") for t in ("15", "15.001")] == [0, 1]


def test_an_adapters_own_swap_exposes_its_streams_to_a_tear() -> None:
    other = "load b v1 40 50 ok\n"
    assert exposure(other + "stream a 45: v1@46", "untorn") == 0
    assert exposure(other + "stream b 45: v1@46", "untorn") == 1
    assert exposure(other + "stream b 45: x@46", "untorn") == 0


def test_a_stale_witness_leaves_out_loads_that_touch() -> None:
    """v1 begins as v0 ends, v3 is acked as the stream is sent: only v2 is surely newer. Refused loads and those of
    other adapters are no versions of a.
    """
    text = "load a v0 0 1 ok\nload a v1 1 5 ok\nload a v2 10 12 ok\nload a v3 30 40 ok\nstream a 40: v0*2\n"
    text += "load b v0 2 3 ok\nload b v1 14 15 ok\nload a v9 16 17 fail\nload a v8 18 - info"
    w = findings(text)["fresh"].witnesses[0]
    assert w.versions == ("v0", "v2")
    assert w.text.endswith("stale by 1 version and 28.0 ms")


def test_an_invalid_witness_is_that_of_the_earliest_token() -> None:
    leak, fallback = "b/v0*3", "x*8"
    first = findings(TWO + f"stream a 15: v1*2 {leak} v1 {fallback}")["valid"].witnesses[0]
    assert (first.kind, first.tokens, first.versions) == ("leak", (2, 4), ("v0",))
    second = findings(TWO + f"stream a 15: v1*2 {fallback} v1 {leak}")["valid"].witnesses[0]
    assert (second.kind, second.tokens, second.versions) == ("fallback", (2, 9), ())
    assert second.text == "stream e0-0 of a: tokens 2..9 are no version's markers, so the base's (fallback)"
    long = findings(TWO + "stream a 15: v1*5 x*30 v1*5")["valid"].witnesses[0]
    assert (long.tokens, len(long.ids)) == ((5, 34), 2 + 9 + 2)  # the first nine, and two on either side
    one = findings(TWO + "stream a 15: v1*2 b/v0 v1*2")["valid"].witnesses[0]
    assert one.text == "stream e0-0 of a: token 2 is b's v0 (leak)"
    assert (one.swap, one.at_ms) == ("e0-1", 18.0)


def test_an_aborted_witness_names_the_newest_refused_load_begun_by_then() -> None:
    loads = "load a v2 20 21 fail\nload a v2 30 31 fail\nload a v2 40 41 fail\n"
    for read, op, ago in (
        ("30", "e0-4", "invoked 0.0 ms before, refused 1.0 ms after"),
        ("35", "e0-4", "refused 4.0 ms before"),
    ):
        w = findings(TWO + loads + f"stream a 15: v2@{read}")["valid"].witnesses[0]
        assert (w.kind, w.swap) == ("aborted", op)
        assert f"v2, which the server had refused: swap {op}, {ago} (aborted)" in w.text
    early = findings(TWO + loads + "stream a 15: v2@19")["valid"].witnesses[0]
    assert (early.kind, early.swap) == ("prophetic", "e0-3")
    alien = findings(TWO + "declare a v9\nstream a 15: v9")["valid"].witnesses[0]
    assert "token 0 is v9, which this run never loads (alien)" in alien.text


def test_an_incomplete_witness_says_how_far_it_came() -> None:
    w = findings(TWO + "stream a 15: v1@18 | cut max=8 ended=20 usage=5")["complete"].witnesses[0]
    assert w.text == (
        "stream e0-0 of a: cut after 1 of 8 tokens, 5.0 ms after it was sent, usage says 5; "
        "last swap e0-2, acked 8.0 ms before"
    )
    assert (w.swap, w.at_ms) == ("e0-2", 20.0)
    before = findings(TWO + "stream a 5: v0@9 | cut max=8 usage=0")["complete"].witnesses[0]
    assert before.text == "stream e0-0 of a: cut after 1 of 8 tokens, 4.0 ms after it was sent, usage says 0"
    assert before.swap == ""


def test_a_flip_witness_names_the_newer_token_and_the_later_one() -> None:
    w = findings(TWO + "stream a 5: v0*4 v1@12 v0@14")["ordered"].witnesses[0]
    assert (w.tokens, w.versions, w.swap, w.at_ms) == ((4, 5), ("v1", "v0"), "e0-2", 14.0)
    assert (
        "token 4 is v1, the later token 5 is the older v0 (v1: swap e0-2, acked 2.0 ms before): flip at 4..5" in w.text
    )


def test_a_flip_is_told_from_where_the_newer_version_was_first_seen() -> None:
    """v1 and v2 are concurrent: between them nothing flips, and v0 is older than both."""
    text = "load a v0 0 1 ok\nload a v2 5 40 ok\nload a v1 10 40 ok\nstream a 8: v1@11 v2@12 v1@13 v0@14"
    (witness,) = findings(text)["ordered"].witnesses
    assert (witness.tokens, witness.versions) == ((0, 3), ("v1", "v0"))


def test_a_leak_into_a_bystander_is_told_by_its_tokens() -> None:
    found = findings(TWO + "stream b 15: v0*2 a/v1 v0*2\nstream b 16: v0*2 a/v1*12 v0*2")["isolated"]
    one, many = found.witnesses
    assert one.text == "stream e0-0 of bystander b: token 2 is a's v1"
    assert many.text == "stream e0-1 of bystander b: 12 tokens from 2 to 13 are a's v1"
    assert (many.tokens, len(many.ids), many.versions) == ((2, 13), 13, ("v1",))


@pytest.mark.parametrize(
    ("rejected", "served", "wiped"),
    [("22 23", "", True), ("22", "", False), ("22 23", "24", False), ("22 23", "21.5", True), ("22 23", "22.5", False)],
)
def test_two_rejected_streams_and_none_served_since_are_wiped(rejected: str, served: str, wiped: bool) -> None:
    text = TWO + "stream a 13: v1*2\nload a bad:x 20 21 fail bad\n"
    text += "".join(f"stream a {t}: | rejected\n" for t in rejected.split())
    text += "".join(f"stream a {t}: v1\n" for t in served.split())
    found = findings(text)["durable"]
    assert found.kinds == ({"wiped": 1} if wiped else {})
    assert found.exposed == (1 if len((rejected + " " + served).split()) >= 2 else 0)


def test_a_wiped_adapter_must_have_been_served_since_the_last_good_load() -> None:
    gone = "".join(f"stream a {t}: | rejected\n" for t in (22, 23))
    refused = "load a bad:x 20 21 fail bad\n"
    for before, wiped in (("12", False), ("12.001", True), ("19.999", True), ("20", False)):
        text = TWO + f"stream a {before}: v1@20.5\n" + refused + gone
        assert ("durable" in broken(text)) == wiped, before
    other = gone.replace("| rejected", "| rejected status=503")
    assert "durable" not in broken(TWO + "stream a 13: v1*2\n" + refused + other)
    both = gone.replace("22: | rejected", "22: | rejected status=400")
    assert broken(TWO + "stream a 13: v1*2\n" + refused + both)["durable"] == {"wiped": 1}


def test_reverted_weighs_how_often_old_was_shown_before() -> None:
    """n newer streams, then k older: the share is 1 / (n + 2). 1 / 12 to the sixth is 3e-7, to the fifth 4e-6."""

    def kinds(newer: int, older: int) -> dict[str, int]:
        text = TWO + "".join(f"stream a {13 + i}: v1@{13.5 + i}\n" for i in range(newer))
        text += "".join(f"stream a {60 + i}: v0@{60.5 + i}\n" for i in range(older))
        return findings(text)["durable"].kinds

    assert kinds(10, 6) == {"reverted": 1}
    assert kinds(10, 5) == {}
    text = findings(
        TWO
        + "".join(f"stream a {13 + i}: v1*2\n" for i in range(10))
        + "".join(f"stream a {60 + i}: v0*2\n" for i in range(6))
    )["durable"].witnesses[0]
    assert "stream e0-9 still shows v1 or newer, all 6 streams from e0-10 on show only older versions" in text.text
    assert (text.stream, text.at_ms, text.swap) == ("e0-10", 60.0, "e0-2")


# v0 ends at 1, v1 begins at 10 and is acked at 12, whatever the streams do: nine milliseconds lie between the two.
CLOCK_ERRORS = {
    "v0 is superseded by v1": ("stream a 90: v0*2", 9, {"fresh": {"stale": 1}}, {}),
    "v1 is followed by v0": ("stream a 8: v1@31 v0@33", 9, {"untorn": {"torn": 1}, "ordered": {"flip": 1}}, None),
    "v1 was shown long before": (
        "stream a 11: v1*2\nstream a 90: v0*2",
        9,
        {"fresh": {"stale": 1}, "monotonic": {"inversion": 1}},
        {},
    ),
    "a refused load a millisecond later": (
        "load a v2 20 30 fail\nstream a 15: v2@19",
        1,
        {"valid": {"prophetic": 1}},
        {"valid": {"aborted": 1}},
    ),
    "a load of nobody knows what a millisecond later": (
        "load c v0 0 1 ok\nload c v1 5 6 fail\nload c bad:x 20 21 ok bad\nstream c 15: v1*3 v1@19",
        4,
        {"valid": {"aborted": 1}},
        {},
    ),
    "a load of v0 that was never answered, half a millisecond after its token was read": (
        "stream a 11: v1*2\nstream a 90: v0@91\nload a v0 91.5 - info",
        0.5,
        {"fresh": {"stale": 1}, "monotonic": {"inversion": 1}},
        {},
    ),
    "three streams after the ack, the first a millisecond": (
        "".join(f"stream a {t}: v0*2 | cancelled\n" for t in (13, 15, 40)),
        1,
        {"fresh": {"stale": 3}, "durable": {"lost": 1}},
        {"fresh": {"stale": 2}},
    ),
    "a token of a lost load was read a millisecond before it": (
        "stream a 5: v1@9\n" + "".join(f"stream a {t}: v0*2 | cancelled\n" for t in (14, 15, 40)),
        1,
        {"valid": {"prophetic": 1}, "fresh": {"stale": 3}, "durable": {"lost": 1}},
        {"fresh": {"stale": 3}, "monotonic": {"inversion": 3}},
    ),
    "a token of a lost load was read a millisecond after the content was loaded again": (
        "load a v2 45 46 ok\nload a v1 50 52 ok\nstream a 47: v1@51\n"
        + "".join(f"stream a {t}: v0*2 | cancelled\n" for t in (14, 15, 40)),
        1,
        {"fresh": {"stale": 3}, "durable": {"lost": 1}},
        {"fresh": {"stale": 3}},
    ),
    "a stream near the ack shows a load that ended half a millisecond before": (
        "load a v9 7 9.5 ok\nstream a 12.5: v9@12.6\n"
        + "".join(f"stream a {t}: v0*2 | cancelled\n" for t in (14, 15, 40)),
        0.5,
        {"fresh": {"stale": 4}, "monotonic": {"inversion": 3}, "durable": {"lost": 1}},
        {"fresh": {"stale": 3}, "monotonic": {"inversion": 3}},
    ),
    "three streams before the next load, the last a millisecond": (
        "load a v2 40 41 ok\n" + "".join(f"stream a {t}: v0*2 | cancelled\n" for t in (20, 30, 39)) + "stream a 60: v2",
        1,
        {"fresh": {"stale": 3}, "durable": {"lost": 1}},
        {"fresh": {"stale": 3}},
    ),
}


@pytest.mark.parametrize("name", CLOCK_ERRORS)
def test_a_clock_error_excuses_what_it_could_have_made(name: str) -> None:
    text, ms, exact, excused = CLOCK_ERRORS[name]
    without_order = {k: v for k, v in exact.items() if k == "untorn"}

    def seen(epsilon: int) -> dict[str, dict[str, int]]:
        found = of_case(open_case(history(TWO + text), epsilon))
        return {n: f.kinds for n, f in found.items() if f.violations}

    assert seen(int(ms * 1e6) - 1) == exact
    assert seen(int(ms * 1e6)) == (without_order if excused is None else excused)


def test_a_stale_witness_leaves_out_loads_within_the_clock_error() -> None:
    """Five milliseconds: v1 may have begun before v0 ended, v3 may have been acked after the stream was sent."""
    loads = "load a v0 0 1 ok\nload a v1 6 7 ok\nload a v2 20 21 ok\nload a v3 30 35 ok\nstream a 40: v0*2"
    w = of_case(open_case(history(loads), 5_000_000))["fresh"].witnesses[0]
    assert w.text.endswith("stale by 1 version and 19.0 ms")
    exact = of_case(open_case(history(loads), 4_999_999))["fresh"].witnesses[0]
    assert exact.text.endswith("stale by 3 versions and 33.0 ms")


@pytest.mark.parametrize(
    ("earlier", "wiped"),
    [
        ("unload a 14 - info", False),  # may take the adapter away at any time
        ("unload a 14 - ok", False),
        ("load a v2 14 - info reload", False),
        ("load a v2 14 - info", True),
        ("unload a 14 15 fail", True),
        ("unload a 4 5 ok\nload a v0 6 7 ok reload", True),  # done and answered
    ],
)
def test_an_unload_without_an_answer_may_have_wiped_the_adapter_instead(earlier: str, wiped: bool) -> None:
    text = TWO + f"stream a 13: v1*2\n{earlier}\nstream a 16: v1*2\nload a bad:x 30 31 fail bad\n"
    found = findings(text + "".join(f"stream a {t}: | rejected\n" for t in (32, 33, 34)))["durable"]
    assert found.kinds == ({"wiped": 1} if wiped else {})


@pytest.mark.parametrize(
    ("newer", "older", "reverted"), [(97, 3, False), (99, 3, True), (99, 2, False), (8, 6, False), (9, 6, True)]
)
def test_older_streams_at_the_end_must_be_three_and_no_chance(newer: int, older: int, reverted: bool) -> None:
    """One of each kind is added: (1 / 99)^3 = 1.03e-6, (1 / 101)^3 = 0.97e-6, (1 / 10)^6 = 1e-6, (1 / 11)^6 = 6e-7."""
    text = TWO + "".join(f"stream a {13 + i}: v1*3\n" for i in range(newer))
    found = findings(text + "".join(f"stream a {213 + i}: v0*3\n" for i in range(older)))["durable"]
    assert found.kinds == ({"reverted": 1} if reverted else {})


# A content that was there before the run

BEFORE = "declare c v0\nload c v1 100 110 ok operator\n"


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ("stream c 90: v0 v1@111", {"untorn": {"torn": 1}}),
        ("stream c 90: v0 v1@111 v0@112", {"untorn": {"torn": 1}, "ordered": {"flip": 1}}),
        ("stream c 90: v1@111\nstream c 112: v0", {"fresh": {"stale": 1}, "monotonic": {"inversion": 1}}),
        ("stream c 10: v0\nstream c 90: v0@111\nstream c 105: v1@111", {}),
    ],
)
def test_what_was_served_before_the_run_is_older_than_what_it_loads(
    streams: str, expected: dict[str, dict[str, int]]
) -> None:
    assert broken(BEFORE + streams) == expected


def test_a_stream_sent_after_any_content_was_seen_could_show_an_older_one() -> None:
    shown = [findings(BEFORE + f"stream c 10: v0@20\nstream c {sent}: v0*2")["monotonic"].exposed for sent in (20, 21)]
    assert shown == [0, 1]


@pytest.mark.parametrize(("first", "exposed"), [("v0", 1), ("v1", 0)])
def test_a_version_that_may_come_at_any_time_bounds_no_later_stream(first: str, exposed: int) -> None:
    text = f"load a v0 0 1 ok\nload a v1 10 - info\nstream a 12: {first}@13\nstream a 20: v0*2"
    assert findings(text)["monotonic"].exposed == exposed
