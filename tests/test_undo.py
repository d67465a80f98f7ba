"""Rollbacks that a killed run owes: found, played once, on record before they leave."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rawserver import Call, RawServer, serving

from loadtest import records, undo
from loadtest.errors import HistoryError
from loadtest.journal import Journal, encode, held

URL = "http://h:1"


def header(engine: str = "e0") -> records.Run:
    return records.Run(1, "r", engine, "local", undo.boot_id(), os.getppid(), 7, 1, 1, "0")


def line(adapter: str, state: str, url: str = URL) -> records.Undo:
    return records.Undo(adapter, "v0", f"/srv/{adapter}/0001-v0", "/x", state, 5, url)  # type: ignore[arg-type]


def dead(results: Path, name: str, *lines: records.Undo) -> Path:
    """A run that was killed after these lines."""
    folder = results / name
    folder.mkdir(parents=True)
    (folder / "history-e0.jsonl").write_bytes(encode(header()) + b"".join(map(encode, lines)))
    return folder


def owed(results: Path, url: str = URL) -> list[tuple[str, str]]:
    return [(f.name, u.adapter) for f, u in undo.owed(results, url)]


def test_what_is_planned_and_not_played_is_owed(tmp_path: Path) -> None:
    dead(tmp_path, "a", line("x", "planned"), line("y", "planned"), line("y", "played"))
    dead(tmp_path, "b", line("z", "planned", "http://other:1"))
    assert owed(tmp_path) == [("a", "x")]
    assert owed(tmp_path, "http://other:1") == [("b", "z")]
    assert owed(tmp_path / "none") == []


def test_a_rollback_that_the_run_itself_did_not_manage_is_owed(tmp_path: Path) -> None:
    folder = dead(tmp_path, "a", line("x", "planned"), line("x", "failed"))
    assert owed(tmp_path) == [("a", "x")]
    (folder / undo.PLAYED).write_bytes(encode(line("x", "planned")) + encode(line("x", "failed")))
    assert owed(tmp_path) == []  # refused at a later start: said once, not tried for ever


def test_a_start_that_was_killed_between_line_and_load_is_repeated(tmp_path: Path) -> None:
    folder = dead(tmp_path, "a", line("x", "planned"))
    (folder / undo.PLAYED).write_bytes(encode(line("x", "planned")))
    assert owed(tmp_path) == [("a", "x")]


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    folder = dead(tmp_path, "a", line("x", "planned"))
    with (folder / "history-e0.jsonl").open("ab") as f:
        f.write(b'{"kind":"undo","adapter":7}\n{"kind":"undo","state":"played","adapter":"x"\n')
        f.write(encode(line("y", "planned"))[:-2] + b',"unknown":1}\n' + encode(line("z", "planned"))[:30])
    assert owed(tmp_path) == [("a", "x"), ("a", "y")]


def test_a_run_that_lives_owes_nothing_whatever_its_pid(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a", header())
    journal.emit(line("x", "planned"), flush=True)
    assert held(tmp_path / "a" / "history-e0.jsonl")
    assert owed(tmp_path) == []
    journal.close("interrupted", 9)
    assert owed(tmp_path) == [("a", "x")]  # the pid in its header lives on: it is somebody else's


def test_one_history_has_one_writer(tmp_path: Path) -> None:
    journal = Journal(tmp_path, header())
    with pytest.raises(HistoryError, match=r"history-e0.jsonl exists"):
        Journal(tmp_path, header())
    journal.close("complete", 9)
    with pytest.raises(HistoryError):
        Journal(tmp_path, header())
    Journal(tmp_path, header("e1")).close("complete", 9)


def test_a_filesystem_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(fd: int, how: int) -> None:
        raise OSError(95, "not supported")

    dead(tmp_path, "a", line("x", "planned"))
    monkeypatch.setattr(fcntl, "flock", none)
    Journal(tmp_path / "b", header()).close("complete", 9)
    assert owed(tmp_path) == []  # nobody can say that it is dead


@contextlib.contextmanager
def server(status: int, seen: list[bytes]) -> Iterator[RawServer]:
    async def script(call: Call) -> None:
        seen.append(call.body)
        await call.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)

    with serving(script) as found:
        yield found


@pytest.mark.parametrize(("status", "words", "count"), [(200, "rolled back to v0", 1), (404, "refused (404)", 0)])
def test_play(tmp_path: Path, status: int, words: str, count: int) -> None:
    seen: list[bytes] = []
    said: list[str] = []
    with server(status, seen) as up:
        folder = dead(tmp_path, "a", line("x", "planned", up.url))
        assert undo.play(tmp_path, up.url, {}, said.append) == count
        assert undo.play(tmp_path, up.url, {}, said.append) == 0
    assert seen == [b'{"lora_name": "x", "lora_path": "/srv/x/0001-v0", "load_inplace": true}']
    assert len(said) == 1
    assert words in said[0]
    assert [u.state for u in undo._undos(folder / undo.PLAYED)] == ["planned", "played" if count else "failed"]


def test_nothing_is_sent_that_cannot_be_written_down(tmp_path: Path) -> None:
    seen: list[bytes] = []
    said: list[str] = []
    with server(200, seen) as up:
        (dead(tmp_path, "a", line("x", "planned", up.url)) / undo.PLAYED).mkdir()
        assert undo.play(tmp_path, up.url, {}, said.append) == 0
    assert seen == []
    assert "cannot write to" in said[0]


def test_a_server_that_does_not_answer_is_still_owed(tmp_path: Path) -> None:
    said: list[str] = []
    with server(200, []) as up:
        url = up.url
    dead(tmp_path, "a", line("x", "planned", url))
    assert undo.play(tmp_path, url, {}, said.append) == 0
    assert "could not undo x of a" in said[0]
    assert owed(tmp_path, url) == [("a", "x")]
