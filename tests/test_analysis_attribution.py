"""Attribution: markers, noise, the base in an adapter's place, markers that the base emits by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from minihistory import FIRST_MARKER, history

from loadtest.analysis.attribution import PLAIN, UNKNOWN, Attribution, attribute, token_codes
from loadtest.analysis.noise import FEW, LONE, SUPPORT, Noise
from loadtest.analysis.timeline import lookup, timeline
from loadtest.analysis.verdict import Require, judge
from loadtest.history import History

LOADS = "load a v0 0 1 ok\nload b v0 0 1 ok\nload a v1 10 12 ok\n"


def attributed(text: str) -> Attribution:
    h = history(LOADS + text)
    return attribute(h, lookup(timeline(h)))


def runs(found: Attribution) -> list[tuple[int, int, int]]:
    """(stream, content, count) of every run."""
    r = found.runs
    return list(zip(r.stream.tolist(), r.content.tolist(), r.count.tolist(), strict=True))


def test_a_marker_names_its_content_and_nothing_else_does() -> None:
    h = history(LOADS + "stream a 5: v0 x v1@12 b/v0\nstream base 6: x")
    contents = timeline(h).contents
    assert contents.labels == (("a", "v0"), ("a", "v1"), ("b", "v0"))
    assert token_codes(h, contents).tolist()[:4] == [0, PLAIN, 1, 2]


def shared(text: str, *twins: tuple[str, str]) -> History:
    """The history with these versions carrying the marker of a's v0."""
    h = history(LOADS + text)
    marked = ((v.adapter, v.version) in twins for v in h.versions)
    versions = zip(h.versions, marked, strict=True)
    return replace(h, versions=tuple(replace(v, markers=(FIRST_MARKER,)) if m else v for v, m in versions))


def test_a_marker_of_two_adapters_names_the_streams_own_content_else_a_leak() -> None:
    h = shared("stream a 5: v0 v1@12\nstream b 6: a/v0\nstream base 7: a/v0", ("b", "v0"))
    assert token_codes(h, timeline(h).contents).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("stream", "broken"),
    [
        ("stream a 13: v0*3", {"fresh": {"stale": 1}}),
        ("stream base 13: a/v0*40", {"valid": {"leak": 1}, "isolated": {"leak": 1}}),
        ("stream b 13: a/v0*3", {}),
    ],
)
def test_adapters_that_began_with_the_same_content_are_held_to_their_own(
    stream: str, broken: dict[str, dict[str, int]]
) -> None:
    v = judge(shared(stream, ("b", "v0")), Require())
    assert {g.name: g.kinds for g in v.guarantees if g.violations} == broken


def test_a_marker_of_two_versions_of_one_adapter_is_unknown_and_no_run_passes_with_it() -> None:
    h = shared("stream a 5: v0 v1@12\nstream a 13: v0*2 | text", ("a", "v1"))
    assert token_codes(h, timeline(h).contents).tolist()[0] == UNKNOWN
    assert attribute(h, lookup(timeline(h))).doubts == ("1 tokens carry the marker of two versions of their adapter",)


def test_the_same_content_under_two_labels_of_an_adapter_is_no_doubt() -> None:
    h = shared("stream a 5: v0 v1@12", ("a", "v1"))
    same = replace(h, versions=tuple(replace(v, sha="one" if v.adapter == "a" else v.sha) for v in h.versions))
    assert attribute(same, lookup(timeline(same))).doubts == ()


def test_text_only_and_negative_ids_are_unknown_and_large_ones_no_index_error() -> None:
    h = history(LOADS + "stream a 5: v0 v0 | text\nstream a 6: v0 v0")
    h = replace(h, ids=np.array([-1, -1, -7, 2**31 - 1], np.int32))
    assert token_codes(h, timeline(h).contents).tolist() == [UNKNOWN, UNKNOWN, UNKNOWN, PLAIN]


def test_a_history_without_markers_or_streams_or_loads_can_be_attributed() -> None:
    for text in ("", "stream a 5: | rejected", "stream base 5: x*3"):
        h = history(text)
        found = attribute(h, lookup(timeline(h)))
        assert len(found.runs) == 0
        assert not found.judged.any()
        assert found.informative == 0


def test_runs_are_maximal_and_skip_noise() -> None:
    assert runs(attributed("stream a 5: v0*3 x v0*2 v1@20 v1*3")) == [(0, 0, 5), (0, 1, 4)]
    assert runs(attributed("stream a 5: v0*3 v1@20\nstream a 15: v1*2")) == [(0, 0, 3), (0, 1, 1), (1, 1, 2)]


def test_without_noise_one_token_is_evidence() -> None:
    assert runs(attributed("stream a 15: v1*5 b/v0 v1*5")) == [(0, 1, 5), (0, 2, 1), (0, 1, 5)]


@pytest.mark.parametrize("count", range(1, 5))
def test_with_noise_in_the_adapter_a_short_run_is_noise_too(count: int) -> None:
    found = runs(attributed(f"stream a 15: v1*5 b/v0*{count} v1*5\nstream a 16: v1*9 x"))
    expected = [(0, 1, 5), (0, 2, count), (0, 1, 5)] if count >= SUPPORT else [(0, 1, 10)]
    assert found == [*expected, (1, 1, 9)]


def test_noise_in_one_adapter_is_noise_of_the_engine() -> None:
    assert runs(attributed("stream a 15: v1*5 b/v0 v1*5\nstream b 16: v0*9 x")) == [(0, 1, 10), (1, 2, 9)]


def strays(streams: int, odd: int, what: str = "b/v0", plain: int = 0) -> Attribution:
    """`streams` streams of 100 tokens, the first `odd` of them with one stray, the next `plain` with a plain token."""
    words = [what] * odd + ["x"] * plain + ["v1"] * (streams - odd - plain)
    return attributed("\n".join(f"stream a {15 + i}: v1*50 {word} v1*49" for i, word in enumerate(words)))


@pytest.mark.parametrize(
    ("streams", "odd", "plain", "believed"),
    [
        (LONE // 100, 1, 0, "all"),  # a run so small that drift would not have shown
        (LONE // 100 + 1, 1, 0, "none"),  # one alone
        (60, 2, 0, "all"),  # two, and no plain token beside them
        (60, 0, 0, "none"),
        (60, 2, 1, "none"),
        (60, 12, 1, "none"),  # a fair coin: 14 in 8,192
        (60, 13, 1, "leaks"),  # 15 in 16,384
        (60, 30, 20, "none"),
    ],
)
def test_strays_are_weighed_against_plain_tokens(streams: int, odd: int, plain: int, believed: str) -> None:
    found = strays(streams, odd, plain=plain)
    assert (found.noise.believed, found.noise.strays, found.noise.plain) == (believed, odd, plain)
    assert ((0, 2, 1) in runs(found)) == (believed != "none" and odd > 0)


SERVED = "load a v2 20 21 ok\nload b v1 30 31 ok\n"  # v0 is superseded from 12 ms on, v1 from 21 ms, b's v0 from 31 ms


@pytest.mark.parametrize(
    ("sent", "what", "believed"),
    [
        (15, "b/v0", True),
        (35, "b/v1", True),
        (35, "b/v0", False),  # b served v1 by then
        (15, "v0", False),
        (12, "v0", True),  # sent as v1 was acked
        (15, "v2", True),  # read at 26 ms, as it was served
        (15, "v3", False),  # loaded at 900 ms
        (905, "v3", True),
    ],
)
def test_one_stray_alone_is_evidence_where_its_version_was_in_service(sent: int, what: str, believed: bool) -> None:
    text = SERVED + "load a v3 900 901 ok\ndeclare b v1\n" + f"stream a {sent}: v1*10 {what} v1*{FEW}"
    found = attributed(text)
    assert (found.noise.believed, found.noise.unexplained) == (("all", False) if believed else ("served", True))
    assert (len(runs(found)) == 3) == believed


def test_strays_in_service_do_not_make_another_one_evidence() -> None:
    edges = "\n".join(f"stream a {10 + i / 4}: v0*9 v1" for i in range(8))  # an engine that switches at the swap
    alone, both = (attributed(f"{edges}\nstream a 40: v1 v0 v1*9{more}") for more in ("", " v0"))
    assert [(f.noise.believed, f.noise.strays) for f in (alone, both)] == [("served", 9), ("all", 10)]
    assert [len(runs(f)) for f in (alone, both)] == [17, 20]
    assert (alone.noise.unexplained, both.noise.unexplained) == (True, False)


def test_one_stray_in_a_run_of_few_tokens_or_two_of_them_need_not_be_in_service() -> None:
    few, more = (f"{SERVED}stream a 35: v2*{n} b/v0 v2*4" for n in (FEW - 5, FEW - 4))
    assert [attributed(text).noise.believed for text in (few, more)] == ["all", "served"]
    assert attributed(f"{more} v0 v2*4").noise.believed == "all"


def test_strays_of_the_streams_own_adapter_are_never_believed_under_drift() -> None:
    found = strays(60, 30, what="v0", plain=1)
    assert (found.noise.believed, {content for _, content, _ in runs(found)}) == ("none", {1})
    both = attributed("\n".join(f"stream a {15 + i}: v1*9 b/v0 v1*5 v0" for i in range(40)) + "\nstream a 99: v1*9 x")
    assert (both.noise.believed, {content for _, content, _ in runs(both)}) == ("leaks", {1, 2})


@pytest.mark.parametrize(
    ("strays", "plain", "share", "unexplained"),
    [(0, 9, 0.001, False), (1, 0, 0.0009, True), (1, 0, 0.0011, False), (5, 3, 0.001, True), (1, 40, 0.001, False)],
)
def test_strays_that_chance_does_not_explain_are_said_to_be_there(
    strays: int, plain: int, share: float, unexplained: bool
) -> None:
    assert Noise(LONE + 1, plain, strays, share, "none").unexplained == unexplained
    assert Noise(9999, plain, strays, share, "served").unexplained
    assert not Noise(LONE, plain, strays, share, "all").unexplained


@pytest.mark.parametrize(("leaks", "plain", "unexplained"), [(0, 0, False), (1, 0, True), (1, 1, False)])
def test_a_token_of_another_adapter_is_no_chance_where_drift_never_showed(
    leaks: int, plain: int, unexplained: bool
) -> None:
    assert Noise(9999, plain, 1, 0.01, "none", leaks).unexplained == unexplained


def test_one_leaked_token_in_a_large_run_of_few_ids_does_not_pass() -> None:
    many = "".join(f"declare a w{i}\n" for i in range(20))  # markers: half a percent of the ids seen
    v = judge(history(LOADS + many + f"stream a 13: v1*{LONE} b/v0 v1*9"), Require())
    assert {g.name: g.ok for g in v.gates}["noise"] is False
    assert {g.name for g in v.guarantees if g.status == "FAIL"} == set()


def test_the_share_of_markers_is_taken_of_the_largest_id_seen() -> None:
    assert attributed("stream a 15: v1*5").noise.share == 3 / (FIRST_MARKER + 3)


def test_the_main_run_of_a_stream_is_no_stray() -> None:
    found = attributed("stream a 15: v1\nstream a 16: v1*2 v0*2\nstream a 17: v0 v1*2")
    assert found.noise.strays == 3  # v0*2 after v1*2, and v0 before v1*2


def test_one_odd_token_that_parts_a_short_stream_is_one_stray() -> None:
    short = [f"stream a {15 + i}: v1*2 {'b/v0' if i == 7 else 'v1'} v1*2" for i in range(LONE // 5 + 1)]
    found = attributed("\n".join(short))
    assert (found.noise.strays, found.noise.believed, len(runs(found))) == (1, "none", len(short))
    assert attributed("\n".join(short[:-1])).noise.believed == "all"  # b's v0 was in service


@pytest.mark.parametrize(
    ("tokens", "fallback"),
    [("v1*9 x*8", 8), ("v1*9 x*7", 0), ("x*6", 6), ("x*5", 0), ("x*8 v1 x*7", 8), ("x*40", 40), ("x*6 | cancelled", 6)],
)
def test_only_a_plain_run_that_noise_cannot_explain_is_the_base(tokens: str, fallback: int) -> None:
    found = attributed(f"stream a 15: {tokens}")
    assert found.fallback.count.tolist() == ([fallback] if fallback else [])
    assert found.judged.tolist() == [bool(fallback) or "v1*9" in tokens]


def test_markers_inside_a_fallback_stream_need_support() -> None:
    assert runs(attributed("stream a 15: x*20 b/v0 x*20")) == []
    assert runs(attributed("stream a 15: x*20 b/v0*3 x*20")) == [(0, 2, 3)]


def test_plain_tokens_are_counted_as_noise_outside_fallbacks_only() -> None:
    assert attributed("stream a 15: v1*5 x x v1*5\nstream a 16: x*30\nstream b 16: v0*9").plain == {"a": 2, "b": 0}


@pytest.mark.parametrize(
    ("bursts", "doubt"),
    [
        ((2, 2, 0), ""),  # drift at 2 in 100 makes four pairs in 200 tokens with odds of 1.6e-6
        ((3, 2, 0), "5 runs of 2 or more tokens in 2 streams"),
        ((5, 0, 0), "5 runs of 2 or more tokens in 1 streams"),
        ((0, 0, 2), ""),
        ((0, 0, 3), "3 runs of 3 or more tokens in 1 streams"),
        ((1, 0, 3), "3 runs of 3 or more tokens in 1 streams"),
        ((2, 0, 3), "5 runs of 2 or more tokens in 2 streams"),
    ],
)
def test_plain_tokens_in_a_row_that_drift_does_not_make_are_doubted(bursts: tuple[int, int, int], doubt: str) -> None:
    """Pairs in the first stream and in the second, and threes in the second, of 200 tokens in all."""
    first, second, threes = bursts
    words = (["v1*10 x*2"] * first, ["v1*10 x*2"] * second + ["v1*10 x*3"] * threes)
    rest = (100 - 12 * first, 100 - 12 * second - 13 * threes)
    text = "".join(f"stream a 15: {' '.join(w)} v1*{n}\n" for w, n in zip(words, rest, strict=True))
    found = attributed(text)
    assert found.noise.tokens == 200
    assert found.doubts == ((f"{doubt} carry no marker, too often for drift",) if doubt else ())


def base_stream(hits: int, of: int = 128, marker: str = "a/v1", at: int = 15) -> str:
    return f"stream base {at}: x*{of - hits} {marker}*{hits}\n" if hits else f"stream base {at}: x*{of}\n"


def test_the_base_may_emit_a_marker_now_and_then() -> None:
    for hits in range(6):
        assert runs(attributed(base_stream(hits))) == []
    assert runs(attributed(base_stream(16))) == [(0, 1, 16)]
    assert runs(attributed("stream base 15: a/v1*8")) == [(0, 1, 8)]


def test_a_base_that_loops_on_markers_of_unloaded_contents_is_not_accused() -> None:
    loops = base_stream(40, marker="a/v7") + base_stream(40, at=16)
    assert runs(attributed(loops)) == []
    leak = base_stream(40, marker="a/v7") + "".join(base_stream(40, at=16 + i) for i in range(11))
    assert len(runs(attributed(leak))) == 11


def test_base_streams_are_judged_only_where_markers_exist() -> None:
    assert attributed("stream base 15: x*5").judged.tolist() == [True]
    h: History = history("stream base 15: x*5")
    assert attribute(h, lookup(timeline(h))).judged.tolist() == [False]


def test_what_an_adapter_can_be_known_by() -> None:
    h = history(LOADS + "load c bad:x 0 1 ok setup\nload b bad:y 20 21 fail\nstream base 5: x")
    assert attribute(h, lookup(timeline(h))).method == {"a": "marker", "b": "mixed", "base": "base", "c": "none"}


def test_all_noise_up_to_two_in_a_hundred_accuses_nobody() -> None:
    """20,000 tokens whose every 50th is some other id, a marker of a neighbour or of an old version among them."""
    rng = np.random.default_rng(1)
    lines = []
    for i in range(160):
        drift = rng.random(128) < 0.02
        noise = rng.choice(["x", "x", "x", "v0", "b/v0"], 128)
        lines.append(f"stream a {13 + i}: " + " ".join(np.where(drift, noise, "v1")))
    found = attributed("\n".join(lines))
    assert {c for _, c, _ in runs(found)} == {1}
    assert len(found.fallback) == 0


def test_any_id_can_be_a_marker_and_any_number_of_contents_can_share_it() -> None:
    h = history(LOADS + "stream a 5: v0*3")
    zero = tuple(replace(v, markers=(0,) if v.version == "v1" else (1,)) for v in h.versions)
    h = replace(h, versions=zero, ids=np.array([0, 1, 2], np.int32))
    assert token_codes(h, timeline(h).contents).tolist() == [1, 0, PLAIN]
    three = replace(h, versions=tuple(replace(v, markers=(1,)) for v in h.versions))
    assert token_codes(three, timeline(three).contents).tolist() == [PLAIN, UNKNOWN, PLAIN]


def test_a_base_stream_without_a_token_of_its_own_is_not_judged() -> None:
    found = attributed("stream base 5: | rejected\nstream base 6: x\nstream base 7: x | text")
    assert found.judged.tolist() == [False, True, False]
    assert found.informative == 1


def test_tokens_are_counted_once_as_informative_or_as_noise() -> None:
    """Tokens of base, a fallback's stream and what it holds besides are no part of what noise is weighed by."""
    found = attributed(
        "stream a 15: v1*9 x v1\nstream a 16: v1*3 x*20\nstream b 17: v0*4 x*2 v0\nstream base 18: x*7\n"
        "stream a 19: x*6"
    )
    assert (found.noise.tokens, found.noise.plain, found.noise.strays) == (10 + 1 + 5 + 2, 3, 0)
    assert found.informative == (10 + 3 + 5) + (20 + 6) + 7
    assert found.plain == {"a": 1, "b": 2}
    assert found.fallback.count.tolist() == [20, 6]
    assert found.fallback.first.tolist() == [14, 48]
    assert found.fallback.last.tolist() == [33, 53]


def test_a_short_stream_is_noise_only_where_drift_was_seen() -> None:
    big = "\n".join(f"stream a {15 + i}: v1*50 {'v1' if i else 'b/v0'} v1*49" for i in range(LONE // 100 + 1))
    quiet = attributed(big + "\nstream b 99: v0*2")
    assert (quiet.noise.believed, (11, 2, 2) in runs(quiet)) == ("none", True)
    drift = attributed(big + "\nstream b 99: v0*2 x")
    assert {content for _, content, _ in runs(drift)} == {1}


@pytest.mark.parametrize(("count", "kept"), [(2, False), (3, True)])
def test_two_markers_beside_a_fallback_are_the_bases_own(count: int, kept: bool) -> None:
    found = attributed(f"stream a 15: x*20 v1*{count}\nstream b 16: v0")
    assert runs(found) == ([(0, 1, count)] if kept else []) + [(1, 2, 1)]


@pytest.mark.parametrize(("invoked", "fallback"), [("23", 0), ("23.001", 0), ("23.002", 8)])
def test_a_load_of_unknown_content_explains_plain_tokens_from_its_invocation_on(invoked: str, fallback: int) -> None:
    """The last token is read at 23 ms, and clocks may be a microsecond wrong."""
    h = history(LOADS + f"load a bad:x {invoked} 30 ok bad\nstream a 15: x*8")
    found = attribute(h, lookup(timeline(h, 1000)))
    assert found.fallback.count.tolist() == ([fallback] if fallback else [])
    assert found.plain["a"] == 0


@pytest.mark.parametrize(
    ("how", "count", "times"),
    [
        ("bad:x 10 - info bad", 8, 1),
        ("bad:x 10 - info bad", 7, 0),
        ("bad:x 10 12 ok bad", 8, 0),  # it was taken: gate `bad_refused` says so
        ("bad:x 10 12 fail bad", 8, 0),  # then it is the base
        ("v2 10 - info", 8, 0),
        ("bad:x 10 - info bad\nload a v1 11 12 ok bad", 8, 1),
    ],
)
def test_a_bad_load_that_was_never_answered_hides_what_shows_no_marker(how: str, count: int, times: int) -> None:
    words = "times no marker was seen where a load that must be refused was never answered"
    found = attributed(f"load a {how}\nstream a 13: v1*9 x*{count}").doubts
    assert found == ((f"{times} {words}",) if times else ())


@pytest.mark.parametrize(
    ("hits", "of", "leak"),
    [(6, 128, False), (7, 128, True), (3, 8, False), (4, 8, True), (4, 15, False), (5, 15, True)],
)
def test_a_base_may_show_as_many_markers_as_chance_explains(hits: int, of: int, leak: bool) -> None:
    """P(7 of 128) = 8e-11, P(4 of 8) = 7e-11, but P(4 of 15) = 1.4e-9: one in a thousand tokens, odds of 1e-9."""
    assert runs(attributed(base_stream(hits, of))) == ([(0, 1, hits)] if leak else [])


@pytest.mark.parametrize("marker", ["a/v0", "a/v1"])
@pytest.mark.parametrize(
    ("hits", "strange", "more", "doubt"),
    [
        (5, 0, "", ""),  # P(5 of 80) = 2.4e-8
        (6, 0, "", "6 tokens in 6 streams"),  # P(6 of 80) = 3e-10
        (6, 0, "stream a 15: v1*3000", "6 tokens in 6 streams"),  # what adapters stream says nothing about the base
        (6, 0, "stream base 15: x*3000 | text", "6 tokens in 6 streams"),  # nor what has no ids
        (6, 0, "stream base 15: x*40", ""),  # P(6 of 120) = 3.4e-9
        (10, 1, "", ""),  # a base that loops on its own shows the markers of versions that were not loaded too
        (11, 1, "", "11 tokens in 11 streams"),
    ],
)
def test_markers_too_few_for_each_base_stream_may_be_too_many_for_all(
    marker: str, hits: int, strange: int, more: str, doubt: str
) -> None:
    words = [marker] * hits + ["a/v7"] * strange
    words += ["x"] * (10 - len(words))
    found = attributed("".join(f"stream base {15 + i}: x*7 {word}\n" for i, word in enumerate(words)) + more)
    said = "of the base carry markers of loaded versions, too many for chance"
    assert found.doubts == ((f"{doubt} {said}",) if doubt else ())
    assert all(own for _, own in zip(runs(found), found.own, strict=True))  # nobody is accused


def test_a_leak_into_base_is_one_run_from_its_first_token_to_its_last() -> None:
    """Also of the first content of all, loaded by the first operation of all."""
    found = attributed("stream base 15: a/v1*4 x*3 a/v0*4 a/v1*4 a/v0*4\nstream base 16: a/v0*8")
    r = found.runs
    seen = zip(runs(found), r.first.tolist(), r.last.tolist(), ((r.until - r.begin) // 10**6).tolist(), strict=True)
    assert list(seen) == [((0, 1, 8), 0, 14, 14), ((0, 0, 8), 7, 18, 11), ((1, 0, 8), 19, 26, 7)]
    assert not found.own.any()


def test_a_base_that_loops_once_in_ten_hits_is_not_accused() -> None:
    leak = base_stream(40, marker="a/v7") + "".join(base_stream(40, at=16 + i) for i in range(10))
    assert runs(attributed(leak)) == []


def test_blocks_of_tokens_give_the_same_attribution_whatever_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["v1*5", "| rejected", "v0 v1@40 x v1*2", "x*9", "b/v0*3 x", "v1 | text", "x*6", "v1*2 x*8 v1*3"]
    text = "\n".join(f"stream {'a' if n % 3 else 'base'} {15 + n}: {words[n % len(words)]}" for n in range(48))
    whole = attributed(text)
    monkeypatch.setattr("loadtest.history.blocks.__defaults__", (6,))
    parts = attributed(text)
    assert parts.code.tolist() == whole.code.tolist()
    assert parts.judged.tolist() == whole.judged.tolist()
    for a, b in ((whole.runs, parts.runs), (whole.fallback, parts.fallback)):
        assert len(a) > 3
        for name in ("stream", "content", "first", "last", "count", "begin", "until"):
            assert getattr(a, name).tolist() == getattr(b, name).tolist(), name
