"""Attribution by scores: literal margins in, contents out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from minihistory import history

from loadtest.analysis.case import open_case
from loadtest.analysis.margins import RUN
from loadtest.analysis.trust import ENOUGH, PROOF, trust
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
    assert [g.ok for g in verdict.gates if g.name == "scored"] == [bool(method)]
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
    assert open_case(references(recorded, {A0: 3, A1: 12, A2: 5})).attribution.method["a"] == "reference"


def test_one_early_stream_that_differs_takes_references_away() -> None:
    recorded = references(lines("stream a 1600: x*12"), {A0: 3, A1: 12, A2: 5}, spoil=4)
    assert trust(recorded).method == ""
    assert runs(recorded) == []


def test_a_stream_that_was_not_scored_says_nothing() -> None:
    recorded = scored(lines("stream a 1600: x*12", "stream a 1700: x*12"), {A0: "#" * 12, A1: "#" * 12, A2: "." * 12})
    assert runs(recorded, PROOF + 1) == []
    assert not open_case(recorded).attribution.judged[PROOF + 1]
