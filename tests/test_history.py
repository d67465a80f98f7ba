"""What the journal wrote is what history reads, also when the end of a file is missing."""

from __future__ import annotations

import os
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest import history, journal, records
from loadtest.analysis import verdict
from loadtest.errors import HistoryError

RUN = records.Run(1, "r", "e0", "local", "boot", 1, 7, 0, 0, "0.1")
STREAM = records.Stream(
    stream=1, adapter="a", user="u", intended_ns=10, sent_ns=10, max_tokens=3, ignore_eos=True,
    head_ns=20, first_ns=30, last_ns=50, ended_ns=60, status=200, outcome="ok", reason="", detail="",
    finish="length", done=True, tokens=0, offset=0, chunks=3, usage=3,
)  # fmt: skip


def send(n: int, at: int) -> records.Send:
    return records.Send(n, "a", "u", at, at, 3)


def stream(n: int, at: int) -> records.Stream:
    times = {"sent_ns": at, "intended_ns": at, "head_ns": at + 10, "first_ns": at + 20, "last_ns": at + 40}
    return replace(STREAM, stream=n, ended_ns=at + 50, **times)


def write(folder: Path, engine: str = "e0", count: int = 3, close: bool = True) -> journal.Journal:
    j = journal.Journal(folder, replace(RUN, engine=engine))
    j.emit(records.Phase(0, "aa", "start", 5))
    j.emit(records.Health(0, 300, 1.0, 1.0, 0.1, 1))
    for n in range(count):
        at = 10 + 100 * n
        j.emit(send(n, at))
        ids = array("i", [n, n + 1, n + 2])
        j.stream(stream(n, at), ids, array("I", [1, 2, 3]), [9, n])
    j.emit(records.Invoke(1, "a", "inplace", "v1", "/p", "real", "scenario", 50), flush=True)
    j.emit(records.Ack(1, "ok", 70, 200))
    j.emit(records.Invoke(2, "a", "inplace", "v2", "/p", "real", "scenario", 150), flush=True)
    j.emit(records.Version("a", "v1", "sha", "/p", (4, 5)))
    j.emit(records.Version("a", "v2", "sha2", "/p", (6,)))
    if close:
        j.emit(records.Phase(0, "aa", "end", 250))
        j.close("complete", 300)
    else:
        j.flush()
    return j


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path)
    h = history.load(tmp_path)
    assert h.problems == ()
    assert h.streams.name == ["e0-0", "e0-1", "e0-2"]
    assert h.ids.tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4]
    assert h.at.tolist() == [1010, 2010, 3010, 1110, 2110, 3110, 1210, 2210, 3210]
    assert h.prompts.tolist() == [9, 0, 9, 1, 9, 2]
    assert h.streams.phase.tolist() == [0, 0, 0]
    assert [(o.name, o.outcome, o.acked) for o in h.ops] == [("e0-1", "ok", 70), ("e0-2", "info", 0)]
    assert h.versions[0].markers == (4, 5)
    assert h.ends[0].reason == "complete"
    assert h.phases[0].end == 250


def test_files_of_several_engines_merge_in_order_of_sending(tmp_path: Path) -> None:
    write(tmp_path, "e0")
    write(tmp_path, "e1", count=2)
    h = history.load(tmp_path)
    assert h.streams.name == ["e0-0", "e1-0", "e0-1", "e1-1", "e0-2"]
    assert h.ids.tolist() == [0, 1, 2, 0, 1, 2, 1, 2, 3, 1, 2, 3, 2, 3, 4]
    assert h.streams.start.tolist() == [0, 3, 6, 9, 12]
    assert len(h.versions) == 2


@given(cut=st.integers(0, 4000))
def test_a_history_cut_anywhere_reads_as_a_prefix_with_unfinished_ends(cut: int, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    write(folder)
    whole = history.load(folder)
    path = folder / "history-e0.jsonl"
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    if b"\n" not in data:
        return
    h = history.load(folder)
    finished = [i for i in range(len(h.streams)) if h.streams.reasons[h.streams.reason[i]] != "unfinished"]
    assert h.streams.name == whole.streams.name[: len(h.streams)]
    for i in finished:
        a, n = int(h.streams.start[i]), int(h.streams.tokens[i])
        assert h.ids[a : a + n].tolist() == whole.ids[3 * i : 3 * i + n].tolist()
    assert all(h.streams.outcome[i] == history.INFO for i in range(len(h.streams)) if i not in finished)
    assert [o.name for o in h.ops] == [o.name for o in whole.ops][: len(h.ops)]


@pytest.mark.parametrize("column", ["tokens-e0.i32", "arrivals-e0.u32", "prompts-e0.i32"])
def test_a_short_column_is_a_named_problem_never_a_guess(tmp_path: Path, column: str) -> None:
    write(tmp_path)
    os.truncate(tmp_path / column, 22)
    h = history.load(tmp_path)
    assert any("stream 2" in p for p in h.problems)
    assert h.streams.reasons[h.streams.reason[2]] == "unfinished"
    assert len(h.ids) == int(h.streams.tokens.sum())


@given(junk=st.binary(max_size=200), kind=st.sampled_from(["stream", "ack", "send", "phase", "run", "nonsense"]))
def test_junk_lines_never_raise(junk: bytes, kind: str, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("junk")
    write(folder, count=1)
    with (folder / "history-e0.jsonl").open("ab") as f:
        f.write(junk + b'\n{"kind":"%s","stream":"x","op":[1],"sent_ns":{}}\n{"kind":[]}\n[]\n1\n' % kind.encode())
    h = history.load(folder)
    assert "e0-0" in h.streams.name
    assert h.problems


def test_a_full_disk_refuses_whole_records_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_PENDING", 2_000)
    monkeypatch.setattr(journal, "FLUSH_BYTES", 500)
    j = write(tmp_path, close=False)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]) if len(data) % 3 else _full())
    for n in range(50, 90):
        j.stream(stream(n, n * 1000), array("i", [n] * 3), array("I", [1, 2, 3]))
    monkeypatch.setattr(os, "write", real)
    assert j.dropped > 0
    j.close("complete", 10**6)
    h = history.load(tmp_path)
    assert h.problems == ()
    assert len(h.streams) + j.dropped >= 43
    assert (h.ids[9:] == np.repeat([int(n.split("-")[1]) for n in h.streams.name[3:]], 3)).all()


def _full() -> int:
    raise OSError(28, "No space left on device")


def test_no_history_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="holds no history"):
        history.load(tmp_path)


ODD = [None, True, -1, 0, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, 1e308, "", "x", [], {}, [1]]
odd = st.sampled_from(ODD)


def _lines_of_every_kind(folder: Path) -> list[dict]:
    j = write(folder, close=False)
    j.emit(records.Health(0, 100, 0.1, 0.2, 0.01, 3, 0, (1, 2)))
    j.emit(records.Scrape(100, 1.0))
    j.emit(records.Undo("a", "v0", "/p", "/p", "planned", 40, "http://h"))
    j.emit(records.Event(120, "error", "x"))
    j.emit(records.ReplicaAck(1, 0, "ok", 65, 200))
    j.emit(records.Phase(0, "aa", "end", 250))
    j.close("complete", 300)
    rows = [orjson.loads(line) for line in (folder / "history-e0.jsonl").read_bytes().splitlines()]
    assert {r["kind"] for r in rows} == set(records.KINDS)
    return rows


def _never_passes(folder: Path, rows: list[dict]) -> None:
    lines = [b"".join((b'{"kind":', orjson.dumps(r["kind"]), b",", _dumps(r)[1:])) for r in rows]
    (folder / "history-e0.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    h = history.load(folder)
    assert len(h.streams) <= 4
    assert verdict.judge(h, verdict.Require("stream-atomic", min_swaps=1)).status != "PASS"


@pytest.mark.parametrize("kind", sorted(records.KINDS))
def test_every_odd_value_in_every_field_by_itself(kind: str, tmp_path: Path) -> None:
    rows = _lines_of_every_kind(tmp_path)
    where = [i for i, r in enumerate(rows) if r["kind"] == kind][-1]
    for key in set(rows[where]) - {"kind"}:
        for value in ODD:
            _never_passes(tmp_path, [{**r, key: value} if i == where else r for i, r in enumerate(rows)])


@given(kind=st.sampled_from(sorted(records.KINDS)), data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_values_in_any_field_never_raise_and_never_pass(kind: str, data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("odd")
    rows = _lines_of_every_kind(folder)
    row = data.draw(st.sampled_from([r for r in rows if r["kind"] == kind]))
    keys = st.sampled_from(sorted(set(row) - {"kind"}))
    for key, value in data.draw(st.dictionaries(keys, odd, min_size=1, max_size=3)).items():
        row[key] = value
    _never_passes(folder, rows)


def _dumps(row: dict) -> bytes:
    return orjson.dumps({k: v for k, v in row.items() if k != "kind"})
