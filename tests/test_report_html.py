"""report.html: complete, self-contained, small, and deaf to whatever a server puts into it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_maker as maker
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import history
from loadtest.report import html, timeline

HOSTILE = (
    "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m\u2028\u202e{{ 7*7 }}<!--",
    "'\"><svg onload=alert(3)>]]>&lt;",
)
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "rect"}


class Page(HTMLParser):
    """Elements and their attributes; fails on an element that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.blocks: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}>"
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.blocks:
            self.blocks[self.open[-1]].append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> history.History:
    return maker.write(tmp_path_factory.mktemp("run"), maker.Play())


@pytest.fixture(scope="module")
def page(recorded: history.History) -> str:
    extra = {"scenario": "title: <b>x</b>\n  a: 1", "meta": {"tool": "0.1", "machine": {"cores": 2}}}
    return html.render(maker.judge(recorded), recorded, "Hotfix tenant-a", extra)


def test_the_page_says_what_the_verdict_says(recorded: history.History, page: str) -> None:
    verdict, text = maker.judge(recorded), Page(page).text
    assert f"{verdict['status']}: stream-atomic is required" in text
    for name, g in verdict["guarantees"].items():
        assert name in text
        assert g["because"] in text
    for gate in verdict["gates"]:
        assert gate["because"] in text
    for swap in verdict["swaps"]["list"]:
        assert swap["op"] in text
    for g in verdict["guarantees"].values():
        for witness in g["witnesses"][:10]:
            assert witness["text"] in text
    for words in ("ITL around a swap", "TTFT around a swap", "Token rate over the run", "cores", "title: <b>x</b>"):
        assert words in text


def test_a_witness_shows_the_raw_ids_and_times_of_its_stream(recorded: history.History, page: str) -> None:
    witness = maker.judge(recorded)["guarantees"]["untorn"]["witnesses"][0]
    row = recorded.streams.name.index(witness["stream"])
    text = Page(page).text
    assert f"sent {recorded.streams.sent[row]} ns" in text
    first = int(recorded.ids[recorded.streams.start[row]])
    assert f"ids {first} ×" in text


def check_self_contained(page: str) -> Page:
    parsed = Page(page)
    for tag, attributes in parsed.found:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form"), tag
        assert not [a for a in attributes if a.startswith("on") or a in ("style", "src", "srcset", "action")], tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), attributes
    assert sum(tag == "script" for tag, _ in parsed.found) == 2
    assert not re.search(
        r"https?:|url\(|@import|fetch\(|XMLHttp|WebSocket|innerHTML|eval\(", "".join(html_blocks(parsed))
    )
    return parsed


def html_blocks(parsed: Page) -> list[str]:
    return parsed.blocks["style"] + parsed.blocks["script"][1:]


def test_the_page_is_self_contained_and_its_policy_names_its_own_blocks(page: str) -> None:
    parsed = check_self_contained(page)
    policy = next(a["content"] or "" for t, a in parsed.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    style, script = parsed.blocks["style"][0], parsed.blocks["script"][-1]
    for name, block in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    play = maker.Play(adapters=HOSTILE, words=HOSTILE[0], streams=80, swaps=6, quiet_s=2.0)
    recorded = maker.write(tmp_path_factory.mktemp("hostile"), play)
    verdict = maker.judge(recorded)
    verdict["guarantees"]["untorn"] |= {"because": HOSTILE[0], "status": "FAIL"}
    verdict["guarantees"][HOSTILE[0]] = dict(verdict["guarantees"]["untorn"])
    verdict["client"] = {"loop_lag_ms": {"p99": HOSTILE[1]}}
    extra = {"scenario": HOSTILE[0], "server_log_tail": HOSTILE[0], "meta": {HOSTILE[1]: {HOSTILE[0]: HOSTILE[1]}}}
    return html.render(verdict, recorded, HOSTILE[0], extra)


def test_hostile_text_stays_text(hostile: str) -> None:
    parsed = check_self_contained(hostile)
    assert "\x1b" not in hostile
    assert "\u2028" not in hostile
    assert "\u202e" not in hostile
    assert "49" not in next(w for w in parsed.words if "alert(1)" in w)  # templates do not run text
    assert "alert(1)" in parsed.text
    assert not [t for t, _ in parsed.found if t not in ALLOWED], "an element of foreign text"


TAGS = """html head meta title link style body header h1 h2 h3 nav a main section p span strong dl div dt dd table
caption thead tbody tr th td label select option button canvas ul li noscript details summary figure figcaption svg path
rect text pre code script"""
ALLOWED = frozenset(TAGS.split())


def test_the_embedded_data_reads_back_whole(hostile: str) -> None:
    raw = Page(hostile).blocks["script"][0]
    assert not set("<>&") & set(raw)
    data = json.loads(raw)
    assert len(data["streams"]) == 80
    assert any("alert(2)" in name for name in data["adapters"])


@pytest.mark.parametrize("missing", ["everything", *maker.KEYS])
def test_missing_keys_never_raise(recorded: history.History, missing: str) -> None:
    verdict = {} if missing == "everything" else {k: v for k, v in maker.judge(recorded).items() if k != missing}
    Page(html.render(verdict, recorded, "t"))


def test_a_run_that_recorded_nothing_renders(tmp_path: Path) -> None:
    recorded = maker.write(tmp_path, maker.Play(streams=0, swaps=1))
    text = Page(html.render(maker.judge(recorded), recorded, "t")).text
    assert "there is nothing to draw" in text


def timed(folder: Path, streams: int) -> tuple[str, float]:
    recorded = maker.write(folder, maker.Play(streams=streams, tokens=24, itl_ms=60.0, fail_every=50))
    verdict = maker.judge(recorded)
    begin = time.perf_counter()
    out = html.render(verdict, recorded, "t")
    return out, time.perf_counter() - begin


@pytest.mark.slow
def test_ten_thousand_streams_stay_small_and_no_slower_than_in_proportion(tmp_path: Path) -> None:
    timed(tmp_path / "warm", 100)
    _, small = timed(tmp_path / "small", 2_000)
    page, large = timed(tmp_path / "large", 10_000)
    assert len(page.encode()) < 5_000_000
    assert large < 12 * small
    note = json.loads(Page(page).blocks["script"][0])["note"]
    assert "of 10,000 streams are drawn" in note


@given(why=st.lists(st.sampled_from([0, 0, 0, 1, 8]), max_size=120))
def test_thinning_keeps_everything_that_has_something_to_show(why: list[int]) -> None:
    flags = np.array(why, np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "LIMIT", 40)
        rows, note = timeline.kept(flags)
        again, _ = timeline.kept(flags)
    assert rows.tolist() == again.tolist() == sorted(set(rows.tolist()))
    assert set(np.flatnonzero(flags).tolist()) <= set(rows.tolist())
    assert f"{len(rows):,}" in note
    assert len(rows) == len(flags) or len(rows) <= max(40, int((flags > 0).sum()) + 10)


def test_when_too_many_have_something_to_show_the_page_says_how_many_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "LIMIT", 20)
    monkeypatch.setattr(timeline, "HARD_LIMIT", 30)
    flags = np.full(100, timeline.MANY, np.int32)
    flags[97] |= timeline.WITNESS
    rows, note = timeline.kept(flags)
    assert len(rows) == 30
    assert 97 in rows
    assert "30 of 100 streams are drawn: 30 of the 100" in note


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8), data=st.data())
def test_segments_are_the_run_lengths_of_versions(lengths: list[int], data: Any, tmp_path_factory: Any) -> None:
    ids = [data.draw(st.lists(st.sampled_from([7, 1000, 1001, 2000]), min_size=n, max_size=n)) for n in lengths]
    recorded = maker.from_ids(tmp_path_factory.mktemp("seg"), ids)
    known = timeline.contents(recorded)
    parts = timeline.segments(recorded, known)
    for row, expected in enumerate(ids):
        mine = parts.of(row)
        told = [c for c, n in zip(parts.code[mine], parts.tokens[mine], strict=True) for _ in range(n)]
        assert [known.labels[c] if c >= 0 else None for c in told] == [maker.SERVED.get(i) for i in expected]
        assert not (np.diff(parts.code[mine]) == 0).any()


def test_colours_are_readable_in_both_themes() -> None:
    css = (html.ASSETS / "report.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    )
    for theme in (light, {**light, **dark}):
        for name in ("fg", "quiet", "pass", "fail", "unknown", "link"):
            for ground in ("bg", "panel"):
                assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)
        for name in ("c0", "c1", "c2", "c3"):
            assert contrast(theme[name], theme["bg"]) >= 3, name


def contrast(a: str, b: str) -> float:
    """WCAG's contrast ratio of two colours."""
    low, high = sorted(luminance(c) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_adapters_without_markers_are_drawn_as_the_judge_attributed_them(tmp_path: Path) -> None:
    recorded = maker.from_ids(tmp_path, [[7, 8, 9], [1000, 7]])
    recorded = replace(recorded, scores=replace(recorded.scores, adapters=("a",)))
    known = timeline.contents(recorded)
    code = np.array([1, 1, 0, -1, 2], np.int32)
    told = timeline.attributed(recorded, known, [("a", "v0"), ("a", "v1"), ("a", "another")], code)
    parts = timeline.segments(recorded, known, told)
    assert [timeline.told(parts, known, i) for i in (0, 1)] == ["v1 ×2 → v0 ×1", "no marker ×2"]
    assert timeline.told(timeline.segments(recorded, known), known, 1) == "v0 ×1 → no marker ×1"
