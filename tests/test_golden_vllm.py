"""Histories recorded from a real vLLM 0.32.0 (CPU), with pinned verdicts, and witnesses checked against the raw ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from pinned import unpacked

from loadtest import history
from loadtest.analysis.verdict import Require, Verdict, judge
from loadtest.history import History


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scenarios/vllm-cpu.yaml: 20 real hotfixes, a busy machine."""
    return unpacked("vllm-torn", tmp_path_factory.mktemp("torn"))


def violations(verdict: Verdict) -> dict[str, dict[str, int]]:
    return {g.name: g.kinds for g in verdict.guarantees if g.violations}


def test_a_real_vllm_tears_streams_and_keeps_the_order_of_versions(torn: Path) -> None:
    v = judge(history.load(torn), Require(level="stream-atomic"))
    assert (v.status, v.level_held, v.level_broken) == ("FAIL", "token-atomic", "stream-regular")
    assert violations(v) == {"untorn": {"torn": 50}}
    assert [g.name for g in v.gates if not g.ok] == ["client_lag"]
    noise = v.case.attribution.noise  # four tokens of tears within two tokens of an end
    assert (noise.plain, noise.strays, noise.believed) == (0, 4, "all")


def test_the_same_history_is_unknown_where_tears_are_allowed_and_the_client_was_late(torn: Path) -> None:
    v = judge(history.load(torn), Require(level="token-atomic"))
    assert (v.status, v.level_held) == ("UNKNOWN", "token-atomic")
    on_time = history.load(torn)
    calm = replace(on_time, health=tuple(replace(h, lag_p99_ms=1.0, lag_max_ms=1.0) for h in on_time.health))
    assert judge(calm, Require(level="token-atomic")).status == "PASS"


def test_every_witness_is_there_in_the_raw_files(torn: Path) -> None:
    """Read without loadtest: the journal's lines and the token column."""
    rows = [orjson.loads(line) for line in (torn / "history-e0.jsonl").read_bytes().splitlines()]
    ids = np.fromfile(torn / "tokens-e0.i32", "<i4")
    streams = {r["stream"]: r for r in rows if r["kind"] == "stream"}
    marker = {r["version"]: r["markers"] for r in rows if r["kind"] == "version" and r["adapter"] == "tenant-a"}
    loaded = {f"e0-{r['op']}": r for r in rows if r["kind"] == "invoke"}
    acked = {f"e0-{r['op']}": r for r in rows if r["kind"] == "ack"}
    (untorn,) = (g for g in judge(history.load(torn), Require()).guarantees if g.name == "untorn")
    assert len(untorn.witnesses) == 20
    for w in untorn.witnesses:
        stream = streams[int(w.stream.removeprefix("e0-"))]
        own = ids[stream["offset"] : stream["offset"] + stream["tokens"]].tolist()
        old, new = (own[i] for i in w.tokens)
        assert ([old], [new]) == (marker[w.versions[0]], marker[w.versions[1]])
        assert (loaded[w.swap]["version"], acked[w.swap]["outcome"]) == (w.versions[1], "ok")
        assert stream["sent_ns"] < acked[w.swap]["acked_ns"]
        assert loaded[w.swap]["invoked_ns"] < stream["last_ns"]


def test_what_the_markers_say_counted_without_the_checker(torn: Path) -> None:
    """Streams of tenant-a with two different ids, counted from the columns alone."""
    rows = [orjson.loads(line) for line in (torn / "history-e0.jsonl").read_bytes().splitlines()]
    ids = np.fromfile(torn / "tokens-e0.i32", "<i4")
    mine = [r for r in rows if r["kind"] == "stream" and r["adapter"] == "tenant-a"]
    two = sum(len(set(ids[r["offset"] : r["offset"] + r["tokens"]].tolist())) > 1 for r in mine)
    h: History = history.load(torn)
    assert (two, len(h.streams), len(h.ops)) == (50, 278, 2 + 6 + 20 + 3 + 1)  # setup, sham, real, bad, rollback
