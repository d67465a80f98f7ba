"""Frames: any split, and what is no frame."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.traffic.ipc import EngineHandle, FrameError, Unframer, frame

texts = st.text(max_size=20)
messages = st.lists(st.fixed_dictionaries({"op": texts, "x": st.lists(st.integers(0, 2**31)) | texts}), max_size=6)


@given(messages, st.lists(st.integers(0, 2000), max_size=10))
def test_any_split_gives_the_messages(sent: list[dict], cuts: list[int]) -> None:
    data = b"".join(frame(m) for m in sent)
    places = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    unframer = Unframer()
    assert [m for a, b in itertools.pairwise(places) for m in unframer.feed(data[a:b])] == sent


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\2{}", b"\0\0\0\1x", b'\0\0\0\x08{"op":1}', b"\0\0\0\0"]
)
def test_what_is_no_frame(data: bytes) -> None:
    with pytest.raises(FrameError, match="a frame"):
        Unframer().feed(data)


def test_a_handle_that_was_not_started() -> None:
    handle = EngineHandle()
    assert not handle.alive
    assert handle.pid == 0
    with pytest.raises(BrokenPipeError):
        handle.send({"op": "x"})
    assert handle.stream({"adapter": "a"})["outcome"] == "info"
    assert not handle.stop("complete", 0)
    handle.close()
    handle.close()
