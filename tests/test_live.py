"""Counts while a run goes on: literal streams and operations in, totals out."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from loadtest.records import Ack, Invoke, Record, Stream, Version
from loadtest.traffic import live
from loadtest.traffic.capture import Reads
from loadtest.traffic.live import Live

MS = 1_000_000


class Kept:
    """A journal that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def emit(self, record: Record, flush: bool = False) -> bool:
        self.records.append(record)
        return True

    def stream(self, record: Stream, ids: array[int], arrivals_us: array[int], prompt: Any = ()) -> Stream:
        self.records.append(record)
        return record


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000 * MS

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counting(clock: Clock) -> Live:
    """Adapter a with v0 = 100, v1 = 101, v2 = 102; b with v0 = 200."""
    out = Live(Kept(), clock)
    for adapter, version, token in (("a", "v0", 100), ("a", "v1", 101), ("a", "v2", 102), ("b", "v0", 200)):
        out.emit(Version(adapter, version, "", "", (token,)))
    return out


def swap(
    counting: Live, op: int, version: str, at: tuple[int, int], outcome: Any = "ok", mode: Any = "inplace"
) -> None:
    counting.emit(Invoke(op, "a", mode, version, "/p", "real", "scenario", at[0] * MS))
    counting.emit(Ack(op, outcome, at[1] * MS))


def stream(counting: Live, sent: int, ids: list[int], adapter: str = "a", reason: str = "", first: int = 10) -> None:
    """A stream sent at `sent` ms whose tokens come a millisecond apart, the first after `first` ms."""
    outcome: Any = "ok" if not reason else "fail"
    record = Stream(
        1, adapter, "u", sent * MS, sent * MS, 8, True, 0, (sent + first) * MS if ids else 0, 0, (sent + 99) * MS,
        200, outcome, reason, "", "length", True, len(ids), 0, len(ids), len(ids),
    )  # fmt: skip
    counting.stream(record, array("i", ids), array("I", [1000 * (first + n) for n in range(len(ids))]))


def test_what_is_counted_is_journaled_unchanged() -> None:
    journal = Kept()
    counting = Live(journal)
    records = [Version("a", "v0", "", "", (1,)), Invoke(1, "a", "load", "v0", "/p", "", "setup", 5), Ack(1, "ok", 9)]
    for record in records:
        assert counting.emit(record, flush=True)
    stream(counting, 1, [1, 1])
    assert journal.records[:3] == records
    assert isinstance(journal.records[3], Stream)


def test_a_stream_of_two_versions_is_torn_and_one_of_one_is_not(counting: Live) -> None:
    stream(counting, 0, [100, 100, 7])
    stream(counting, 0, [100, 101])
    stream(counting, 0, [7, 8])
    counts = counting.second()["counts"]
    assert (counts["judged"], counts["torn"], counts["ok"]) == (2, 1, 3)


def test_stale_is_what_was_superseded_before_the_stream_was_sent(counting: Live) -> None:
    swap(counting, 1, "v0", (0, 10), mode="load")
    swap(counting, 2, "v1", (100, 120))
    stream(counting, 119, [100])  # sent before the ack
    assert counting.second()["counts"]["stale"] == 0
    stream(counting, 121, [100])
    stream(counting, 121, [101])
    assert counting.second()["counts"]["stale"] == 1


def test_a_lost_or_refused_or_bad_load_makes_nothing_stale(counting: Live) -> None:
    swap(counting, 1, "v0", (0, 10), mode="load")
    swap(counting, 2, "v1", (20, 0), "info")
    swap(counting, 3, "v2", (40, 50), "fail")
    swap(counting, 4, "bad:missing", (60, 70))
    stream(counting, 200, [100])
    assert counting.second()["counts"]["stale"] == 0
    swap(counting, 5, "v2", (210, 220))
    stream(counting, 300, [101])  # v1's load was never answered: it may have happened after v2
    stream(counting, 300, [100])
    assert counting.second()["counts"]["stale"] == 1


def test_another_engines_swap_counts_as_our_own(counting: Live) -> None:
    for version, at in (("v0", 10), ("v1", 50)):
        counting.swapped(
            {"adapter": "a", "version": version, "invoked_ns": at * MS, "acked_ns": (at + 5) * MS, "outcome": "ok"}
        )
    stream(counting, 60, [100])
    assert counting.second()["counts"]["stale"] == 1


def test_another_adapters_token_is_foreign_and_a_disputed_one_is_nobodys(counting: Live) -> None:
    stream(counting, 0, [100, 200])
    assert counting.second()["counts"]["foreign"] == 1
    counting.emit(Version("b", "v9", "", "", (100,)))
    stream(counting, 0, [100])
    assert counting.second()["counts"]["judged"] == 1


def test_the_first_token_of_a_version_is_told_once_and_again_when_it_turns_out_earlier(counting: Live) -> None:
    stream(counting, 0, [100, 101], first=10)
    assert counting.second()["seen"] == [["a", "v0", 10 * MS], ["a", "v1", 11 * MS]]
    stream(counting, 0, [101], first=30)
    assert counting.second()["seen"] == []
    stream(counting, 0, [101], first=5)
    assert counting.second()["seen"] == [["a", "v1", 5 * MS]]


def test_a_marker_that_the_base_emits_by_itself_means_nothing(counting: Live) -> None:
    stream(counting, 0, [100, 200, 7], adapter="base")
    message = counting.second()
    assert message["counts"] == {"ok": 1}
    assert message["seen"] == []


def test_reasons_are_counted_under_their_own_names(counting: Live) -> None:
    stream(counting, 0, [], reason="rejected")
    stream(counting, 0, [100], reason="cut")
    assert {k: counting.second()["counts"][k] for k in ("rejected", "cut")} == {"rejected": 1, "cut": 1}


def reads(clock: Clock, stamps: list[int]) -> Reads:
    out = Reads(1 << 20, clock)
    for stamp in stamps:
        out.add(stamp * MS, b"data: x\n\n")
    return out


def test_open_streams_count_by_their_reads_and_by_the_tokens_per_read_of_ended_ones(
    counting: Live, clock: Clock
) -> None:
    counting.reads.add(reads(clock, [1000, 1010, 1020]))
    assert counting.second()["live_tokens"] == 3
    record = Stream(
        1, "a", "u", 0, 0, 8, True, 0, 1, 2, 3, 200, "ok", "", "", "length", True, 8, 0, 4, 8
    )  # fmt: skip
    counting.stream(record, array("i", [100] * 8), array("I", [1] * 8))
    assert counting.second()["live_tokens"] == 8 + 3 * 2


def test_gaps_of_the_last_second_only(counting: Live, clock: Clock) -> None:
    counting.reads.add(reads(clock, [900, 990, 1030, 1060]))  # the second begins at 1000
    clock.now = 1_100 * MS
    message = counting.second()
    assert sum(n for _, n in message["itl"]) == 2  # the gap of 90 ms ended before
    assert live.quantile(dict(message["itl"]), 1.0) == pytest.approx(40, rel=0.1)
    assert message["silent_ms"] == 40
    assert counting.second()["itl"] == []


def test_the_gaps_looked_at_are_bounded(counting: Live, clock: Clock) -> None:
    for _ in range(300):
        counting.reads.add(reads(clock, list(range(1001, 1501))))
    clock.now = 2_000 * MS
    found = sum(n for _, n in counting.second()["itl"])
    assert 0 < found <= live.GAPS + live.CHOSEN


@pytest.mark.parametrize("value", [0.0, 0.011, 1.0, 3.6, 32.8, 5_000.0])
def test_a_bin_holds_its_values_within_five_percent(value: float) -> None:
    upper = live.value_of(live.bin_of(value))
    assert max(value, 0.01) <= upper * 1.000001
    assert upper <= max(value, 0.01) * 1.051


def test_quantiles_of_a_histogram() -> None:
    assert live.quantile({}, 0.5) is None
    assert live.quantile({0: 99, 50: 1}, 0.5) == live.value_of(0)
    assert live.quantile({0: 99, 50: 1}, 1.0) == live.value_of(50)
