"""Attribution by scores: literal margins in, contents out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from minihistory import history, ns

from loadtest.analysis.case import open_case
from loadtest.analysis.margins import RUN
from loadtest.analysis.trust import ENOUGH, PROOF, Trust, early, first_contents, trust
from loadtest.analysis.verdict import Require, judge
from loadtest.history import History
from loadtest.scores import BASE, Scores

A0, A1, A2 = ("a", "v0"), ("a", "v1"), ("a", "v2")
EARLY = "\n".join(f"stream a {20 + i}: x*50" for i in range(PROOF))
SWAPS = """
load a v0 0 1 ok
load b v0 2 3 ok
load a v1 1000 1001 ok
load a v2 1500 1501 ok
"""


def lines(*streams: str) -> History:
    """Streams of a's early traffic, then those of the test; markers are forgotten."""
    found = history(f"{SWAPS}\n{EARLY}\n" + "\n".join(streams))
    bare = tuple(replace(v, markers=()) for v in found.versions)
    ids = np.arange(len(found.ids), dtype=np.int32)
    return replace(found, versions=bare, ids=ids)


def row(text: str) -> np.ndarray:
    """One margin a character: `.` the version's own choice, `?` near, `#` far, `:` between; blanks are skipped."""
    return np.array([{".": 0.0, "?": 0.04, ":": 0.3, "#": 9.0}[c] for c in text if c != " "], np.float32)


def scored(recorded: History, *streams: dict, early: float = 0.01, adapters: tuple = ("a", "b", "base")) -> History:
    """With margins: the early streams all fit v0, then one dict of source → text for each further stream."""
    margins = {i: {A0: np.full(50, early, np.float32)} for i in range(PROOF)}
    margins |= {PROOF + i: {s: row(t) for s, t in found.items()} for i, found in enumerate(streams)}
    return replace(recorded, scores=Scores(margins, {}, adapters, ""))


def runs(recorded: History, stream: int = PROOF) -> list[tuple[str, int, int]]:
    """(content, first and last position) of each run of a stream; the base's content is "base"."""
    case = open_case(recorded)
    names, start = case.look.line.contents.labels, int(recorded.streams.start[stream])
    out: list[tuple[str, int, int]] = []
    for found in (case.attribution.runs, case.attribution.fallback):
        for s, c, first, last in zip(found.stream, found.content, found.first, found.last, strict=True):
            if s == stream:
                adapter, label = names[c] if c >= 0 else ("", "base")
                out.append(
                    (label if adapter in ("", "a") else f"{adapter}/{label}", int(first - start), int(last - start))
                )
    return out


def one(text: dict, sent: int = 1600, adapter: str = "a") -> list[tuple[str, int, int]]:
    size = len(row(next(iter(text.values()))))
    return runs(scored(lines(f"stream {adapter} {sent}: x*{size}"), text))


def test_a_stream_is_the_version_that_explains_all_of_it_from_where_the_others_are_excluded() -> None:
    assert one({A0: "..#.......", A1: ".....?....", A2: "....#....."}) == [("v1", 4, 9)]


def test_a_margin_between_fitting_and_excluding_says_nothing() -> None:
    assert one({A0: ":::::::::", A1: ".........", A2: "#........"}) == []


def test_tokens_that_two_versions_explain_are_nobodys() -> None:
    assert one({A0: "#........", A1: ".........", A2: "........."}) == []


def test_a_tear_is_seen_even_where_the_second_part_fits_nobody() -> None:
    torn = {A0: "......#...#", A1: "#.........#", A2: "#.....##..."}
    found = one({A0: "......#..#", A1: "#.....#..#", A2: "#.....#.#."})
    assert found == [("v0", 0, 5), ("another version", 6, 9)]
    assert one(torn)[0] == ("v0", 0, 5)


def test_the_second_part_is_named_when_a_version_alone_explains_enough_of_it() -> None:
    size = RUN + 2
    text = {A0: "." * 5 + "#" * size, A1: "##..." + "#" * size, A2: "#...." + "." * size}
    assert one(text) == [("v0", 0, 4), ("v2", 5, 4 + size)]
    short = {k: v[: 5 + RUN - 1] for k, v in text.items()}
    assert one(short) == [("v0", 0, 4), ("another version", 5, 3 + RUN)]


def test_too_few_tokens_before_a_tear_name_nobody() -> None:
    assert one({A0: "..#....#..", A1: "#.#....#..", A2: "#.#....#.."}) == [("another version", 2, 9)]


def test_what_differs_before_a_second_content_exists_is_no_tear() -> None:
    assert one({A0: "....######"}, sent=500) == [("v0", 0, 3), ("explained by no version", 4, 9)]
    assert one({A0: "....##...."}, sent=500) == [("v0", 0, 3)]  # too few to accuse anybody


def test_a_first_token_beyond_every_version_shows_a_prompt_that_none_of_them_computed() -> None:
    nobody = {A0: "#####..#..", A1: "###.###...", A2: "###.#....#"}
    assert one(nobody) == [("explained by no version", 0, 4)]
    assert one({s: ":" + t[1:] for s, t in nobody.items()})[0][0] != "explained by no version"
    verdict = judge(scored(lines("stream a 1600: x*10"), nobody), Require(level="safe"))
    assert {g.name: g.kinds for g in verdict.guarantees}["valid"] == {"alien": 1}


def test_a_stream_of_the_base_or_of_another_adapter_is_named() -> None:
    other = {A0: "#" * 10, A1: "#" * 10, A2: "#" * 10, ("b", "v0"): "." * 10, BASE: "#" * 10}
    assert one(other) == [("b/v0", 0, 9)]
    base = other | {("b", "v0"): "#" * 10, BASE: "." * 10}
    assert one(base) == [("base", 0, 9)]


def test_a_base_stream_is_judged_and_an_adapter_in_it_is_a_leak() -> None:
    recorded = lines("stream base 1600: x*20", "stream base 1700: x*20")
    leak = {BASE: "." + "#" * 19, A0: "." * 20}
    case = open_case(scored(recorded, {BASE: "." * 20}, leak))
    assert case.attribution.judged[PROOF:].tolist() == [True, True]
    assert runs(scored(recorded, {BASE: "." * 20}, leak), PROOF + 1) == [("v0", 0, 19)]
    verdict = judge(scored(recorded, {BASE: "." * 20}, leak), Require(level="safe"))
    assert {g.name: g.kinds for g in verdict.guarantees}["valid"] == {"leak": 1}


def test_a_leak_before_the_first_swap_is_an_accusation_and_no_noise() -> None:
    base = [f"stream base {500 + i}: x*40" for i in range(10)]
    leak = {BASE: "#" * 40, ("b", "v0"): "." * 40, A0: "#" * 40}
    recorded = scored(lines(*base), *([leak] * 10))
    assert trust(recorded).method == "margins"
    verdict = judge(recorded, Require(level="safe"))
    assert {g.name: g.kinds for g in verdict.guarantees}["valid"] == {"leak": 10}
    noise = {BASE: "#" * 40, ("b", "v0"): "." * 39 + "#", A0: "#" * 40}
    assert trust(scored(lines(*base), *([noise] * 10))).method == ""


def test_the_verdict_accuses_by_scores_and_says_what_it_cannot_see() -> None:
    torn = {A0: ".....#...#", A1: "#....#..#.", A2: "#....#.#.."}
    verdict = judge(scored(lines("stream a 998: x*10"), torn), Require())
    by_name = {g.name: g for g in verdict.guarantees}
    assert (by_name["untorn"].status, by_name["untorn"].violations) == ("FAIL", 1)
    assert "which one, nobody can say" in by_name["untorn"].witnesses[0].text
    assert by_name["ordered"].status == by_name["fresh"].status == "UNKNOWN"
    assert verdict.level_held is None


def test_a_stale_stream_is_accused_by_scores() -> None:
    stale = {A0: "." * 12, A1: "#" * 12, A2: "#" * 12}
    verdict = judge(scored(lines("stream a 1600: x*12"), stale), Require())
    assert {g.name: g.violations for g in verdict.guarantees}["fresh"] == 1


@pytest.mark.parametrize(
    ("early", "method"), [(0.01, "margins"), (0.3, "margins"), (2.0, "")], ids=["exact", "noisy", "hopeless"]
)
def test_the_early_traffic_decides_whether_margins_mean_anything(early: float, method: str) -> None:
    recorded = scored(lines("stream a 1600: x*10"), {A0: "#" * 10, A1: "." * 10, A2: "#" * 10}, early=early)
    assert trust(recorded).method == method
    verdict = judge(recorded, Require(level="safe"))
    assert [(g.ok, g.value) for g in verdict.gates if g.name == "scored"] == [(bool(method), PROOF + 1)]
    if not method:
        assert verdict.status == "UNKNOWN"
        assert not verdict.case.attribution.judged.any()
        assert verdict.case.attribution.method["a"] == "none"


def test_without_enough_early_tokens_nothing_is_decided() -> None:
    recorded = lines("stream a 1600: x*10")
    few = Scores({0: {A0: np.zeros(50, np.float32)}}, {}, ("a",), "")
    assert ENOUGH > 50
    assert trust(replace(recorded, scores=few)).because.startswith("50 tokens before the first swap")


def references(recorded: History, late: dict, spoil: int = -1) -> History:
    """With references: the early streams repeat theirs, except number `spoil`."""
    table = recorded.streams
    ids = [recorded.ids[int(s) : int(s + n)] for s, n in zip(table.start, table.tokens, strict=True)]
    found = {i: {A0: ids[i] + (i == spoil)} for i in range(PROOF)}
    found[PROOF] = {
        source: np.where(np.arange(len(ids[PROOF])) < same, ids[PROOF], -7) for source, same in late.items()
    }
    return replace(recorded, scores=Scores({}, found, ("a",), ""))


def test_references_decide_on_an_engine_that_repeats_itself() -> None:
    recorded = lines("stream a 1600: x*12")
    assert runs(references(recorded, {A0: 3, A1: 12, A2: 5})) == [("v1", 5, 11)]
    assert runs(references(recorded, {A0: 3, A1: 8, A2: 5})) == [("v1", 5, 7), ("another version", 8, 11)]
    verdict = judge(references(recorded, {A0: 3, A1: 12, A2: 5}), Require())
    assert verdict.case.attribution.method["a"] == "reference"
    assert [(g.ok, g.value) for g in verdict.gates if g.name == "scored"] == [(True, PROOF + 1)]  # streams scored


def test_tokens_of_another_version_are_neither_older_nor_newer_than_any() -> None:
    def exposed(*streams: dict) -> int:
        told = scored(lines(*(f"stream a {1600 + 100 * i}: x*10" for i in range(len(streams)))), *streams)
        (found,) = (g for g in judge(told, Require()).guarantees if g.name == "monotonic")
        assert found.violations == 0
        return found.exposed

    newest = {A0: "#" * 10, A1: "#" * 10, A2: "." * 10}
    another = dict.fromkeys((A0, A1, A2), "#.........")
    assert one(another) == [("another version", 0, 9)]
    assert exposed(newest, newest) == exposed(newest) + 1
    assert exposed(newest, another) == exposed(newest)


def test_one_early_stream_that_differs_takes_references_away() -> None:
    recorded = references(lines("stream a 1600: x*12"), {A0: 3, A1: 12, A2: 5}, spoil=4)
    assert trust(recorded).method == ""
    assert trust(recorded).because.startswith("0 tokens before the first swap")
    assert runs(recorded) == []


def test_a_stream_that_was_not_scored_says_nothing() -> None:
    recorded = scored(lines("stream a 1600: x*12", "stream a 1700: x*12"), {A0: "#" * 12, A1: "#" * 12, A2: "." * 12})
    assert runs(recorded, PROOF + 1) == []
    assert not open_case(recorded).attribution.judged[PROOF + 1]


def proven(*rows: list[float], more: dict | None = None) -> Trust:
    """What early streams with these margins against their own content prove; `more`: one stream of base."""
    recorded = lines("stream base 500: x*8")
    margins: dict = {i: {A0: np.array(row, np.float32)} for i, row in enumerate(rows)}
    margins |= {PROOF: {s: np.array(m, np.float32) for s, m in more.items()}} if more else {}
    return trust(replace(recorded, scores=Scores(margins, {}, ("a", "b", "base"), "")))


@pytest.mark.parametrize(
    ("early", "limits"),
    [
        ([0.0] * ENOUGH, (0.05, 0.5, 3.0)),
        ([0.0] * (ENOUGH - 1), None),
        ([0.0] * (ENOUGH - 1) + [np.nan] * 9, None),
        ([0.0] * ENOUGH + [np.nan] * 9, (0.05, 0.5, 3.0)),
        ([0.0, 0.1] * 100, (0.15, 0.6, 3.0)),
        ([0.0, 0.3] * 100, (0.45, 1.8, 4.5)),
        ([1.0] * ENOUGH, (1.5, 6.0, 15.0)),  # on the limit: rounding, if of a coarse engine
        ([0.0] * 196 + [1.25] * 4, (0.05, 0.5, 3.0)),  # two in a hundred beyond it are left to be accused
        ([0.0] * 195 + [1.25] * 5, None),
    ],
)
def test_early_margins_set_what_fits_what_excludes_and_what_is_nobodys(early: list, limits: tuple | None) -> None:
    found = proven(early[:120], early[120:])
    assert (found.method, found.margins) == (("margins", True) if limits else ("", False))
    seen = (found.tolerance, found.cut, found.alien)
    assert seen == pytest.approx(limits, rel=1e-6) if limits else np.isnan(seen).all()


@pytest.mark.parametrize(
    ("own", "other", "tolerance"),
    [
        ([1.25] * 8, {("b", "v0"): [1.0] * 8}, 0.05),  # b's from the first token to the last: no noise
        ([1.25] * 7, {("b", "v0"): [1.0] * 7}, None),  # too short to be anybody's: 7 of 207 are too many
        ([1.25] * 8, {("b", "v0"): [1.0] * 7 + [1.25]}, None),
        ([1.25] * 8, {}, None),
        ([1.0] * 8, {("b", "v0"): [0.0] * 8}, 1.5),  # nothing of it is beyond the limit
        ([0.0] * 7 + [1.25], {("b", "v0"): [0.0] * 8}, 0.05),
    ],
)
def test_an_early_stream_that_another_explains_is_no_noise(own: list, other: dict, tolerance: float | None) -> None:
    found = proven([0.0] * ENOUGH, more={BASE: own, **other})
    assert np.isnan(found.tolerance) if tolerance is None else found.tolerance == pytest.approx(tolerance)


def test_another_version_of_the_same_adapter_does_not_explain_an_early_stream() -> None:
    recorded = lines("stream a 500: x*8")
    rows = {0: {A0: np.zeros(ENOUGH, np.float32)}, PROOF: {A0: row("#" * 8), A1: row("." * 8)}}
    assert trust(replace(recorded, scores=Scores(rows, {}, ("a",), ""))).method == ""


def test_a_stream_is_early_when_it_ended_before_another_content_was_asked_for() -> None:
    h = history(
        "load a v0 0 1 ok\nload a v0 400 401 ok sham\nunload a 420 421 ok\nload a v9 450 460 fail\n"
        "load a v1 500 501 ok\nload a v2 900 901 ok\nstream a 10: x@499.999\nstream a 11: x@500\n"
        "stream a 12: x | unfinished\nstream base 13: x@999\nstream c 14: x"
    )
    assert early(h, range(5)) == {0: A0, 3: BASE}
    assert first_contents(h) == {"base": ("base", 2**62), "a": ("v0", ns(500))}


@pytest.mark.parametrize(("lead", "rest"), [(9, "another version"), (8, "explained by no version")])
def test_a_tear_is_possible_from_the_moment_another_content_is_asked_for(lead: int, rest: str) -> None:
    """Token 9 is read as v1 is invoked, at 1000 ms."""
    text = {A0: "." * lead + "#" * (20 - lead), A1: "#" * 20, A2: "#" * 20}
    assert one(text, sent=990) == [("v0", 0, lead - 1), (rest, lead, 19)]


def test_three_tokens_name_a_version_before_a_tear_and_two_at_the_end() -> None:
    assert one({A0: "...#...#..", A1: "#..#...#..", A2: "#..#...#.."}) == [("v0", 0, 2), ("another version", 3, 9)]
    assert one({A0: "........", A1: "#.......", A2: "......#."}) == [("v0", 6, 7)]
    assert one({A0: ".......#", A1: "#......#", A2: ".....#.#"}) == [("another version", 7, 7)]


def test_three_tokens_far_from_everybody_are_unexplained_and_two_are_not() -> None:
    assert one({A0: "....###..."}, sent=500) == [("v0", 0, 3), ("explained by no version", 4, 6)]
    three = {A0: "###.......", A1: "###...#...", A2: "###....#.."}
    assert one(three) == [("explained by no version", 0, 2)]
    assert one({s: t[:2] + "." + t[3:] for s, t in three.items()}) == [("another version", 0, 9)]


def test_what_lies_before_between_and_behind_named_tokens() -> None:
    tail = {A0: "....." + "#" * (RUN + 4), A1: "##..." + "#" * (RUN + 4), A2: "#....##" + "." * (RUN + 2)}
    assert one(tail) == [("v0", 0, 4), ("another version", 5, 6), ("v2", 7, RUN + 8)]
    hole = {A0: "....." + "#" * 9, A1: "##...####.####", A2: "#...." + "." * 9}
    assert one(hole) == [("v0", 0, 4), ("v2", 5, 13)]  # the token in between fits v1 as well, and v2 too
    behind = {A0: "....." + "#" * 10, A1: "##..." + "#" * 10, A2: "#...." + "." * 8 + ":#"}
    assert one(behind) == [("v0", 0, 4), ("v2", 5, 12), ("another version", 14, 14)]


def test_the_base_that_takes_over_counts_whole_and_in_a_row() -> None:
    text = {A0: ".....####.####", BASE: "#####........."}
    assert one(text, sent=500) == [("v0", 0, 4), ("base", 5, 13)]
    assert one({s: t + "#" for s, t in text.items()}, sent=500) == [("v0", 0, 4), ("base", 5, 13)]
    assert one({s: t[:12] for s, t in text.items()}, sent=500)[1:] == []  # six alone are few, but nobody else's either


def test_a_reference_says_nothing_after_its_first_difference_or_its_end() -> None:
    recorded = lines("stream a 1600: x*12")
    short = references(recorded, {A0: 3, A1: 12, A2: 5})
    cut = {s: r[:9] if s == A1 else r for s, r in short.scores.references[PROOF].items()}
    found = replace(short, scores=replace(short.scores, references={**short.scores.references, PROOF: cut}))
    assert runs(found) == [("v1", 5, 11)]
    same = {s: np.where(np.arange(12) == 4, -7, recorded.ids[-12:]) if s == A0 else r for s, r in cut.items()}
    again = replace(short, scores=replace(short.scores, references={**short.scores.references, PROOF: same}))
    assert runs(again) == [("v1", 5, 11)]  # v0 and v2 were excluded by tokens 4 and 5, whatever they say later


def at_limits(rows: dict[tuple[str, str], list[float]]) -> list[tuple[str, int, int]]:
    """Early margins of 0.5 nats: 0.75 still fits, over 3 excludes, over 7.5 is nobody's."""
    size = len(next(iter(rows.values())))
    found = scored(lines(f"stream a 1600: x*{size}"), {s: "." * size for s in rows}, early=0.5)
    known = trust(found)
    assert (known.tolerance, known.cut, known.alien) == (0.75, 3.0, 7.5)
    margins = {**found.scores.margins, PROOF: {s: np.array(m, np.float32) for s, m in rows.items()}}
    return runs(replace(found, scores=replace(found.scores, margins=margins)))


def test_a_margin_on_a_limit_excludes_nobody() -> None:
    def other(value: float, size: int) -> dict[tuple[str, str], list[float]]:
        return {A1: [value] * size, A2: [value] * size}

    assert at_limits({A0: [0.0] * 3 + [3.0] * 3, **other(9.0, 6)}) == [("v0", 0, 5)]
    assert at_limits({A0: [0.0] * 3 + [3.1] * 3, **other(9.0, 6)}) == [("v0", 0, 2), ("another version", 3, 5)]
    named = {A0: [0.0] * 5 + [9.0] * RUN, A1: [9.0] * (5 + RUN)}
    assert at_limits({**named, A2: [9.0] * 5 + [0.75] * RUN})[1:] == [("v2", 5, 4 + RUN)]
    assert at_limits({**named, A2: [9.0] * 5 + [0.76] * RUN})[1:] == [("another version", 5, 4 + RUN)]
    assert at_limits({A0: [7.5] * 3 + [0.0] * 3, **other(9.0, 6)}) == [("another version", 0, 5)]
    assert at_limits({A0: [7.6] * 3 + [0.0] * 3, **other(9.0, 6)}) == [("explained by no version", 0, 2)]
    assert at_limits({A0: [7.5] + [7.6] * 3 + [0.0] * 2, **other(9.0, 6)}) == [("another version", 0, 5)]


def test_what_scores_tell_apart_are_the_versions_of_scored_adapters() -> None:
    """b was not to be scored, though it was asked about a's streams; base has no versions."""
    text = {A0: "." * 10, A1: "#" * 10, A2: "#" * 10, ("b", "v0"): "#" * 10, BASE: "#" * 10}
    contents = open_case(scored(lines("stream a 1600: x*10"), text, adapters=("a", "base"))).look.line.contents
    both = [("a", "another version"), ("a", "explained by no version")]
    assert list(contents.labels) == [*both, A0, A1, A2, ("b", "v0")]
    assert contents.marked.tolist() == [True] * 5 + [False]
    hopeless = open_case(scored(lines("stream a 1600: x*10"), text, early=2.0)).look.line.contents
    assert (list(hopeless.labels), hopeless.marked.any()) == ([A0, A1, A2, ("b", "v0")], False)


def test_only_guarantees_over_all_tokens_are_blind_behind_a_tear() -> None:
    torn = {A0: ".....#...#", A1: "#....#..#.", A2: "#....#.#.."}
    verdict = judge(
        scored(lines("stream a 998: x*10", "stream a 1600: x*3"), torn, {A0: "###", A1: "###", A2: "..."}), Require()
    )
    words = "1 streams go on, after a tear, with tokens that no version explains alone"
    blind = {g.name for g in verdict.guarantees if g.because == words}
    assert blind == {"valid", "fresh", "ordered", "monotonic"}
    assert {g.name: g.status for g in verdict.guarantees}["complete"] == "PASS"


def test_a_stream_of_base_is_judged_when_all_of_it_is_explained_or_some_by_an_adapter() -> None:
    def judged(base: str, b: str = "#" * 20) -> tuple[bool, list[tuple[str, int, int]]]:
        found = scored(lines("stream base 1600: x*20"), {BASE: base, ("b", "v0"): b, A0: "#" * 20})
        return bool(open_case(found).attribution.judged[PROOF]), runs(found)

    assert judged("." * 20) == (True, [])
    assert judged("." * 19 + ":") == (True, [])  # nothing excludes the base
    assert judged("." * 10 + "#" * 10) == (False, [])
    assert judged("." * 10 + "#" * 10, "#" * 10 + "." * 10) == (True, [("b/v0", 10, 19)])


@pytest.mark.parametrize(("incomplete", "ok"), [("", True), ("the server was gone", False)])
def test_the_gate_of_scores_says_what_is_missing(incomplete: str, ok: bool) -> None:
    recorded = scored(lines("stream a 1600: x*3"), {A0: "###", A1: "###", A2: "..."})
    verdict = judge(replace(recorded, scores=replace(recorded.scores, incomplete=incomplete)), Require())
    (gate,) = (g for g in verdict.gates if g.name == "scored")
    assert (gate.ok, gate.value, gate.limit) == (ok, PROOF + 1, 0)
    assert gate.because == (trust(recorded).because if ok else f"not all streams were scored: {incomplete}")
    assert not [g for g in judge(history(SWAPS), Require()).gates if g.name == "scored"]
