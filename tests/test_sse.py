"""The SSE parser: the standard's corner cases, any split of the bytes, and bounds."""

from __future__ import annotations

import itertools

import eventsource
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.traffic.sse import Event, Parser, SseError, parse_reads


def whole(data: bytes) -> list[Event]:
    """Events of `data` fed at once, with the end."""
    parser = Parser()
    return parser.feed(data) + parser.eof()


def split(data: bytes, cuts: list[int]) -> list[Event]:
    """Events of `data` fed in the pieces that `cuts` make."""
    parser = Parser()
    places = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    events = [e for a, b in itertools.pairwise(places) for e in parser.feed(data[a:b])]
    return events + parser.eof()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_each_line_end(end: bytes) -> None:
    data = end.join([b"data: a", b"data: b", b"", b"event: k", b"data:c", b"", b""])
    assert [(e.data, e.kind) for e in whole(data)] == [(b"a\nb", b"message"), (b"c", b"k")]


def test_a_pair_split_across_reads_is_one_line_end() -> None:
    parser = Parser()
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\n") == []
    assert [e.data for e in parser.feed(b"\r")] == [b"a"]
    assert parser.feed(b"\ndata: b\r\n\r") == [Event(b"b")]
    assert parser.feed(b"\n") == []


def test_separators_of_unicode_are_text() -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
    assert [e.data.decode() for e in whole(f"data: {text}\n\n".encode())] == [text]


def test_spaces_of_the_value_are_kept_but_one() -> None:
    assert [e.data for e in whole(b"data:  two \n\ndata:\tx\n\n")] == [b" two ", b"\tx"]


def test_fields_without_colon_and_empty_data() -> None:
    assert [e.data for e in whole(b"data\n\ndata\ndata\n\ndata:\n\n")] == [b"", b"\n", b""]


def test_a_mark_is_skipped_once_also_when_split() -> None:
    parser = Parser()
    assert parser.feed(b"\xef") == parser.feed(b"\xbb") == []
    assert [e.data for e in parser.feed(b"\xbfdata: a\n\n")] == [b"a"]
    assert [e.data for e in whole(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n")] == []


def test_unknown_fields_are_counted() -> None:
    parser = Parser()
    events = parser.feed(b"<html>\n: fine\nid: 1\ndata: a\n\nwhat\n")
    assert [e.ignored for e in events] == [1]
    assert parser.ignored == 2


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r", b"data: [DONE]\r\n"])
def test_an_open_event_at_the_end_is_marked(tail: bytes) -> None:
    events = whole(b"data: 1\n\n" + tail)
    assert [(e.data, e.partial) for e in events] == [(b"1", False), (b"[DONE]", True)]


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_a_long_line_is_refused_whatever_the_reads(chunk: int) -> None:
    data = b"data: ok\n\ndata: " + b"x" * 100
    parser = Parser(max_line=50)
    got: list[Event] = []

    def feed_all() -> None:
        for i in range(0, len(data), chunk):
            got.extend(parser.feed(data[i : i + chunk]))

    with pytest.raises(SseError, match="longer than 50 bytes") as caught:
        feed_all()
    assert [e.data for e in got + caught.value.events] == [b"ok"]
    with pytest.raises(SseError, match="longer than 50 bytes"):
        parser.feed(b"data: more\n\n")
    with pytest.raises(SseError, match="longer than 50 bytes"):
        parser.eof()


def test_a_long_event_is_refused() -> None:
    parser = Parser(max_event=50)
    with pytest.raises(SseError, match="data of an event is longer than 50 bytes"):
        parser.feed(b"data: x\n" * 100)


def test_events_carry_the_stamp_of_the_read_that_completed_them() -> None:
    reads = [(10, b"data: a\n"), (20, b"\ndata: b\n\nda"), (30, b"ta: c\n\n"), (40, b"data: [DONE]")]
    got = list(parse_reads(reads, Parser()))
    assert [(t, e.data) for t, events in got for e in events] == [(20, b"a"), (20, b"b"), (30, b"c"), (40, b"[DONE]")]


def test_stamped_events_before_an_error_are_kept() -> None:
    seen = []

    def read_all() -> None:
        for stamp, events in parse_reads([(1, b"data: a\n\n"), (2, b"data: b\n\n" + b"x" * 99)], Parser(max_line=50)):
            seen.extend((stamp, event.data) for event in events)

    with pytest.raises(SseError):
        read_all()
    assert seen == [(1, b"a"), (2, b"b")]


@pytest.mark.parametrize("cut", [0, 1, 49, 50])
def test_a_line_and_an_event_of_just_the_bound(cut: int) -> None:
    line = b"data: " + b"x" * 44
    parser = Parser(max_line=50, max_event=45)
    parser.feed(line[:cut])
    parser.feed(line[cut:])
    assert [e.data for e in parser.feed(b"\n\n")] == [b"x" * 44]
    assert [e.data for e in parser.feed(line + b"\n\n")] == [b"x" * 44]
    with pytest.raises(SseError, match="a line is longer"):
        parser.feed(line + b"x")
    with pytest.raises(SseError, match="data of an event"):
        Parser(max_line=50, max_event=44).feed(line + b"\n\n")


def test_a_cr_inside_what_looks_like_one_event() -> None:
    assert [e.data for e in whole(b"data: a\rdata: b\n\n")] == [b"a\nb"]
    assert [e.data for e in whole(b"data: a\r\n\n")] == [b"a"]


def test_what_ends_in_no_empty_line_is_no_event_yet() -> None:
    parser = Parser()
    assert parser.feed(b"data: a\n\x0b") == []
    assert parser.feed(b"\n\n") == [Event(b"a", ignored=1)]


def test_the_bounds_that_hold_unless_others_are_given() -> None:
    room = 8 * 1024 * 1024
    longest = b"data:" + b"x" * (room - 5)
    parser = Parser()
    assert parser.feed(longest) == []
    assert [len(e.data) for e in parser.feed(b"\n\n")] == [room - 5]
    with pytest.raises(SseError, match=f"a line is longer than {room} bytes"):
        parser.feed(longest + b"x")
    half = b"data:" + b"x" * (room // 2 - 1) + b"\n"
    parser = Parser()
    assert parser.feed(half + half) == []
    with pytest.raises(SseError, match=f"the data of an event is longer than {room} bytes"):
        parser.feed(b"data:\n")


@pytest.mark.parametrize(
    ("line", "event", "words"), [(8, 99, "a line is longer than 8"), (99, 3, "event is longer than 3")]
)
def test_the_usual_read_is_held_to_both_bounds(line: int, event: int, words: str) -> None:
    with pytest.raises(SseError, match=words):
        Parser(max_line=line, max_event=event).feed(b"data: abc\n\n")


@pytest.mark.parametrize(("line", "event"), [(11, 12), (12, 11)])
def test_the_usual_read_takes_the_short_way(monkeypatch: pytest.MonkeyPatch, line: int, event: int) -> None:
    lines: list[bytes] = []
    monkeypatch.setattr(Parser, "_line", lambda self, line, events: lines.append(line))
    assert Parser(max_line=line, max_event=event).feed(b"data: abc\n\n") == [Event(b"abc")]
    assert lines == []


@pytest.mark.parametrize("pending", [b"da", b"data: b\n", b"event: k\n"])
def test_the_short_way_is_not_taken_where_something_is_pending(pending: bytes) -> None:
    usual = b"data: a\n\n"
    parser = Parser()
    assert parser.feed(pending) == []
    assert parser.feed(usual) == Parser().feed(pending + usual)


def test_two_lines_of_one_read_are_not_two_line_ends() -> None:
    assert Parser().feed(b"data: a\n:\n") == []


def test_a_mark_is_text_after_the_first_line() -> None:
    for first in (b"data: a\n\n", b"\n", b":\n"):
        parser = Parser()
        parser.feed(first)
        assert parser.feed(b"\xef\xbb\xbfdata: b\n\n") == []
        assert parser.ignored == 1


def test_an_empty_read_changes_nothing() -> None:
    parser = Parser()
    assert parser.feed(b"data: a\r") == parser.feed(b"") == []
    assert parser.feed(b"\n") == []
    assert parser.feed(b"\n") == [Event(b"a")]


def test_a_line_in_two_reads_leaves_room_for_the_next() -> None:
    parser = Parser(max_line=10)
    parser.feed(b"data: ")
    assert parser.feed(b"a\n\n") == [Event(b"a")]
    assert parser.feed(b"data: 1234") == []
    assert parser.feed(b"\n\n") == [Event(b"1234")]


def test_what_the_end_left_open_keeps_its_kind_and_its_bound() -> None:
    assert whole(b"event: k\ndata: a") == [Event(b"a", b"k", partial=True)]
    assert whole(b"data: a") == [Event(b"a", partial=True)]
    parser = Parser(max_event=3)
    assert parser.feed(b"data: abc") == []
    with pytest.raises(SseError, match="event is longer than 3"):
        parser.eof()
    with pytest.raises(SseError, match="event is longer than 3"):
        parser.feed(b"\n")


def test_the_end_of_no_reads() -> None:
    assert list(parse_reads([], Parser())) == [(0, [])]


syntax = (b"data", b"data:", b"data: ", b"event: ", b"id: 7", b"retry: 3", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n")
values = (
    b"\r\r",
    b"[DONE]",
    b"{}",
    b"x",
    b"\xef\xbb\xbf",
    b"\x00",
    b"\x0b\x0c",
    *(t.encode() for t in "\u2028\u0085é😀"),
)
pieces = st.sampled_from((*syntax, *values))
streams = st.lists(pieces, max_size=40).map(b"".join)


@given(streams)
@settings(max_examples=600, deadline=None)
def test_agrees_with_the_standard(data: bytes) -> None:
    parser = Parser()
    events = parser.feed(data) + parser.eof()
    got = [(e.kind.decode("utf-8", "replace"), e.data.decode("utf-8", "replace")) for e in events]
    source, rest = eventsource.source(data)
    left = eventsource.leftover(data)
    assert got == source.dispatched + ([left] if left else [])
    assert [e.partial for e in events] == [False] * len(source.dispatched) + ([True] if left else [])
    assert parser.ignored == source.ignored + (len(rest) > 0 and _ignored(rest))


def _ignored(line: str) -> int:
    alone = eventsource.Source()
    alone.process_line(line)
    return alone.ignored


@given(streams, st.lists(st.integers(0, 400), max_size=12))
@settings(max_examples=600, deadline=None)
def test_any_split_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    assert split(data, cuts) == whole(data)


@given(streams)
@settings(max_examples=200, deadline=None)
def test_byte_by_byte_gives_the_same_events(data: bytes) -> None:
    assert split(data, list(range(len(data)))) == whole(data)
