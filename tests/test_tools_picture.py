"""The picture of a run: every stream a bar of versions, told from a history written for it."""

from __future__ import annotations

from array import array
from pathlib import Path

from loadtest import records
from loadtest.history import History, load
from loadtest.journal import Journal
from loadtest.tools.picture import draw

MS = 1_000_000
T0 = 5_000 * MS
MARKERS = {("a", "v0"): 10, ("a", "v1"): 11, ("b", "v0"): 20}


class Story:
    """Writes a history: milliseconds since the start, tokens one millisecond apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder, records.Run(1, "r", "e0", "cli", "boot", 1, 0, T0, 0, "0"))
        self.streams = 0
        for (adapter, version), token in MARKERS.items():
            self.journal.emit(records.Version(adapter, version, f"{adapter}{version}", "/p", (token,)))

    def stream(self, user: str, adapter: str, sent: int, first: int, ids: list[int], **more: object) -> None:
        self.streams += 1
        at = array("I", [1000 * (first - sent + i) for i in range(len(ids))])
        last = T0 + (first + len(ids) - 1) * MS
        what = {"outcome": "ok", "reason": "", **more}
        record = records.Stream(
            stream=self.streams, adapter=adapter, user=user, intended_ns=T0 + sent * MS, sent_ns=T0 + sent * MS,
            max_tokens=len(ids), ignore_eos=True, head_ns=T0 + sent * MS, first_ns=T0 + first * MS, last_ns=last,
            ended_ns=last, status=200, detail="", finish="length", done=True, tokens=len(ids), offset=0,
            chunks=len(ids), usage=len(ids), **what,
        )  # type: ignore[arg-type] # fmt: skip
        self.journal.stream(record, array("i", ids), at)

    def swap(self, at: int, version: str, adapter: str = "a", by: str = "scenario") -> None:
        op = records.Invoke(at, adapter, "inplace", version, "/p", "real", by, T0 + at * MS)  # type: ignore[arg-type]
        self.journal.emit(op)
        self.journal.emit(records.Ack(at, "ok", T0 + (at + 1) * MS, 200))

    def told(self) -> History:
        self.journal.close("complete", T0 + 10**9)
        return load(self.folder)


def test_versions_waiting_and_the_swap_stand_where_they_happened(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.stream("user 1", "a", 0, 4, [10] * 6 + [11] * 10)
    story.swap(8, "v1")
    lines = draw(story.told(), "a", width=20)
    assert [line.name.strip() for line in lines] == ["swaps", "user 1"]
    swaps, user = ("".join(c for c, _ in line.cells) for line in lines)
    assert swaps.index("▼") == 8
    assert swaps[9] == "1"
    assert user[0] == "["
    assert set(user[1:4]) == {"·"}
    assert set(user[5:9]) == {"0"}
    assert set(user[12:19]) == {"1"}
    assert user[19] == "]"


def test_what_is_wrong_with_a_stream_can_be_seen(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.stream("user 0", "a", 0, 1, [20] * 5 + [7] * 5, outcome="fail", reason="truncated")
    story.stream("user 0", "base", 11, 12, [3] * 8)
    bar = "".join(c for c, _ in draw(story.told(), "a", width=20)[1].cells)
    assert "x" in bar
    assert "?" in bar
    assert "!" in bar
    assert "b" in bar
    assert bar.index("x") < bar.index("?") < bar.index("!") < bar.index("b")


def test_a_stray_marker_of_the_base_is_no_leak_but_several_in_a_row_are(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.stream("user 1", "base", 0, 1, [3] * 5 + [10] + [3] * 5)
    story.stream("user 2", "base", 0, 1, [3] * 4 + [10] * 3 + [3] * 4)
    _, stray, leak = ("".join(c for c, _ in line.cells) for line in draw(story.told(), "a", width=24))
    assert "x" not in stray
    assert "x" in leak


def test_lanes_are_users_in_order_and_those_of_the_adapter_come_first(tmp_path: Path) -> None:
    story = Story(tmp_path)
    for n in range(12):
        story.stream(f"user {n}", "a" if n % 2 else "b", 0, 1, [10 if n % 2 else 20] * 9)
    recorded = story.told()
    assert [line.name.strip() for line in draw(recorded, "a")] == ["swaps", *(f"user {n}" for n in range(12))]
    assert [line.name.strip() for line in draw(recorded, "a", lanes=3)] == ["swaps", "user 1", "user 3", "user 5"]


def test_only_the_run_s_own_swaps_of_that_adapter_are_marked(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.stream("user 1", "a", 0, 1, [10] * 19)
    story.swap(2, "v0", by="setup")
    story.swap(6, "v0", adapter="b")
    story.swap(10, "v1", by="operator")
    swaps = "".join(c for c, _ in draw(story.told(), "a", width=20)[0].cells)
    assert swaps.count("▼") == 1
    assert swaps.index("▼") in (10, 11)


def test_a_history_without_streams_has_no_picture(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.swap(1, "v1")
    assert draw(story.told(), "a") == []
