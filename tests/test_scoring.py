"""Adapters without markers on the embedded server: scored after the traffic, judged from the files alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import orjson
import pytest
from embedded import Embedded, embedded
from locust_run import Locust
from peft_maker import Recipe, make

from loadtest import harness, history, records, undo
from loadtest.analysis.case import Case, open_case
from loadtest.analysis.margins import SUPPORT
from loadtest.analysis.timeline import ANOTHER
from loadtest.analysis.trust import trust
from loadtest.analysis.versions import untorn
from loadtest.journal import encode
from loadtest.probe import cache_dir
from loadtest.scenario import load
from loadtest.scorer import needed
from loadtest.server.base import ensure_base

HEADLESS = ("--headless", "--only-summary")
OWN = """
title: Adapters of one's own
target: {{url: embedded, swap: {swap}, step_ms: 5}}
{attribution}
adapters:
  tenant-a: {{versions: {versions}}}
  tenant-b: {{versions: {bystander}}}
traffic:
  users: 8
  mix: {{tenant-a: 5, tenant-b: 2, base: 1}}
  prompts: {{synthetic: {{tokens: 8..24}}}}
  max_tokens: 24..40
phases:
  - {{arm: aa, for: 3s}}
  - {{arm: real, hotfix: tenant-a, every: 400ms..600ms, count: 6}}
  - {{arm: aa, for: 1s}}
require: {{level: stream-atomic, min_swaps: 2}}
"""


def run(tmp_path: Path, swap: str, versions: str, bystander: str, attribution: str = "auto") -> Locust:
    path = tmp_path / "own.yaml"
    path.write_text(
        OWN.format(swap=swap, versions=versions, bystander=bystander, attribution=f"attribution: {attribution}")
    )
    locust = Locust(tmp_path, str(path), *HEADLESS)
    try:
        locust.exit_code(170)
        assert locust.nothing_left()
    finally:
        locust.kill()
    return locust


def listed(folders: list[Path]) -> str:
    return "[" + ", ".join(f"{{id: v{i}, path: {path}}}" for i, path in enumerate(folders)) + "]"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Locust:
    """Random adapters on a server that switches running streams over: they are torn."""
    folder, base = tmp_path_factory.mktemp("own"), ensure_base(cache_dir())
    folders = [make(base, folder / f"a{i}", i, Recipe(gain=0.3)) for i in range(4)]
    return run(folder, "switch", listed(folders[:3]), listed(folders[3:]))


@pytest.mark.slow
def test_streams_of_ones_own_adapters_are_attributed_and_tears_found(own: Locust) -> None:
    verdict = own.verdict()
    assert verdict["tokens"]["method"] == {"base": "base", "tenant-a": "reference", "tenant-b": "reference"}
    assert verdict["guarantees"]["untorn"]["status"] == "FAIL"
    assert verdict["guarantees"]["valid"]["violations"] == 0
    assert verdict["guarantees"]["isolated"]["violations"] == 0
    gates = {g["name"]: g["status"] for g in verdict["gates"]}
    assert gates["scored"] == gates["attributable"] == "ok"
    assert verdict["guarantees"]["fresh"]["violations"] == 0


@pytest.mark.slow
def test_no_pinned_copy_is_left_and_each_was_on_record_before_its_load(own: Locust) -> None:
    lines = [orjson.loads(line) for line in (own.run / "scores.jsonl").read_bytes().splitlines()]
    states: dict[str, list[str]] = {}
    for line in lines:
        if line["kind"] == "pin":
            states.setdefault(line["name"], []).append(line["state"])
    assert len(states) == 4
    for name, found in states.items():
        assert "--" in name
        assert found == ["planned", "loaded", "unloaded"] * (len(found) // 3)
    assert lines[-1]["kind"] == "scored"
    assert lines[-1]["incomplete"] == ""


@pytest.mark.slow
def test_the_verdict_is_recomputed_from_the_files_alone(own: Locust, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(own.run, copy, ignore=shutil.ignore_patterns("adapters", "versions"))
    (copy / "verdict.json").unlink()
    harness.judge(copy)
    assert json.loads((copy / "verdict.json").read_text()) == own.verdict()
    (copy / "scores.jsonl").unlink()
    harness.judge(copy)
    bare = json.loads((copy / "verdict.json").read_text())
    assert bare["status"] == "UNKNOWN"
    assert [g["status"] for g in bare["gates"] if g["name"] == "attributable"] == ["failed"]


def _edge(recorded: history.History, named: list[str], stream: int) -> int:
    """Tokens of the version that a stream begins, or ends, with, whichever are fewer."""
    start = int(recorded.streams.start[stream])
    names = named[start : start + int(recorded.streams.tokens[stream])]
    return min(len(list(takewhile(names[end].__eq__, names[:: 1 + 2 * end]))) for end in (0, -1))


@pytest.mark.slow
def test_markers_and_margins_agree_on_the_same_streams(tmp_path: Path) -> None:
    """The margins know nothing of the markers; where both name a token they name the same content."""
    folder = run(tmp_path, "switch", "markers 3", "markers 1", "margins").run
    recorded = history.load(folder)
    assert trust(recorded).method == "margins"
    by_scores = open_case(recorded)
    by_markers = open_case(replace(recorded, scores=history.NO_SCORES))
    a, b = (_contents(case) for case in (by_scores, by_markers))
    named = [(x, y) for x, y in zip(a, b, strict=True) if x and y]
    assert len(named) > 0.95 * sum(1 for y in b if y)
    # `another version` is what margins say of the few tokens after a tear that are too few to name it.
    assert {(x, y) for x, y in named if x != y} <= {(f"tenant-a/{ANOTHER}", f"tenant-a/v{i}") for i in range(3)}
    assert sum(x == y for x, y in named) > 0.9 * len(named)
    scored, marked = (set(np.flatnonzero(untorn(case).flagged).tolist()) for case in (by_scores, by_markers))
    assert scored <= marked
    assert len(scored) >= 0.7 * len(marked) > 0
    assert all(_edge(recorded, b, s) < SUPPORT for s in marked - scored)  # rule 2 of margins.py: too few to name one


def _contents(case: Case) -> list[str]:
    """What each token is called, "" where nobody can say."""
    names = case.look.line.contents.labels
    return ["/".join(names[c]) if c >= 0 else "" for c in case.attribution.code.tolist()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Embedded]:
    with embedded(ensure_base(cache_dir()), tmp_path / "server") as found:
        yield found


def test_a_copy_that_a_killed_scoring_left_is_unloaded_at_the_next_start(server: Embedded, tmp_path: Path) -> None:
    base = ensure_base(cache_dir())
    folder = tmp_path / "results" / "killed"
    folder.mkdir(parents=True)
    assert server.load("a--12345678", make(base, tmp_path / "a", 1)).status == 200
    assert server.load("mine", make(base, tmp_path / "b", 2)).status == 200
    gone, living = 2**22 + 1, os.getppid()  # above Linux's largest process number
    pin = records.Pin("a--12345678", "a", "v0", "/a", "loaded", server.url, gone, undo.boot_id())
    busy = replace(pin, name="mine", pid=living)
    (folder / "scores.jsonl").write_bytes(encode(pin) + encode(busy))
    assert [p.name for _, p in undo.pins(folder.parent, server.url)] == ["a--12345678"]
    undo.play(folder.parent, server.url, {}, lambda line: None)
    assert [c["id"] for c in server.call("GET", "/v1/models").json["data"]] == ["base", "mine"]
    assert undo.pins(folder.parent, server.url) == []


@pytest.mark.parametrize(
    ("choice", "marked", "reason", "expected"),
    [
        ("auto", True, "complete", False),
        ("auto", False, "complete", True),
        ("auto", False, "interrupted", False),
        ("auto", False, "target_died", False),
        ("margins", True, "run_time", True),
        ("markers", False, "complete", False),
        ("none", False, "complete", False),
    ],
)
def test_streams_are_scored_only_where_that_can_say_something(
    choice: str, marked: bool, reason: str, expected: bool, tmp_path: Path
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"adapters: {{a: {{}}}}\nphases: [{{arm: aa, for: 1s}}]\nattribution: {choice}\n")
    assert needed(load(path), marked, reason) is expected
